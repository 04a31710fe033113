"""An LSTM on a probe: its regret is counted as a run's is, and falls as it learns."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data import probes
from data.probes import ProbeConfig
from tools import recurrent
from tools.lstm import LSTM, learn, segments, training
from tools.lstm_config import LSTMConfig

SMALL = LSTMConfig(width=8, layers=1, segment=4, lanes=4, steps=20)


def test_a_segment_begins_with_the_symbol_before_it_and_an_episode_with_none() -> None:
    episodes = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    (first, _), (second, targets) = segments(episodes, 2, 2)
    assert first.tolist() == [[2, 0], [2, 1]]
    assert second.tolist() == [[1, 1], [1, 0]]
    assert targets.tolist() == [[1, 0], [0, 0]]


def test_the_state_of_a_segment_is_all_that_the_next_one_needs() -> None:
    torch.manual_seed(0)
    network, episodes = LSTM(3, SMALL).double(), torch.randint(3, (2, 12))
    (whole, _), state, parts = network(next(segments(episodes, 3, 12))[0], None), None, []
    for inputs, _ in segments(episodes, 3, 4):
        logits, state = network(inputs, state)
        parts.append(logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-12)


def test_each_episode_is_read_once_before_one_is_read_again() -> None:
    batches = training(torch.arange(8)[:, None], SMALL)
    first, second = (torch.cat([next(batches), next(batches)]).flatten() for _ in range(2))
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(8))
    assert first.tolist() != second.tolist()


def test_it_learns_what_always_comes() -> None:
    torch.manual_seed(0)
    network, episodes = LSTM(2, SMALL), torch.tensor([[0, 1] * 8] * 4)
    learn(network, episodes, 2, replace(SMALL, steps=300, lr=0.03))
    inputs, targets = next(segments(episodes, 2, 16))
    assert network(inputs, None)[0].argmax(dim=-1).equal(targets)


def test_the_program(trained_run: Path, tmp_path: Path, capsys) -> None:
    probes.main(ProbeConfig(length=40, documents=8, held_out=3), tmp_path / "text")
    recurrent.main(tmp_path / "text", SMALL, trained_run, tmp_path / "out.json")
    shown, result = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert f"{result['parameters']:,} parameters\n" in shown
    assert result["parameters"] == 3 * 8 + 2 + 4 * 8 * (8 + 8 + 2)
    assert np.isfinite(result["bayes"]["total"]["regret"])
    assert "last segment" in shown


@pytest.mark.bad_input("tools.recurrent")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"segment": 7}, "an episode of 40 symbols is no multiple of --segment 7"),
        ({"width": 1_000_000}, r"2 layers of width 1,000,000 \(--layers, --width\) needs at least"),
        ({"segment": 8, "lanes": 8, "steps": 9, "lr": 1e38}, "training went astray at --lr 1e.38"),
        ({"segment": 8, "lanes": 9}, "8 episodes do not fill 9 lanes"),
    ],
)
def test_what_cannot_be_trained_is_said(
    trained_run: Path, tmp_path: Path, changes, said: str
) -> None:
    probes.main(ProbeConfig(length=40, documents=8, held_out=3), tmp_path / "text")
    with pytest.raises(ValueError, match=said):
        recurrent.main(tmp_path / "text", LSTMConfig(**changes), trained_run)


@pytest.mark.bad_input("tools.recurrent")
def test_files_that_do_not_belong_are_told(trained_run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    probes.main(ProbeConfig(length=40, documents=8, held_out=3), text)
    with pytest.raises(ValueError, match="text holds no run; give the folder of one as --beside"):
        recurrent.main(text, SMALL, text)
    probes.main(ProbeConfig(length=40, documents=8, held_out=3, prior=0.5), tmp_path / "other")
    (tmp_path / "other/test.jsonl").replace(text / "test.jsonl")
    with pytest.raises(ValueError, match="text has splits of two sources; make it anew"):
        recurrent.main(text, SMALL, trained_run)
