"""Program: an LSTM on a probe, for the table of regret that eval.bayes prints of a run.

`torch.nn.LSTM` with a tied head: its state is all that it carries, so nothing stands for memory but
what a recurrent network of that size learns to keep. Truncated back-propagation through `segment`
symbols, the state going on from one to the next until an episode ends.
"""

from pathlib import Path

from data.common import command
from data.common.outputs import check_output, write_result
from data.common.requirements import require_memory
from tools.lstm_config import LSTMConfig


def main(probe: Path, lstm: LSTMConfig, beside: Path, json: Path | None = None) -> None:
    """Train an LSTM on a probe, and show its regret against the place in the episode.

    Args:
        probe: folder that data.probes made.
        lstm: network and training.
        beside: folder of a run: the exact predictors of the table see what that model can.
        json: file for the results, as eval.bayes writes them.
    """
    import numpy as np
    import torch

    from eval.regret import read_probe, regret, table
    from lm.runs.run_config import read_config
    from tools.lstm import LSTM, learn, segments

    check_output(json, probe, beside)
    require_memory(
        lstm.bytes, f"{lstm.layers:,} layers of width {lstm.width:,} (--layers, --width)"
    )
    if not (beside / "config.yaml").is_file():
        raise ValueError(f"{beside} holds no run; give the folder of one as --beside")
    model = read_config(beside / "config.yaml").model
    source, train_EN = read_probe(probe / "train.jsonl")
    same, test_EN = read_probe(probe / "test.jsonl")
    if same != source:
        raise ValueError(f"{probe} has splits of two sources; make it anew with data.probes")
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
    if not np.isfinite(log_p_ENK).all():
        raise ValueError(f"training went astray at --lr {lstm.lr:g}; give a lower one")
    found = regret(source, test_EN, log_p_ENK.reshape(-1, source.symbols), model)
    parameters = sum(p.numel() for p in network.parameters())
    write_result(json, {"parameters": parameters, "bayes": found})
    print(f"{parameters:,} parameters")
    print(table(found))


if __name__ == "__main__":
    command.run(main, section="lstm")
