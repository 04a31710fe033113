"""Program: an LSTM on a probe, for the table of regret that eval.bayes prints of a run.

`torch.nn.LSTM` with a tied head: its state is all that it carries, so nothing stands for memory but
what a recurrent network of that size learns to keep. Truncated back-propagation through `segment`
symbols, the state going on from one to the next until an episode ends.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.common import command
from data.common.outputs import check_output, write_result
from data.common.schema import Count, Positive, Size
from data.common.values import require_ranges
from eval.regret import read_probe, regret, table
from lm.runs.run_config import read_config

State = tuple[Tensor, Tensor] | None
WARMUP = 50
"""Steps."""


@dataclass(frozen=True)
class LSTMConfig:
    """The network, and how it learns: Adam, a cosine to zero, gradients clipped at norm 1."""

    width: Size = 80
    """Of embedding and state."""
    layers: Size = 2
    segment: Size = 32
    """Symbols that gradients go back through; an episode is a multiple of them."""
    lanes: Size = 32
    """Episodes read side by side."""
    steps: Size = 1000
    """Segments learnt from."""
    lr: Positive = 0.003
    seed: Count = 0
    """Of weights and of the order of episodes."""

    def __post_init__(self) -> None:
        require_ranges(self)


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


def main(probe: Path, lstm: LSTMConfig, beside: Path, json: Path | None = None) -> None:
    """Train an LSTM on a probe, and show its regret against the place in the episode.

    Args:
        probe: folder that data.probes made.
        lstm: network and training.
        beside: folder of a run: the exact predictors of the table see what that model can.
        json: file for the results, as eval.bayes writes them.
    """
    check_output(json, probe, beside)
    model = read_config(beside / "config.yaml").model
    source, train_EN = read_probe(probe / "train.jsonl")
    _, test_EN = read_probe(probe / "test.jsonl")
    if train_EN.shape[1] % lstm.segment:
        raise ValueError(
            f"an episode of {train_EN.shape[1]} symbols is no multiple of --segment {lstm.segment}"
        )
    if len(train_EN) < lstm.lanes:
        raise ValueError(
            f"{len(train_EN)} episodes do not fill {lstm.lanes} lanes; give a smaller --lanes"
        )
    torch.manual_seed(lstm.seed)
    network = LSTM(source.symbols, lstm)
    learn(network, torch.from_numpy(train_EN), source.symbols, lstm)
    inputs_EN, _ = next(segments(torch.from_numpy(test_EN), source.symbols, test_EN.shape[1]))
    with torch.no_grad():
        log_p_ENK = network(inputs_EN, None)[0].double().log_softmax(dim=-1).numpy()
    found = regret(source, test_EN, log_p_ENK.reshape(-1, source.symbols), model)
    parameters = sum(p.numel() for p in network.parameters())
    write_result(json, {"parameters": parameters, "bayes": found})
    print(f"{parameters:,} parameters")
    print(table(found))


if __name__ == "__main__":
    command.run(main, section="lstm")
