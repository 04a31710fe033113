"""The model of transformers without its head: hidden states of texts, those of every layer too.

Shapes: B lanes, L columns of input, T tokens of a segment, D width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from lm.hub.cache import CACHE, CompressiveCache
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer, SegmentStates

KNOWN = {
    *("num_items_in_batch", "position_ids", "token_type_ids", "return_dict"),
    "output_hidden_states",
}
"""What else forward takes."""


class TextRead(NamedTuple):
    """What reading made of a batch of texts."""

    hidden_BLD: Tensor
    """Final hidden states; of one column where the last alone was wanted."""
    layers: tuple[Tensor, ...] | None
    """Hidden states [B, L, D] that enter the first layer and leave each, the last of them normed;
    if they were wanted."""
    real_BL: Tensor
    """bool: which columns hold tokens."""
    auxiliary: Tensor
    cache: CompressiveCache | None


def read_layers(
    model: CompressiveTransformer, tokens_BT: Tensor, memory: MemoryState, losses: bool
) -> SegmentStates:
    """`model.read_segment`, with hidden states [B, T, (layers + 1) D]: what enters the first layer,
    what each layer but the last makes of it, and the final hidden states.
    """
    seen: list[Tensor] = []

    def enters(_: Any, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    hooks = [block.register_forward_pre_hook(enters) for block in model.layers]
    try:
        states = model.read_segment(tokens_BT, memory, losses)
    finally:
        for hook in hooks:
            hook.remove()
    return states._replace(hidden_BTD=torch.cat([*seen, states.hidden_BTD], dim=-1))


class Backbone(nn.Module):
    """The model without its head. It is a view: the weights stay the model's alone."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        # In a tuple, or it would count as a part of this.
        self.whole = (whole,)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: CompressiveCache | None = None,
        cache: CompressiveCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Read tokens; returns a BaseModelOutputWithPast, whose last_hidden_state is [B, L, D].

        See CompressiveTransformerForCausalLM.forward, but for labels and logits_to_keep. The losses
        that train compression are not in it.
        """
        check_options(kwargs)
        cache = past_key_values if cache is None else cache
        (whole,) = self.whole
        read = whole.read_texts(input_ids, attention_mask, cache, use_cache, False, kwargs)
        output = BaseModelOutputWithPast(
            last_hidden_state=read.hidden_BLD,
            hidden_states=read.layers,
            **{CACHE: read.cache},
        )
        return output.to_tuple() if kwargs.get("return_dict") is False else output


def check_options(kwargs: dict[str, Any]) -> None:
    """ValueError for what is asked of forward and cannot be done."""
    if kwargs.get("inputs_embeds") is not None:
        raise ValueError("text comes in as input_ids; inputs_embeds are not read")
    if kwargs.get("output_attentions"):
        raise ValueError("weights of attention are not kept; leave out output_attentions")
    for name, value in kwargs.items():
        if name not in KNOWN and value is not None and value is not False:
            raise ValueError(f"forward knows no {name}; leave it out")
