"""Each way to learn from a text while it is scored: chosen on one split, scored on another."""

from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

from eval.adapting import DynamicLookup, DynamicScorer, as_read
from eval.eval_config import AdaptConfig, AdaptMethod
from eval.lookups import Cost, Curve, Search, dynamic_config, settings_of, timed
from eval.protocol import Reading, convert, record
from eval.results import Result, lengths, spoken
from lm.inference.adapted import AdaptedPredictor
from lm.inference.inference_config import Lengths, LookupConfig
from lm.inference.loading import load_run
from lm.inference.predictor import ModelPredictor
from lm.scoring import Scorer

OPTIONS = {field.name for field in fields(LookupConfig)}
"""What is given to other programs after --adapt."""
Way = tuple[dict[str, Any], Cost, list[Curve]]
"""Settings, their cost on the split that is reported, and what was tried on validation."""


def compared(
    reading: Reading, config: AdaptConfig, fixed: Cost, scale: tuple[str, float]
) -> dict[str, Any]:
    """All ways in plain values.

    Args:
        reading: of the split that is reported.
        config: the ways and their settings.
        fixed: what the split costs the model as it is.
        scale: unit and denominator of the split.
    """
    unit, denominator = scale
    chosen_on = replace(reading, split=reading.shards.split("validation"))
    search = Search(reading.loaded.predictor, chosen_on.split, config)
    plain = search.plain.result()
    _, size = as_read(record(chosen_on, plain), plain, config.limit)

    def row(name: str, way: Way) -> dict[str, Any]:
        settings, cost, curves = way
        told = [
            {
                "setting": curve.setting,
                "values": list(curve.values),
                "costs": [convert(nats, unit, size) for nats in curve.nats],
            }
            for curve in curves
        ]
        value = convert(cost.nats, unit, denominator)
        return {"method": name, "value": value, "settings": settings, "curves": told} | asdict(cost)

    ways = [row("fixed", ({}, fixed, []))]
    ways += [row(name, way) for name, way in scored(reading, search, config)]
    fixed_validation = convert(plain.nats, unit, size)
    return {"unit": unit, "validation": fixed_validation, "ways": ways}


def scored(
    reading: Reading, search: Search, config: AdaptConfig
) -> Iterator[tuple[AdaptMethod, Way]]:
    """Each way of the config, in its order."""
    for method in config.methods:
        if method == "memory":
            yield method, longer(reading, search, config)
        elif method in ("dynamic", "dynamic-head"):
            yield method, learning(reading, search, config, method)
        elif method in ("dynamic+cache", "dynamic+mbpa"):
            yield method, both(reading, search, config, method)
        else:
            lookup, curves = search.choose(method)
            predictor = AdaptedPredictor(reading.loaded.predictor, lookup)
            scorer = Scorer(predictor, reading.split, config)
            yield method, (settings_of(lookup), timed(scorer, config.limit, method), curves)


def learning(reading: Reading, search: Search, config: AdaptConfig, method: AdaptMethod) -> Way:
    """Weights that learn, at the best of some rates."""
    model, nats = reading.loaded.model, []
    for lr in config.lrs:
        moving = DynamicScorer(model, search.split, dynamic_config(config, method, lr))
        nats.append(timed(moving, config.limit, f"{method} lr {lr:g}").nats)
    curve = Curve("lr", config.lrs, tuple(nats))
    if method == "dynamic":
        search.lr = curve.best
    best = DynamicScorer(model, reading.split, dynamic_config(config, method, curve.best))
    return {"lr": curve.best}, timed(best, config.limit, method), [curve]


def both(reading: Reading, search: Search, config: AdaptConfig, method: AdaptMethod) -> Way:
    """Weights that learn while what was read is looked up, each with the settings that were found
    best of it alone; they are looked for first where that was not done.
    """
    lookup_method: AdaptMethod = "cache" if method == "dynamic+cache" else "mbpa"
    lookup = search.found.get(lookup_method) or search.choose(lookup_method)[0]
    if search.lr is None:
        learning(reading, search, config, "dynamic")
    assert search.lr is not None
    how = dynamic_config(config, "dynamic", search.lr)
    scorer = DynamicLookup(reading.loaded.model, reading.split, how, lookup)
    settings = {"lr": search.lr, **settings_of(lookup)}
    return settings, timed(scorer, config.limit, method), []


def longer(reading: Reading, search: Search, config: AdaptConfig) -> Way:
    """As many slots of uncompressed memory as a store has entries."""
    loaded = reading.loaded
    given = {field.name: getattr(config, field.name) for field in fields(Lengths)}

    def predictor(slots: int) -> ModelPredictor:
        lengths = Lengths(**given | {"memory": slots})
        return load_run(loaded.folder, loaded.checkpoint.name, lengths, config).predictor

    nats = []
    for slots in config.capacity:
        scorer = Scorer(predictor(slots), search.split, config)
        nats.append(timed(scorer, config.limit, f"memory {slots}").nats)
    curve = Curve("capacity", config.capacity, tuple(nats))
    best = Scorer(predictor(curve.best), reading.split, config)
    cost = timed(best, config.limit, "memory")
    kept = sum(each.numel() * each.element_size() for each in best.state.tensors().values())
    return {"memory": curve.best}, replace(cost, bytes=kept // config.lanes), [curve]


def table(result: Result) -> str:
    """All ways in lines, what was tried, and how the text was read."""
    found = result["adapt"]
    ways, unit = found["ways"], spoken(found["unit"])
    lines = [
        f"{unit}, chosen on validation (fixed weights there: {found['validation']:.4f}), "
        f"reported on {result['protocol']['split']}",
        f"  {'':<14}{'':>10}{'beside fixed':>14}{'tokens/s':>10}{'kept':>14}",
    ]
    for way in ways:
        beside = way["value"] / ways[0]["value"] - 1
        lines.append(
            f"  {way['method']:<14}{way['value']:10.4f}{beside:14.2%}"
            f"{way['tokens_per_second']:10.0f}{way['bytes']:14,}"
        )
    lines.append("settings, and what was tried on validation:")
    for way in ways[1:]:
        settings = " ".join(
            f"--adapt.{name} {value}" if name in OPTIONS else f"{name} {value}"
            for name, value in way["settings"].items()
        )
        lines.append(f"  {way['method']}: {settings}")
        for curve in way["curves"]:
            points = zip(curve["values"], curve["costs"], strict=True)
            told = ", ".join(f"{value}: {cost:.4f}" for value, cost in points)
            lines.append(f"    {curve['setting']:<12}{told}")
    lines.append(f"  {lengths(result)}")
    return "\n".join(lines)
