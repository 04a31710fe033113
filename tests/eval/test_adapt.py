"""Ways to learn from a text while it is scored: chosen on one split, reported on another."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.common.integrity import read_sealed
from data.tokenizers.registry import ByteTokenizer
from eval import adapt
from eval.adapting import DynamicLookup, DynamicScorer
from eval.eval_config import AdaptConfig, DynamicConfig
from eval.keeping import Keeper, read_on
from eval.lookups import Search
from lm.inference.adapted import AdaptedPredictor
from lm.inference.inference_config import LookupConfig, ScoringConfig
from lm.inference.loading import load_run
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import Scorer, score
from tests.predictors import predictor
from tests.texts import TEXT, split_of

MODEL = ModelConfig(
    layers=1, width=16, heads=2, feedforward=32, segment=8, memory=8, compressed=6, rate=2
)
SPLIT = split_of(ByteTokenizer(), [TEXT[:100], TEXT[100:303]])
SMALL = AdaptConfig(
    lanes=2,
    capacity=(20, 60),
    neighbours=(2, 5),
    sharpness=(4.0,),
    temperature=(0.5,),
    share=(0.1, 0.3),
    softness=(0.1,),
    rate=(1.0, 4.0),
    lrs=(1e-3,),
    limit=9,
)


def test_a_recorded_text_costs_what_it_costs_when_read() -> None:
    torch.manual_seed(0)
    model = predictor(CompressiveTransformer(MODEL, 256).double())
    config = replace(SMALL, limit=None, warmup=80)
    search = Search(model, SPLIT, config)
    plain = ScoringConfig(lanes=2, warmup=80)
    assert search.plain == score(model, SPLIT, plain)
    for method in ("cache", "knn", "mbpa", "mbpa+cache"):
        lookup, curves = search.choose(method)
        read = score(AdaptedPredictor(model, lookup), SPLIT, plain)
        known = search.nats(lookup, "again")
        assert known == pytest.approx(read.nats, rel=1e-12)
        # The best that was tried; settings of the parts stay where both were chosen alone.
        assert known == min(min(curve.nats) for curve in curves)
        names = [curve.setting for curve in curves]
        if method == "mbpa+cache":
            assert names == ["rate", "share"]
            assert lookup.sharpness == search.found["cache"].sharpness
            assert lookup.neighbours == search.found["mbpa"].neighbours
        else:
            assert names[0] == "capacity" and {*names} - {"capacity"} <= {*lookup.takes}


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_learns_alone(tied: bool) -> None:
    torch.manual_seed(0)
    model = CompressiveTransformer(replace(MODEL, tied=tied), 256)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    scorer = DynamicScorer(model, SPLIT, DynamicConfig(lrs=(0.05,), learn="head"))
    for _ in scorer:
        pass
    for name, each in scorer.model.state_dict().items():
        assert torch.equal(each, before[name]) == (not name.startswith("head.")), name
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name])
    plain = score(predictor(model), SPLIT, ScoringConfig(lanes=1)).nats
    assert scorer.result().nats < plain


@pytest.mark.parametrize("method", ["cache", "mbpa"])
def test_weights_that_learn_look_up_too(method: str) -> None:
    """Without movement it is the lookup alone, and no cost depends on what follows."""
    torch.manual_seed(0)
    model = CompressiveTransformer(MODEL, 256).double()
    lookup = LookupConfig(method, capacity=20)

    def costs(lr: float, split=SPLIT) -> np.ndarray:
        scorer = DynamicLookup(model, split, DynamicConfig(lrs=(lr,)), lookup)
        scorer.token_nats = np.full(len(split.tokens), np.nan)
        for _ in scorer:
            pass
        return scorer.token_nats

    still = score(AdaptedPredictor(predictor(model), lookup), SPLIT, ScoringConfig(lanes=1)).nats
    assert costs(0.0).sum() == pytest.approx(still, rel=1e-9)
    moving = costs(1e-3)
    assert moving.sum() < still
    other = split_of(ByteTokenizer(), [TEXT[:100], TEXT[100:201] + b"\xff" * 102])
    np.testing.assert_array_equal(costs(1e-3, other)[:201], moving[:201])


def test_the_program_compares_them(trained_run: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "adapt.json"
    adapt.main(trained_run, SMALL, json=file)
    result = read_sealed(file, "again")
    ways = {way["method"]: way for way in result["adapt"]["ways"]}
    assert [*ways] == ["fixed", *SMALL.methods]
    assert ways["fixed"]["value"] == pytest.approx(result["value"], rel=1e-12)
    assert result["protocol"]["limit"] == 9
    assert result["protocol"]["warmup"] == 8 + 2 * 4 + 60
    shown = capsys.readouterr().out
    loaded = load_run(trained_run)
    for name, way in ways.items():
        assert f"{way['value']:.4f}" in shown and way["tokens_per_second"] > 0
        if name.startswith("dynamic+"):
            assert way["settings"]["lr"] == 1e-3
            alone = {**way["settings"]}
            del alone["lr"]
            assert alone == ways[name.partition("+")[2]]["settings"]
            assert way["bytes"] == ways["dynamic"]["bytes"] + ways[alone["method"]]["bytes"]
        elif "method" in way["settings"]:
            lookup = LookupConfig(**way["settings"])
            assert lookup == lookup.settled()
            (line,) = [each for each in shown.splitlines() if each.startswith(f"  {name}: ")]
            assert all(f"--adapt.{n} {value}" in line for n, value in way["settings"].items())
            # Keys, their norms and the last state in float32; tokens and counts in 8 bytes.
            slots, width = lookup.capacity + 8, loaded.model.config.width
            assert way["bytes"] == slots * (4 * width + 4 + 8) + 8 + 4 * width + 1
        elif name == "memory":
            assert way["settings"]["memory"] in SMALL.capacity
        assert name in ("fixed", "memory") or way["value"] < ways["fixed"]["value"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ()}, "methods must be some of cache, knn"),
        ({"lrs": ()}, "dynamic needs some learning rates"),
        ({"precision": "bfloat16"}, "dynamic needs precision float32"),
        ({"capacity": ()}, "capacity must be some numbers"),
        ({"memory": 8}, "method memory tries lengths of its own"),
        ({"neighbours": (0,)}, "at least 1"),
    ],
)
def test_mistakes(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


def test_settings_that_a_partner_brings_do_not_forbid_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several steps that decay are taken over, and a single one, of which nothing decays, tried."""
    torch.manual_seed(0)
    config = replace(SMALL, methods=("mbpa", "mbpa+cache"), steps=(1, 3), decay=(0.1, 0.2))
    search = Search(predictor(CompressiveTransformer(MODEL, 256)), SPLIT, config)
    tried: list[LookupConfig] = []

    def nats(_: Search, lookup: LookupConfig, name: str) -> float:
        tried.append(lookup)
        return 100.0 - (lookup.steps or 0) - (lookup.decay or 0)

    monkeypatch.setattr(Search, "nats", nats)
    alone, _ = search.choose("mbpa")
    assert (alone.steps, alone.decay) == (3, 0.2)
    tried.clear()
    joined, _ = search.choose("mbpa+cache")
    assert {each.steps for each in tried} == {1, 3}
    assert all(not each.decay for each in tried if each.steps == 1)
    assert (joined.steps, joined.decay) == (3, 0.2)


