"""The Compressive Transformer as a causal language model of transformers.

Shapes: B lanes, L columns of input, of which attention_mask names those that are tokens, t tokens.
Padding may stand anywhere: it is left out before the model reads, so it never enters memory. The
pad token is the id behind the last of the vocabulary; the model knows no vector for it.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lm.hub.cache import CACHE, CompressiveCache
from lm.hub.configuration import CompressiveTransformerConfig
from lm.model import CompressiveTransformer
from lm.model.incremental import Reader
from lm.objectives.objective import Term, add_terms, total_loss

PART = 4096
"""Tokens of each lane whose hidden states are held at once where only the last ones are wanted."""
IGNORED = -100
"""Label of a column that is not to be predicted, as everywhere in transformers."""


class CompressiveTransformerForCausalLM(PreTrainedModel, GenerationMixin):
    """A Compressive Transformer that predicts the next token.

    In training every call begins with empty memory and reads its input segment by segment; the loss
    is the mean likelihood of the labels plus the mean of each auxiliary loss, such as that which
    trains compression. In evaluation a cache carries memory from call to call.
    """

    config_class = CompressiveTransformerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules = {"CompressiveTransformer"}  # noqa: RUF012

    def __init__(self, config: CompressiveTransformerConfig) -> None:
        super().__init__(config)
        sizes = config.sizes()
        self.model = CompressiveTransformer(sizes, config.vocab_size)
        self.gradient_checkpointing = False
        self._tied_weights_keys = tied_weights(self.model)
        self.post_init()
        self.generation_config.pad_token_id = config.vocab_size

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, CompressiveTransformer):
            module.initialise()

    def get_input_embeddings(self) -> torch.nn.Module:
        """The token embedding."""
        return self.model.embedding

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *_: Any, **__: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            raise ValueError("memory is of one kind; leave out cache_implementation")
        given = model_kwargs.get(CACHE)
        if given is not None:
            given._is_user_defined = True
        elif generation_config.use_cache is not False:
            model_kwargs[CACHE] = CompressiveCache()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers, but always in evaluation mode."""
        training = self.training
        self.eval()
        try:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.train(training)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: CompressiveCache | None = None,
        cache: CompressiveCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Read tokens after what a cache has read.

        Args:
            input_ids: [B, L].
            attention_mask: [B, columns seen + L], 0 for padding; none: every pad token is padding.
            past_key_values: what was read before; it is moved on in place.
            cache: the same, by the name it has since transformers 5.24.
            labels: [B, L], the input_ids again where they are to be predicted, else -100.
            use_cache: return memory; none: in evaluation without gradients.
            logits_to_keep: of so many last columns logits are returned; 0: of all.
            kwargs: num_items_in_batch, by which the loss is divided instead of the labels' number.

        Raises:
            ValueError: a token outside the vocabulary, a cache in training, or what it cannot do.
        """
        if input_ids is None:
            raise ValueError("text comes in as input_ids; inputs_embeds are not read")
        if kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
            raise ValueError("only logits come out; leave out output_hidden_states and _attentions")
        real = self._real(input_ids, attention_mask)
        cache = past_key_values if cache is None else cache
        if use_cache is None:
            use_cache = cache is not None or not torch.is_grad_enabled()
            use_cache = use_cache and not self.training
        auxiliary = input_ids.new_zeros((), dtype=self.dtype)
        if use_cache:
            cache = CompressiveCache() if cache is None else cache
            hidden = self._read(input_ids, real, cache, last=logits_to_keep == 1)
        elif cache is not None:
            raise ValueError("a cache is read in evaluation only; call model.eval()")
        else:
            hidden, auxiliary = self._segments(input_ids, real)
        logits = self.model.head(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        loss = None
        if labels is not None:
            if logits_to_keep:
                raise ValueError("labels need the logits of every column; leave out logits_to_keep")
            loss = mean_loss(logits, labels, auxiliary, kwargs.get("num_items_in_batch"))
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})  # type: ignore[arg-type]

    def _real(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[B, L] bool: which columns hold tokens."""
        places = {*getattr(self, "hf_device_map", {}).values()}
        if len(places) > 1 or "disk" in places:
            raise ValueError(
                "memory wants the whole model on one device; load it with a device_map of one, "
                'such as {"": 0}'
            )
        real = input_ids != self.config.vocab_size
        if attention_mask is not None:
            real = real & attention_mask[:, -input_ids.shape[1] :].bool()
        if input_ids.device.type == "cpu" and len(tokens := input_ids[real]):
            lowest, highest = int(tokens.min()), int(tokens.max())
            if lowest < 0 or highest >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids must be from 0 to {self.config.vocab_size - 1}, not "
                    f"{lowest if lowest < 0 else highest}"
                )
        return real

    def _read(self, input_ids: Tensor, real: Tensor, cache: CompressiveCache, last: bool) -> Tensor:
        """Final hidden states [B, L, D], or of the last column, without gradient; memory moves on.

        For the last column alone a whole book takes no more memory than a part of it.
        """
        if self.training:
            raise ValueError("a cache is read in evaluation only; call model.eval()")
        if cache.reader is None:
            cache.reader = Reader(self.model, self.model.empty_memory(len(input_ids)))
        cache.columns += input_ids.shape[1]
        tokens, counts, column = compacted(input_ids, real)
        if not last:
            return spread(cache.reader.read(tokens, counts), column)
        for first in range(0, tokens.shape[1], PART):
            taken = [min(max(count - first, 0), PART) for count in counts]
            cache.reader.read(tokens[:, first : first + PART], taken)
        return cache.reader.last_BD[:, None]

    def _segments(self, input_ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Final hidden states [B, L, D] of whole texts, and the auxiliary losses' means."""
        model, segment = self.model, self.config.segment
        tokens, _, column = compacted(input_ids, real)
        tokens = F.pad(tokens, (0, -tokens.shape[1] % segment))
        read = partial(model.read_segment, losses=self.training)
        if self.gradient_checkpointing and self.training:
            read = partial(self._gradient_checkpointing_func, read)
        memory, hidden = model.empty_memory(len(tokens)), []
        sums: dict[str, Term] = {}
        for part in tokens.split(segment, dim=1):
            states, memory, losses, _ = read(part, memory)
            hidden.append(states)
            add_terms(sums, {name: Term(*loss) for name, loss in losses.items()})
        auxiliary = total_loss(sums) if sums else hidden[0].new_zeros(())
        return spread(torch.cat(hidden, dim=1), column), auxiliary


def tied_weights(model: CompressiveTransformer) -> dict[str, str]:
    """Names of parameters that are others by a second name, and those others'."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(prefix="model", remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        first.setdefault(id(parameter), name)
    return tied


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
    logits_BLV: Tensor, labels_BL: Tensor, auxiliary: Tensor, items: Tensor | int | None
) -> Tensor:
    """Mean negative log-likelihood, in nats, of the labels one column further on, and auxiliary.

    Args:
        logits_BLV: predictions.
        labels_BL: tokens, or -100.
        auxiliary: loss that is added to it.
        items: labels of the whole batch, of which this is a part that counts by its share; none:
            this is all of it.
    """
    logits, labels = logits_BLV[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten()
    if logits.dtype != torch.float64:
        logits = logits.float()
    nats = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    own = (labels != IGNORED).sum()
    return (nats + own * auxiliary) / (own.clamp(min=1) if items is None else items)
