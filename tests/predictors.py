"""Models of bytes as predictors."""

from data.tokenizers.fixed import ByteTokenizer
from lm.inference.predictor import ModelPredictor
from lm.model.transformer import CompressiveTransformer

BYTES = ByteTokenizer()


def predictor(model: CompressiveTransformer, keep_keys: bool = True) -> ModelPredictor:
    return ModelPredictor(model, BYTES, keep_keys)
