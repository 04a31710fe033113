"""Settings and fixtures that all tests share."""

import lzma
import os
import shutil
import socket
import tarfile
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
