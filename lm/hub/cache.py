"""Memory between two calls of a model of transformers."""

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from lm.model.incremental import Reader
from lm.model.memory import MemoryState

CACHE = "cache" if hasattr(CausalLMOutputWithPast, "cache") else "past_key_values"
"""What the installed transformers calls memory between calls; 5.24 renamed it."""
BASE = 0x5851F42D4C957F2D
"""Of the polynomial, modulo 2^64, that the columns of a lane are hashed by."""


class CompressiveCache(Cache):
    """What a model has read: memory, compressed memory and the open segment of every lane.

    Its size does not grow with the text.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.reader: Reader | None = None
        self.columns = 0
        """Columns of input seen, padding included."""
        self.hash_B: Tensor | None = None
        """int64, of the ids of these columns: to know a text again that is given whole."""

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

    def saw(self, input_ids_BL: Tensor) -> None:
        """Count columns as seen."""
        columns = input_ids_BL.shape[1]
        self.columns += columns
        # BASE^L down to BASE^0; whole numbers wrap around.
        factors = torch.full((columns + 1,), BASE, device=input_ids_BL.device)
        factors[0] = 1
        factors = factors.cumprod(0).flip(0)
        new_B = ((input_ids_BL + 1) * factors[1:]).sum(1)
        self.hash_B = new_B if self.hash_B is None else self.hash_B * factors[0] + new_B

    def begins(self, input_ids_BL: Tensor) -> list[bool]:
        """Of each lane, whether this text begins with all columns that were seen of it."""
        other = CompressiveCache()
        other.saw(input_ids_BL[:, : self.columns])
        if other.columns < self.columns or self.hash_B is None or other.hash_B is None:
            return [False] * len(input_ids_BL)
        found: list[bool] = (other.hash_B == self.hash_B).tolist()
        return found

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these lanes, in this order."""
        lanes: list[int] = indices.tolist()
        if self.reader is not None and lanes != list(range(self.reader.lanes)):
            self._become(self.reader.select(lanes), lanes)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The same, as beam search calls it."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each lane several times, side by side; they share what was read."""
        if self.reader is not None:
            rows = [lane for lane in range(self.reader.lanes) for _ in range(repeats)]
            self._become(self.reader.repeat(repeats), rows)

    def _become(self, reader: Reader, rows: list[int]) -> None:
        self.reader = reader
        if self.hash_B is not None:
            self.hash_B = self.hash_B[rows]

    def __deepcopy__(self, _: object) -> "CompressiveCache":
        """What was read once, to go on from several times; the model is not copied along."""
        other = CompressiveCache()
        other.columns = self.columns
        if self.reader is not None:
            lanes = list(range(self.reader.lanes))
            other._become(self.reader.select(lanes), lanes)
            other.hash_B = None if self.hash_B is None else self.hash_B.clone()
        return other

    def reset(self) -> None:
        """Forget everything."""
        self.reader, self.columns, self.hash_B = None, 0, None

    def crop(self, _: int) -> None:
        """Refuse to forget the newest tokens only."""
        raise ValueError("memory cannot forget its newest tokens; begin with a new cache")