def test_nothing_is_chosen_on_what_is_reported(trained_run: Path) -> None:
    with pytest.raises(ValueError, match="chosen on the validation split"):
        adapt.main(trained_run, SMALL, split="validation")


class Killed(BaseException):
    """Ends a program as a kill does: nothing is done on the way out."""


def scorers() -> dict[str, Callable[[], Scorer]]:
    """One of each kind that has a state of its own."""
    torch.manual_seed(0)
    model = CompressiveTransformer(MODEL, 256)
    lookup = LookupConfig("cache", capacity=20)
    how = DynamicConfig(lanes=2, lrs=(1e-2,))
    return {
        "looks up": lambda: Scorer(AdaptedPredictor(predictor(model), lookup), SPLIT, how),
        "adam": lambda: DynamicScorer(model, SPLIT, replace(how, every=3)),
        "sgd": lambda: DynamicScorer(model, SPLIT, replace(how, optimizer="sgd")),
        "head": lambda: DynamicScorer(model, SPLIT, replace(how, learn="head")),
        "learns and looks up": lambda: DynamicLookup(model, SPLIT, how, lookup),
    }


@pytest.mark.parametrize("kind", scorers())
def test_a_pass_goes_on_to_the_bit(kind: str, tmp_path: Path) -> None:
    """Where it was left in between, one that is interrupted in the middle of a segment where it was
    kept last.
    """
    make = scorers()[kind]
    whole = make()
    read_on(whole, None, progress=False)
    first, keeper = make(), Keeper(tmp_path, {"kind": kind})
    read_on(first, keeper, limit=7, progress=False)
    assert not keeper.file.exists()
    keeper.save(first)
    advance = first.predictor.read if kind == "looks up" else first.model.read_segment

    def interrupted(*given: Any, **options: Any) -> Any:
        advance(*given, **options)
        raise KeyboardInterrupt

    owner, name = (first.predictor, "read") if kind == "looks up" else (first.model, "read_segment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            read_on(first, keeper, progress=False)
    assert not first.whole
    second = make()
    keeper.restore(second)
    assert second.step == 7
    read_on(second, keeper, progress=False)
    assert second.result().nats == whole.result().nats
    np.testing.assert_array_equal(second.document_nats, whole.document_nats)
    for name, tensor in whole.kept().items():
        assert torch.equal(second.kept()[name], tensor), name


def test_a_comparison_goes_on_where_it_was_killed(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Again and again, by signals and by kills: the table is that of one run to the end, and no
    pass is read twice but that in which it was killed.
    """
    methods = ("cache", "memory", "dynamic", "dynamic+cache")
    config = replace(SMALL, methods=methods, capacity=(20,), share=(0.1,), limit=4)
    advance, steps = Scorer.advance, [0]

    def counted(self: Scorer) -> Any:
        steps[0] += 1
        if steps[0] == stop:
            raise how
        return advance(self)

    monkeypatch.setattr(Scorer, "advance", counted)
    stop, kept, out = 0, tmp_path / "kept", tmp_path / "adapt.json"
    adapt.main(trained_run, config, json=tmp_path / "whole.json")
    in_all, starts, read = steps[0], 0, 0
    # While validation text is read, what was read is looked up, weights learn, and both.
    ends, done = [(6, Killed()), (14, KeyboardInterrupt()), (18, KeyboardInterrupt())], False
    ends += [(5, Killed()), (0, None)]
    while not done:
        (stop, how), steps[0], starts = ends[starts], 0, starts + 1
        with suppress(Killed, KeyboardInterrupt):
            adapt.main(trained_run, config, json=out, keep=kept)
            done = True
        assert out.exists() == done
        read += steps[0] - (not done)
    assert starts == len(ends)
    whole, on = (read_sealed(tmp_path / name, "again") for name in ("whole.json", "adapt.json"))
    for record in (whole, on):
        for way in record["adapt"]["ways"]:
            assert way.pop("tokens_per_second") > 0 < way.pop("tokens_per_cpu_second")
    assert on == whole
    # Each start may read validation text anew and the pass in which the one before was killed.
    assert read <= in_all + 2 * 4 * starts
    assert [path.name for path in kept.iterdir()] == ["passes.json"]
    # All is known: a start more reads nothing.
    steps[0] = 0
    adapt.main(trained_run, config, json=out, keep=kept)
    assert steps[0] == 0
    with pytest.raises(
        ValueError, match=r"passes\.json belongs to another comparison.*; remove it"
    ):
        adapt.main(trained_run, replace(config, limit=3), json=out, keep=kept)
    (kept / "passes.json").write_text("cut off")
    with pytest.raises(ValueError, match=r"is not valid JSON.*; remove it"):
        adapt.main(trained_run, config, json=out, keep=kept)
