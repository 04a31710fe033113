"""Trains, scores and writes when told, in the checkout that is its working folder.

tools/benchmarks/against.py starts one for each of two checkouts. Either may be old, so this imports
nothing of the project by its place: what it needs is found by its name, and where an interface has
changed both forms are known. It reads lines `PART TIMES` from its input and answers each with the
seconds that it took.
"""

import inspect
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Action = Callable[[int], None]
NEVER = 10**9


def module_of(name: str) -> Any:
    """The module of this checkout that defines a class or function at its top level.

    Raises:
        LookupError: there is none.
    """
    wanted = re.compile(rf"^(class|def) {name}\b", re.MULTILINE)
    for folder in ("data", "lm", "eval"):
        for path in sorted(Path(folder).rglob("*.py")):
            if wanted.search(path.read_text()):
                return import_module(".".join(path.with_suffix("").parts))
    raise LookupError(f"{Path.cwd()} defines no {name}")


def found(name: str) -> Any:
    """What this checkout calls so."""
    return getattr(module_of(name), name)


def training(config: Any, shards: Any, run: Path) -> Action:
    """The loop of a run, step by step."""
    trainer = found("Trainer")(config, shards, module_of("World").join())
    loop = found("Loop")(trainer, run)

    def act(times: int) -> None:
        for _ in range(times):
            loop.step()
            loop.tend_checkpoints()

    return act


def scoring(model: Any, shards: Any, lanes: int) -> Action:
    """Segments of the training split, which are scored; from the start again at its end."""
    scorers, split = found("Scorer"), shards.split("train")
    config = found("ScoringConfig")(lanes=lanes, warmup=0)
    scorer = None

    def act(times: int) -> None:
        nonlocal scorer
        for _ in range(times):
            if scorer is None or scorer.step == len(scorer):
                scorer = scorers(reader(model, shards, scorers.__init__), split, config)
            scorer.advance()

    return act


def generation(model: Any, shards: Any) -> Action:
    """Tokens of one text that goes on and on."""
    sessions, written = found("Session"), found("Writing")
    sampling = found("SamplingConfig")()
    session = sessions.begin(reader(model, shards, sessions.begin), 1)

    def act(times: int) -> None:
        session.write(written(sampling, times, [0]))

    return act


def reader(model: Any, shards: Any, taker: Callable[..., Any]) -> Any:
    """A model in the form that a function takes."""
    names = inspect.signature(taker).parameters
    if "predictor" in names:
        return found("ModelPredictor")(model, shards.vocabulary)
    if "loaded" in names:
        return SimpleNamespace(model=model, vocabulary=shards.vocabulary)
    return model


def actions(preset: Path, shards_at: Path, run: Path) -> dict[str, Action]:
    """All three, over the shape of a preset."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    config = found("load_config")(found("RunConfig"), preset)
    often = {"validate_every": NEVER, "save_every": NEVER}
    trained = replace(config.training, steps=NEVER, minutes=None, **often)
    shards = found("open_shards")(shards_at)
    data = found("DataConfig")("text", shards_at)
    torch.manual_seed(0)
    model = found("CompressiveTransformer")(config.model, shards.vocabulary.size).eval()
    return {
        "training": training(replace(config, data=data, training=trained), shards, run),
        "scoring": scoring(model, shards, config.training.lanes),
        "generation": generation(model, shards),
    }


def main(preset: str, shards: str) -> None:
    """Answer on the standard output, which nothing else may write to, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Of one thread the time of its core counts, so that other programs disturb less.
    clock = time.process_time if os.environ["OMP_NUM_THREADS"] == "1" else time.perf_counter
    with tempfile.TemporaryDirectory() as run:
        known = actions(Path(preset), Path(shards), Path(run))
        for line in sys.stdin:
            part, times = line.split()
            start = clock()
            known[part](int(times))
            print(json.dumps(clock() - start), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
