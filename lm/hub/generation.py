"""generate() of transformers with memory in the place of a cache of keys."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from lm.hub.cache import CACHE, CompressiveCache
from lm.hub.padding import real_columns


class MemoryGeneration(GenerationMixin):
    """What a model of transformers does otherwise in generate() because it has memory."""

    # Of the model that this is a part of.
    config: Any
    model: Any
    training: Any
    train: Any
    eval: Any

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

    def _expand_inputs_for_generation(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        if expand_size > 1 and isinstance(kwargs.get(CACHE), CompressiveCache):
            kwargs[CACHE].batch_repeat_interleave(expand_size)
        above: Any = super()
        return above._expand_inputs_for_generation(expand_size, *args, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As everywhere in transformers, where no new column (0) means all of them.

        The tokenizer that generate was given for stop strings comes along, and is not for forward.
        """
        kwargs.pop("tokenizer", None)
        if next_sequence_length == 0:
            input_ids, next_sequence_length = input_ids[:, input_ids.shape[1] :], None
        above: Any = super()
        return above.prepare_inputs_for_generation(input_ids, next_sequence_length, *args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As everywhere in transformers, but always in evaluation mode.

        With a cache, the input may be the whole text again or only what is new.

        Raises:
            ValueError: a text without tokens, or a cache of other texts.
        """
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("text comes in as input_ids; inputs_embeds are not read")
        inputs = [*args, kwargs.get("inputs"), kwargs.get("input_ids")]
        ids = next((each for each in inputs if isinstance(each, Tensor)), None)
        if ids is not None:
            kwargs["attention_mask"] = self._generation_mask(ids, kwargs)
        training = self.training
        self.eval()
        try:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.train(training)

    def _generation_mask(self, ids: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
        """The mask of all columns where only new ones are given after a cache; else as given."""
        mask: Tensor | None = kwargs.get("attention_mask")
        cache, pad = kwargs.get(CACHE), self.config.vocab_size
        if cache is None:
            real = real_columns(ids, mask, 0, pad)
            if empty := (~real.any(dim=1)).nonzero().flatten().tolist():
                raise ValueError(
                    f"row {empty[0]} of input_ids has no token to go on from; begin a text with "
                    "the id generation_config.bos_token_id at least"
                )
            return mask
        self.check_cache(cache, len(ids))
        if not cache.columns or (mask is not None and mask.shape[1] != ids.shape[1]):
            return mask
        known = cache.begins(ids)
        if all(known):
            chunk = kwargs.get("prefill_chunk_size")
            chunk = chunk or getattr(kwargs.get("generation_config"), "prefill_chunk_size", None)
            if chunk and ids.shape[1] == cache.columns:
                # transformers would read all of it once more.
                raise ValueError("the cache has read all input_ids; leave out prefill_chunk_size")
            return mask
        if any(known):
            raise ValueError(
                "the cache has read other texts than some rows of input_ids begin with; give all "
                "rows whole, or of all rows only what is new"
            )
        new = real_columns(ids, mask, 0, pad).long()
        return torch.cat([new.new_ones(len(ids), cache.columns), new], dim=1)

    def check_cache(self, cache: Any, lanes: int) -> None:
        """ValueError for a cache of another kind, another model or another number of texts."""
        if not isinstance(cache, CompressiveCache):
            raise ValueError(  # noqa: TRY004 - what users see is of one kind
                f"a {type(cache).__name__} cannot hold memory; take the cache that a call of this "
                "model returns, or leave it out"
            )
        reader = cache.reader
        if reader is None:
            return
        weight, last = self.model.embedding.weight, reader.last_BD
        if reader.model is not self.model or (weight.dtype, weight.device) != (
            last.dtype,
            last.device,
        ):
            raise ValueError(
                "the cache belongs to another model, or to this one before it was moved or cast; "
                "read the text again with a new cache"
            )
        if last.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                "the cache was made under torch.inference_mode(), outside of which torch does not "
                "let it change; read on under it too, or make the cache under torch.no_grad()"
            )
        if reader.lanes != lanes:
            raise ValueError(
                f"the cache holds {reader.lanes} texts, not the {lanes} of input_ids; take a new "
                "one, or choose its lanes with batch_select_indices"
            )
