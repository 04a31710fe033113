"""Fixtures for tests of whole programs of lm/."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of each shape, some in several files; tests must not change them."""
    # Imported here because transformers takes seconds.
    import torch

    from tests.lm.pretrained import SHAPES, saved

    place = tmp_path_factory.mktemp("models")
    return {
        name: saved(config, place / name, torch.float32, "20KB" if name == "Qwen3" else "5GB")
        for name, config in SHAPES.items()
    }
