"""An LSTM that predicts the symbols of a probe, and how it learns.

Shapes: B episodes side by side, T symbols of a segment, E episodes of N symbols, K symbols of the
alphabet.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tools.lstm_config import LSTMConfig

State = tuple[Tensor, Tensor] | None
WARMUP = 50
"""Steps."""


class LSTM(nn.Module):
    """Embedding, LSTM, and the embedding again as head. [B, T] symbols -> [B, T, K] logits."""

    def __init__(self, symbols: int, config: LSTMConfig) -> None:
        super().__init__()
        # The last row stands for the beginning of an episode.
        self.embedding = nn.Embedding(symbols + 1, config.width)
        self.cells = nn.LSTM(config.width, config.width, config.layers, batch_first=True)
        self.bias_K = nn.Parameter(torch.zeros(symbols))

    def forward(self, inputs_BT: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits of the symbols that follow, and the state that they leave."""
        hidden_BTD, state = self.cells(self.embedding(inputs_BT), state)
        return hidden_BTD @ self.embedding.weight[:-1].T + self.bias_K, state


def segments(episodes_EN: Tensor, symbols: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets [E, T] of one segment after the other."""
    start_E1 = torch.full_like(episodes_EN[:, :1], symbols)
    inputs_EN = torch.cat([start_E1, episodes_EN[:, :-1]], dim=1)
    yield from zip(inputs_EN.split(length, 1), episodes_EN.split(length, 1), strict=True)


def training(episodes_EN: Tensor, config: LSTMConfig) -> Iterator[Tensor]:
    """Episodes [B, N] to be read side by side, all of them in a new order each time, for ever."""
    draws = torch.Generator().manual_seed(config.seed)
    while True:
        order_E = torch.randperm(len(episodes_EN), generator=draws)
        # What is left of an epoch does not fill the lanes.
        for rows_B in order_E.split(config.lanes):
            if len(rows_B) == config.lanes:
                yield episodes_EN[rows_B]


def learn(network: LSTM, episodes_EN: Tensor, symbols: int, config: LSTMConfig) -> None:
    """Train in place."""
    optimizer = torch.optim.Adam(network.parameters(), config.lr, betas=(0.9, 0.95))
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, total_iters=WARMUP)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, config.steps - WARMUP))
    rates = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], [WARMUP])
    batches, step = training(episodes_EN, config), 0
    while step < config.steps:
        state: State = None
        for inputs_BT, targets_BT in segments(next(batches), symbols, config.segment):
            if step == config.steps:
                break
            logits_BTK, state = network(inputs_BT, state and (state[0].detach(), state[1].detach()))
            loss = nn.functional.cross_entropy(logits_BTK.flatten(0, 1), targets_BT.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            rates.step()
            step += 1
