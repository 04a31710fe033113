"""Settings and fixtures that all tests share."""

import lzma
import os
import shutil
import socket
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported, and for the processes that tests start: no test reaches for a network,
# and one thread is both fastest for tiny tensors and the same on every machine.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

torch.set_num_threads(1)

pytest_plugins = ["tests.runs"]
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--bad-inputs` counts the tests marked bad_input, by program."""
    parser.addoption("--bad-inputs", action="store_true", help="count bad inputs, by program")


def bad_inputs(items: list[pytest.Item]) -> Counter[str]:
    """How many tests give a bad input to each program, which the marker or a parameter names."""
    count: Counter[str] = Counter()
    for item in items:
        marker = item.get_closest_marker("bad_input")
        if marker is not None:
            given = item.callspec.params if hasattr(item, "callspec") else {}
            count[marker.args[0] if marker.args else given["program"]] += 1
    return count


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """The count that was asked for."""
    if not config.getoption("--bad-inputs"):
        return []
    count = bad_inputs(items)
    lines = [f"{number:6} {program}" for program, number in sorted(count.items())]
    return ["bad inputs, by program:", *lines, f"{count.total():6} in all"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session")
def real_text() -> Path:
    """Folder of real benchmark text; named by the environment variable LM_TEST_DATA."""
    folder = os.environ.get("LM_TEST_DATA")
    if not folder:
        pytest.skip("LM_TEST_DATA names no folder of real text")
    return Path(folder)


@pytest.fixture(scope="session")
def unpacked(real_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Function from the name of an .xz or .tar.xz of the real text to its unpacked file or folder.

    Each is unpacked once a session; tests must not write into it.
    """
    place = tmp_path_factory.mktemp("real_text")

    def unpack(name: str) -> Path:
        archive = real_text / name
        target = place / name.removesuffix(".xz").removesuffix(".tar")
        if target.exists():
            return target
        if name.endswith(".tar.xz"):
            with tarfile.open(archive) as tar:
                tar.extractall(target, filter="data")
        else:
            with lzma.open(archive) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return target

    return unpack


@pytest.fixture
def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port
