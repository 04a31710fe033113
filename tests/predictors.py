"""Models of bytes as predictors."""

from data.tokenizers.fixed import ByteVocabulary
from lm.inference.predictor import ModelPredictor
from lm.model.transformer import CompressiveTransformer

BYTES = ByteVocabulary()


def predictor(model: CompressiveTransformer, keep_keys: bool = True) -> ModelPredictor:
    return ModelPredictor(model, BYTES, keep_keys)
