"""A reading that forgets, and texts written with more or less of what memory tells."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lm import generate
from lm.inference.beside import Beside, Forgetful, local_of
from lm.inference.inference_config import GenerateConfig, Local, SamplingConfig, ScoringConfig
from lm.inference.predictor import ModelPredictor
from lm.inference.session import Session, Writing
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import score
from tests.predictors import BYTES
from tests.texts import TEXT, split_of

MODEL = ModelConfig(
    layers=2, width=16, heads=2, feedforward=32, segment=8, memory=8, compressed=6, rate=2
)
SHAPES = {
    "plain": MODEL,
    "memory longer": replace(MODEL, memory=12),
    "attended": replace(MODEL, empty="attended"),
    "leaky": replace(MODEL, leaky_inputs=True),
    "sinks": replace(MODEL, sinks=2, positions="rotary"),
    "most used": replace(MODEL, compression="most_used", reconstruction="none"),
}
SPLIT = split_of(BYTES, [TEXT[:203], TEXT[100:300]])


def build(config: ModelConfig = MODEL) -> CompressiveTransformer:
    torch.manual_seed(0)
    return CompressiveTransformer(config, 256).double().eval()


def beside(weight: float, local: Local = "memory") -> Beside:
    model = build()
    return Beside(ModelPredictor(model, BYTES), Forgetful(model, BYTES, local), weight)


@pytest.mark.parametrize("local", ["segment", "memory"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_few_tokens_at_a_time_are_whole_segments(name: str, local: Local) -> None:
    """Past several segments, from any place, and where lanes stand at different places."""
    forgetful = Forgetful(build(SHAPES[name]), BYTES, local)
    tokens = torch.randint(256, (2, 48), generator=torch.Generator().manual_seed(1))
    whole, _ = forgetful.read(tokens, forgetful.begin(2))
    state, parts = forgetful.begin(2), []
    for part in tokens.split([3, 21, 1, 12, 11], dim=1):
        hidden, state = forgetful.read(part, state)
        parts.append(hidden)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-10)
    first, state = forgetful.read(tokens[:, :10], forgetful.begin(2), [10, 4])
    then, state = forgetful.read(tokens[:, 4:14], state, [0, 10])
    torch.testing.assert_close(then[1], whole[1, 4:14], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(first[0], whole[0, :10], rtol=1e-9, atol=1e-10)


def test_forgetting_compressed_memory_leaves_a_transformer_xl() -> None:
    model = build(replace(MODEL, memory=12))
    none = CompressiveTransformer(replace(model.config, compressed=0), 256).double().eval()
    none.load_state_dict(model.state_dict(), strict=False)
    config = ScoringConfig(lanes=2, warmup=20)
    forgetful = score(Forgetful(model, BYTES, "memory"), SPLIT, config)
    plain = score(ModelPredictor(none, BYTES), SPLIT, config)
    assert forgetful.nats == pytest.approx(plain.nats, rel=1e-9)


def test_the_segment_alone_begins_anew_every_time() -> None:
    model = build()
    forgetful, tokens = Forgetful(model, BYTES, "segment"), torch.arange(40)[None]
    hidden, _ = forgetful.read(tokens, forgetful.begin(1))
    for part, found in zip(tokens.split(8, dim=1), hidden.split(8, dim=1), strict=True):
        alone = model.read_segment(part, model.empty_memory(1)).hidden_BTD
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-11)


def test_weights_move_from_the_local_reading_through_the_full_one() -> None:
    tokens = torch.arange(24)[None]
    pair = beside(1.0)
    hidden, _ = pair.read(tokens, pair.begin(1))
    full, local = pair.both(hidden)
    plain = pair.full.read(tokens, pair.full.begin(1))[0]
    assert torch.equal(pair.logits(hidden), pair.full.logits(plain))
    assert not torch.allclose(full, local)
    for weight in (0.0, 0.5, 3.0):
        pair.weight = weight
        expected = weight * full + (1 - weight) * local
        torch.testing.assert_close(pair.logits(hidden), expected, rtol=1e-10, atol=1e-11)
    pair.weight = 0.0
    torch.testing.assert_close(pair.logits(hidden), local)


def test_texts_written_with_a_weight_of_one_are_the_plain_ones() -> None:
    how = Writing(SamplingConfig(), tokens=30, seeds=[0, 1])
    prompt = np.frombuffer(TEXT[:37], np.uint8)

    def written(weight: float | None) -> list[bytes]:
        pair = beside(1.0 if weight is None else weight)
        session = Session.begin(pair.full if weight is None else pair, 1)
        session.read([prompt])
        return session.repeat(2).write(how)

    assert written(1.0) == written(None)
    assert written(4.0) != written(None)


def test_a_pair_s_state_is_kept_and_reset() -> None:
    pair = beside(2.0)
    tokens = torch.arange(32).view(2, 16)
    _, state = pair.read(tokens, pair.begin(2))
    again = pair.restore(state.tensors())
    one, _ = pair.read(tokens, state.select([1, 0]))
    two, _ = pair.read(tokens, again.select([1, 0]))
    assert torch.equal(one, two) and again.lanes == 2
    fresh, _ = pair.read(tokens, state.reset(torch.tensor([True, True])))
    torch.testing.assert_close(fresh, pair.read(tokens, pair.begin(2))[0])


def test_what_the_local_reading_sees_is_settled() -> None:
    xl = replace(MODEL, compressed=0)
    assert local_of(MODEL, None) == "memory" and local_of(xl, None) == "segment"
    assert local_of(MODEL, None, "segment") == "segment"
    assert local_of(MODEL, "memory", "segment") == "memory"
    with pytest.raises(ValueError, match="no compressed memory to forget"):
        local_of(xl, "memory")
    with pytest.raises(ValueError, match="no memory to forget"):
        local_of(replace(xl, memory=0), None)


def test_memory_may_count_for_more(
    trained_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A weight of 1 is the model itself; what the second reading sees may be named."""

    def text_of(save_memory: Path | None = None, **options: Any) -> str:
        generate.main(trained_run, GenerateConfig(**options), save_memory=save_memory)
        return capsys.readouterr().out

    options: dict[str, Any] = {"prompt": "the long book of memory and time", "tokens": 60}
    plain = text_of(**options)
    assert text_of(memory_weight=1.0, **options) == plain
    more = text_of(memory_weight=9.0, **options)
    alone = text_of(memory_weight=9.0, local="segment", **options)
    assert len({plain, more, alone}) == 3
    with pytest.raises(ValueError, match="local has no effect without --memory-weight"):
        GenerateConfig(prompt="a", local="segment")
    with pytest.raises(ValueError, match="reads a text in two ways"):
        text_of(memory_weight=2.0, save_memory=tmp_path / "m", **options)
    with pytest.raises(ValueError, match="no compressed memory to forget"):
        text_of(memory_weight=2.0, local="memory", compressed=0, **options)
