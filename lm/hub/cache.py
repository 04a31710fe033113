"""Memory between two calls of a model of transformers."""

from collections.abc import Sequence

from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from lm.model import MemoryState
from lm.model.incremental import Reader

CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"
"""What the installed transformers calls memory between calls; 5.24 renamed it."""


class CompressiveCache(Cache):
    """What a model has read: memory, compressed memory and the open segment of every lane.

    Its size does not grow with the text.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.reader: Reader | None = None
        self.columns = 0
        """Columns of input seen, padding included."""

    @property
    def memory(self) -> MemoryState | None:
        """Memory of the segments that are complete."""
        return None if self.reader is None else self.reader.memory

    @property
    def batch_size(self) -> int:
        """Lanes, or -1 before the first is read."""
        return -1 if self.reader is None else self.reader.lanes

    @property
    def is_croppable(self) -> bool:
        """What has entered memory cannot be taken out again."""
        return False

    def get_seq_length(self, _: int = 0) -> int:
        """Columns seen so far, not those that are still held."""
        return self.columns

    def get_max_length(self, _: int | None = None) -> int:
        """No text is too long."""
        return -1

    def get_mask_sizes(self, query_length: int, _: int) -> tuple[int, int]:
        """Length and offset of a mask over all columns."""
        return self.columns + query_length, 0

    def select(self, lanes: Sequence[int]) -> None:
        """Go on with these lanes, in this order."""
        if self.reader is not None and list(lanes) != list(range(self.reader.lanes)):
            self.reader = self.reader.select(lanes)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these lanes, for beam search."""
        self.select(beam_idx.tolist())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these lanes."""
        self.select(indices.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each lane several times, side by side; they share what was read."""
        if self.reader is not None:
            self.reader = self.reader.repeat(repeats)

    def reset(self) -> None:
        """Forget everything."""
        self.reader, self.columns = None, 0

    def crop(self, _: int) -> None:
        """Refuse to forget the newest tokens only."""
        raise ValueError("memory cannot forget its newest tokens; begin with a new cache")
