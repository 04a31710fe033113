"""A causal model of transformers that reads windows of a text anew.

Shapes: B lanes, t new tokens, C tokens that are kept, N tokens of a window, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.tokenizers.registry import Tokenizer
from lm.hub.causal import CausalPredictor, cache_of, size_of


class WindowState:
    """The last tokens of each lane, at the right, and how many of them it has read."""

    def __init__(self, tokens_BC: Tensor, count_B: Tensor) -> None:
        self.tokens_BC, self.count_B = tokens_BC, count_B

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return len(self.count_B)

    def reset(self, reset_B: Tensor) -> "WindowState":
        """The same with nothing read in some lanes; see State."""
        return WindowState(self.tokens_BC, self.count_B.masked_fill(reset_B, 0))

    def select(self, lanes: Sequence[int]) -> "WindowState":
        """Some lanes; see State."""
        index = torch.tensor(list(lanes), device=self.count_B.device)
        return WindowState(self.tokens_BC[index], self.count_B[index])

    def tensors(self) -> dict[str, Tensor]:
        """Tokens and counts; see State."""
        return {"tokens": self.tokens_BC, "count": self.count_B}


class WindowPredictor(CausalPredictor[WindowState]):
    """A causal model that reads windows of N tokens anew, each S tokens further than the last.

    Of a window the last S tokens are predicted, each from at least N - S before it (where the text
    has as many); with S = N these are disjoint windows. Positions count from each window's
    beginning. What tokens are at the right of a lane that reads fewer cannot reach back.
    """

    def __init__(self, model: Any, vocabulary: Tokenizer, window: int, stride: int) -> None:
        """As CausalPredictor, with N and S.

        Raises:
            ValueError: the stride is longer than the window, or the model has no such positions.
        """
        if stride > window:
            raise ValueError(f"stride must be at most the window of {window:,}, not {stride:,}")
        most = positions(model)
        if most is not None and window > most:
            raise ValueError(
                f"the model has positions for {most:,} tokens: give a --window of at most as many"
            )
        super().__init__(model, vocabulary)
        self.window, self.segment, self.warmup = window, stride, window - stride

    def begin(self, lanes: int) -> WindowState:
        """No tokens."""
        kept = torch.zeros(lanes, self.window - 1, dtype=torch.int64, device=self.device)
        return WindowState(kept, torch.zeros(lanes, dtype=torch.int64, device=self.device))

    @torch.no_grad()
    def read(
        self, tokens_Bt: Tensor, state: WindowState, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, WindowState]:
        """Final hidden states [B, t, D], of at most S tokens a window; see Predictor."""
        hidden = []
        read_B = torch.tensor(
            [tokens_Bt.shape[1]] * state.lanes if counts is None else list(counts),
            device=self.device,
        )
        for part_Bt in tokens_Bt.split(self.segment, dim=1):
            here, state = self._window(part_Bt, state, read_B.clamp(0, part_Bt.shape[1]))
            hidden.append(here)
            read_B = read_B - part_Bt.shape[1]
        return torch.cat(hidden, dim=1), state

    def _window(
        self, tokens_Bt: Tensor, state: WindowState, read_B: Tensor
    ) -> tuple[Tensor, WindowState]:
        """One window of each lane; of its tokens so many are kept as the lane reads."""
        kept, new = state.tokens_BC.shape[1], tokens_Bt.shape[1]
        before_B = state.count_B.clamp(max=self.window - new)
        all_BX = torch.cat([state.tokens_BC, tokens_Bt], dim=1)
        width = int(before_B.max()) + new
        place_BN = (kept - before_B)[:, None] + torch.arange(width, device=self.device)
        # Lanes that have read less are filled up at the right, where nothing looks.
        ids_BN = all_BX.gather(1, place_BN.clamp(max=kept + new - 1))
        hidden_BND, _ = self.forward(ids_BN, use_cache=False)
        place_Bt = before_B[:, None] + torch.arange(new, device=self.device)
        index = place_Bt[..., None].expand(-1, -1, hidden_BND.shape[-1])
        last_BC = read_B[:, None] + torch.arange(kept, device=self.device)
        count_B = (state.count_B + read_B).clamp(max=kept)
        return hidden_BND.gather(1, index), WindowState(all_BX.gather(1, last_BC), count_B)

    def restore(self, tensors: Mapping[str, Tensor]) -> WindowState:
        """The inverse of `WindowState.tensors`."""
        return WindowState(tensors["tokens"].to(self.device), tensors["count"].to(self.device))

    @torch.no_grad()
    def state_bytes(self) -> int:
        """Bytes of keys and values (or whatever it keeps) of one full window of one text."""
        ids = torch.full((1, self.window), self.vocabulary.start, device=self.device)
        _, output = self.forward(ids, use_cache=True)
        return size_of(cache_of(output))


def positions(model: Any) -> int | None:
    """Tokens that a model has positions for; None where it says nothing of them."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None
