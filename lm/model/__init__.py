"""Pure functions of (tokens, memory): nothing here knows about files, ranks or optimisers."""

from lm.model.config import ModelConfig
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer, SegmentOutput

__all__ = ["CompressiveTransformer", "MemoryState", "ModelConfig", "SegmentOutput"]
