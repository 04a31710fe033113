"""A model as transformers sees it, in float64."""

import pytest

from lm.hub.configuration import CompressiveTransformerConfig
from lm.hub.modeling import CompressiveTransformerForCausalLM
from lm.model.model_config import ModelConfig
from tests.lm.model.cases import TINY, VOCABULARY, build


def hub_model(config: ModelConfig = TINY) -> CompressiveTransformerForCausalLM:
    """The model of tests.lm.model.cases.build, wrapped."""
    model = CompressiveTransformerForCausalLM(CompressiveTransformerConfig.of(config, VOCABULARY))
    model = model.double()
    model.model.load_state_dict(build(config).state_dict())
    return model.eval()


@pytest.fixture
def model() -> CompressiveTransformerForCausalLM:
    return hub_model()
