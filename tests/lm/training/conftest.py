"""Engines in this process."""

import pytest

from lm.training import dist, engine


@pytest.fixture(scope="module")
def world() -> dist.World:
    """The only rank."""
    return dist.join()


@pytest.fixture
def partition_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the tiny model's parameters all stay whole at stage 3."""
    monkeypatch.setattr(engine, "PERSISTENT", 0)
