"""Which functions a training step, an attention call, a token and a score's record enter.

tools/house.py starts this in a process of its own, in the folder of the checkout that is counted,
which may be an old one: so it imports nothing of the project, and drives the programs as a user
does, with small models and made-up text. It prints JSON: for each of the four, and for two of them
with what stands around them, the functions as FILE:QUALIFIED.NAME.
"""

import contextlib
import io
import json
import random
import runpy
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType

LIBRARY = ("data", "lm", "eval")
TRAINING = "--training.minutes null --training.steps 6 --training.lanes 4 --model.layers 2"
WARM, STOP = 2, 5
"""What repeats is watched from the start of its second time to that of its fifth."""
SHOWN = "continued.<locals>.show"
"""What the program that writes texts does with each token."""

Functions = set[CodeType]


class Repeated:
    """Everything that any thread enters from one call of a function to a later one."""

    def __init__(self, name: str, beside: str = "") -> None:
        """beside: a function below which nothing counts."""
        self.name, self.beside, self.times = name, beside, 0
        self.frames: list[FrameType] = []
        self.functions: Functions = set()

    @property
    def open(self) -> bool:
        """Whether what is entered now counts."""
        return WARM <= self.times < STOP

    def call(self, frame: FrameType) -> None:
        """A function of the project is entered."""
        self.times += frame.f_code.co_qualname == self.name
        if frame.f_code.co_qualname == self.beside:
            self.frames.append(frame)
        if self.open and not self.frames:
            self.functions.add(frame.f_code)

    def leave(self, frame: FrameType) -> None:
        """A function is left."""
        if self.frames and self.frames[-1] is frame:
            self.frames.pop()


class Inside:
    """Everything that is entered during a function of one file."""

    def __init__(self, name: str, file: str) -> None:
        self.name, self.file = name, file
        self.frames: list[FrameType] = []
        self.functions: Functions = set()

    def opens(self, frame: FrameType) -> bool:
        """Whether this is the function."""
        code = frame.f_code
        return code.co_qualname == self.name and code.co_filename.endswith(self.file)

    def call(self, frame: FrameType) -> None:
        """A function of the project is entered."""
        if self.opens(frame):
            self.frames.append(frame)
        if self.frames:
            self.functions.add(frame.f_code)

    def leave(self, frame: FrameType) -> None:
        """A function is left."""
        if self.frames and self.frames[-1] is frame:
            self.frames.pop()


class Within(Inside):
    """Everything that a thread enters during a function of one file, in a warm step."""

    def __init__(self, step: Repeated, name: str, file: str) -> None:
        super().__init__(name, file)
        self.step, self.main = step, threading.get_ident()

    def opens(self, frame: FrameType) -> bool:
        """Whether this is the function."""
        return self.step.open and super().opens(frame)

    def call(self, frame: FrameType) -> None:
        """A function of the project is entered."""
        if threading.get_ident() == self.main:
            super().call(frame)


class Attention(Within):
    """Everything that is entered during the calls of attention modules in a warm step, and during
    the backward of the autograd functions whose forward ran there.
    """

    def __init__(self, step: Repeated) -> None:
        super().__init__(step, "", "")

    def opens(self, frame: FrameType) -> bool:
        """Whether an attention module is called, or gives its gradients."""
        owner, _, name = frame.f_code.co_qualname.rpartition(".")
        if not self.step.open:
            return False
        if name == "backward":
            forward = f"{owner}.forward"
            return any(code.co_qualname == forward for code in self.functions)
        if name not in ("forward", "project"):
            return False
        return type(frame.f_locals.get("self")).__name__.endswith("Attention")


class Watch:
    """A profile function that passes on what is entered of the project, but not at its import."""

    def __init__(self, root: Path, *windows: Repeated | Inside) -> None:
        self.folders = tuple(f"{root / name}/" for name in LIBRARY)
        self.windows = windows

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """See sys.setprofile."""
        name = frame.f_code.co_filename
        if event in ("call", "return") and name.startswith(self.folders):
            for window in self.windows:
                (window.call if event == "call" else window.leave)(frame)


def run(watch: Watch | None, module: str, options: str) -> None:
    """Run a program in this process."""
    sys.argv = [module, *options.split()]
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"python -m {module} {options} ended with {end.code}") from None
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def traced(root: Path, folder: Path) -> dict[str, Functions]:
    """The functions of each.

    Args:
        root: the checkout; also the working folder.
        folder: where text, shards and the run go.
    """
    letters = random.Random(0)
    (folder / "text").mkdir()
    for number in range(20):
        text = "".join(letters.choices("abcdefgh \n", k=5000))
        (folder / "text" / f"{number}.txt").write_text(text)
    data = f"corpus text --source {folder}/text"
    run(None, "data.prepare", f"--{data} --shards {folder}/shards")
    loop, shown = Repeated("Loop.step"), Repeated("Sampler.__call__")
    step, attention = Within(loop, "Trainer.train_step", "trainer.py"), Attention(loop)
    token = Repeated("Sampler.__call__", SHOWN)
    record = Inside("record", "eval/protocol.py")
    bytes_ = "--data.vocabulary bytes --data.vocabulary-size null --data.vocabulary-sample null"
    shards = f"--data.corpus text --data.shards {folder}/shards {bytes_}"
    preset = f"--config configs/quickstart.yaml --run {folder}/run"
    run(Watch(root, loop, step, attention), "lm.train", f"{preset} {shards} {TRAINING}")
    run(Watch(root, token, shown), "lm.generate", f"--run {folder}/run --prompt abc --tokens 6")
    score = f"--run {folder}/run --lanes 2 --compare false"
    run(None, "eval.score", score)
    run(Watch(root, record), "eval.score", score)
    return {
        "one training step": step.functions,
        "... with the loop, its log and the threads that read ahead": loop.functions,
        "one attention call on a CPU, forward and backward": attention.functions,
        "one generated token": token.functions,
        "... with the program that shows it": shown.functions,
        "how a score gets its protocol": record.functions,
    }


def named(root: Path, functions: Functions) -> list[str]:
    """FILE:QUALIFIED.NAME of each; expressions and bodies of modules and classes are none."""
    optimised = 1  # inspect.CO_OPTIMIZED, which bodies of modules and classes lack
    return sorted(
        {
            f"{Path(code.co_filename).relative_to(root).as_posix()}:{code.co_qualname}"
            for code in functions
            if code.co_flags & optimised and not code.co_name.startswith("<")
        }
    )


def main() -> None:
    """Print what is entered in the checkout that is the working folder."""
    root = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        functions = traced(root, Path(folder))
    print(json.dumps({name: named(root, each) for name, each in functions.items()}))


if __name__ == "__main__":
    main()
