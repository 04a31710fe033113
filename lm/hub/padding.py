"""Padded batches: which columns hold tokens, what they are without padding, and their loss.

Shapes: B lanes, L columns of input, t tokens, V vocabulary, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Label of a column that is not to be predicted, as everywhere in transformers."""


def check_ids(name: str, ids: Tensor, size: int) -> None:
    """ValueError where one of some ids is not in the vocabulary; on a GPU the kernels say it."""
    if ids.device.type == "cpu" and ids.numel():
        lowest, highest = int(ids.min()), int(ids.max())
        if lowest < 0 or highest >= size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"{name} must be from 0 to {size - 1}, not {wrong}")


def real_columns(input_ids_BL: Tensor, mask: Tensor | None, seen: int, pad: int) -> Tensor:
    """[B, L] bool: which columns hold tokens.

    Args:
        input_ids_BL: new columns.
        mask: of them, or of all columns, [B, seen + L]; 0 and 1 in any type; none: all.
        seen: columns before them.
        pad: the id that always is padding.

    Raises:
        ValueError: another shape, or other values.
    """
    if input_ids_BL.dim() != 2 or input_ids_BL.is_floating_point():
        raise ValueError(
            f"input_ids must be whole numbers of shape [texts, columns], not "
            f"{list(input_ids_BL.shape)} of {input_ids_BL.dtype}"
        )
    real = input_ids_BL != pad
    if mask is None:
        return real
    lanes, columns = input_ids_BL.shape
    if tuple(mask.shape) not in ((lanes, columns), (lanes, seen + columns)):
        wanted = f"[{lanes}, {columns}]" + (f" or [{lanes}, {seen + columns}]" if seen else "")
        raise ValueError(
            f"attention_mask must have the shape {wanted} of the columns, not {list(mask.shape)}"
        )
    mask = mask[:, mask.shape[1] - columns :]
    # In a step of generation on a GPU nobody waits for this.
    looked_at = mask.device.type == "cpu" or columns > 1
    if mask.dtype != torch.bool and looked_at and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "attention_mask must be 1 for tokens and 0 for padding, and nothing else: neither "
            "additive nor numbered by text"
        )
    return real & mask.bool()


def check_positions(position_ids: Tensor, real_BL: Tensor) -> None:
    """Positions follow from the tokens; they may be given, but not begin anew within a row.

    ValueError for several texts in one row, which memory would join, and for another shape.
    """
    columns = real_BL.shape[1]
    if columns < 2:
        return
    if position_ids.dim() != 2 or position_ids.shape[0] not in (1, real_BL.shape[0]):
        raise ValueError(f"position_ids must be [texts, columns], not {list(position_ids.shape)}")
    if position_ids.shape[1] < columns:
        raise ValueError(f"position_ids are of {position_ids.shape[1]} columns, not of {columns}")
    places = position_ids[:, -columns:].expand(real_BL.shape)
    falls = (places.diff(dim=1) <= 0) & real_BL[:, 1:] & real_BL[:, :-1]
    if falls.any():
        raise ValueError(
            "position_ids begin anew within a row, as where several texts are packed into one: "
            "give each text a row of its own"
        )


def compacted(input_ids_BL: Tensor, real_BL: Tensor) -> tuple[Tensor, list[int], Tensor]:
    """The tokens of each lane without what stands between them.

    Returns:
        Tokens [B, t], zero behind the end of a lane; their number in each lane; and for each column
        of the input the place of its token, or of the last before it, [B, L].
    """
    counts = real_BL.sum(1).tolist()
    order = (~real_BL).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)]
    tokens = input_ids_BL.gather(1, order)
    column = torch.arange(tokens.shape[1], device=tokens.device)
    tokens = tokens.masked_fill(column >= real_BL.sum(1, keepdim=True), 0)
    return tokens, counts, (real_BL.cumsum(1) - 1).clamp(min=0)


def spread(hidden_BtD: Tensor, column_BL: Tensor) -> Tensor:
    """What belongs to tokens, [B, t, D], by column, [B, L, D]."""
    if not hidden_BtD.shape[1]:
        return hidden_BtD.new_zeros(*column_BL.shape, hidden_BtD.shape[2])
    return hidden_BtD.gather(1, column_BL[:, :, None].expand(-1, -1, hidden_BtD.shape[2]))


def mean_loss(
    logits_BLV: Tensor,
    labels_BL: Tensor,
    real_BL: Tensor,
    auxiliary: Tensor,
    items: Tensor | int | None,
) -> Tensor:
    """Mean negative log-likelihood, in nats, of the labels one column further on, and auxiliary.

    Args:
        logits_BLV: predictions.
        labels_BL: tokens, or -100; those that nothing predicts do not count.
        real_BL: bool, the columns that hold tokens.
        auxiliary: loss that is added to the mean.
        items: labels of the whole batch but those of the first column, of which this is a part that
            counts by its share; none: this is all of it.

    Raises:
        ValueError: labels of another shape, or outside the vocabulary.
    """
    if labels_BL.shape != real_BL.shape:
        raise ValueError(
            f"labels must have the shape {list(real_BL.shape)} of input_ids, not "
            f"{list(labels_BL.shape)}"
        )
    given = labels_BL[:, 1:]
    # In a row that is padded on the left the first token is not in the first column, and collators
    # that know nothing of this make it a label.
    first_BL = real_BL & (real_BL.cumsum(1) == 1)
    labels = labels_BL.masked_fill(~real_BL | first_BL, IGNORED)[:, 1:].flatten()
    logits = logits_BLV[:, :-1].flatten(0, 1)
    check_ids("labels other than -100", labels[labels != IGNORED], logits.shape[-1])
    if logits.dtype != torch.float64:
        logits = logits.float()
    nats = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    own = (labels != IGNORED).sum()
    mean = nats / own.clamp(min=1) + auxiliary * (own > 0)
    # Whoever counted the items counted all that was given.
    if items is None:
        return mean
    return mean * (given != IGNORED).sum() / torch.as_tensor(items).clamp(min=1)
