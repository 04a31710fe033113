"""Each way to learn from a text while it is scored: chosen on one split, scored on another."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from data.shards import Split
from eval.adapting import DynamicLookup, DynamicScorer, as_read
from eval.eval_config import AdaptConfig, AdaptMethod
from eval.keeping import Keeper, Passes, score_of, values_of
from eval.lookups import Cost, Curve, Longer, Search, dynamic_config, settings_of, timed
from eval.protocol import Reading, convert, protocol, record
from eval.results import Result, lengths, spoken
from eval.scored import identity
from lm.inference.adapted import AdaptedPredictor
from lm.inference.inference_config import Lengths, LookupConfig
from lm.inference.ivf import Datastore
from lm.inference.loading import load_run
from lm.inference.model_hash import model_hash
from lm.scoring import Score, Scorer

OPTIONS = {field.name for field in fields(LookupConfig)}
"""What is given to other programs after --adapt."""
Way = tuple[dict[str, Any], Cost, list[Curve]]
"""Settings, their cost on the split that is reported, and what was tried on validation."""


def passes_of(reading: Reading, config: AdaptConfig, keep: Path | None) -> Passes:
    """Passes over the splits that are read like one, kept in a folder if one is given; errors as of
    Passes and Datastore.
    """
    if keep is None:
        return Passes()
    loaded, what = reading.loaded, dict[str, Any](limit=config.limit)
    if config.datastore is not None:
        what["datastore"] = Datastore(config.datastore, model_hash(loaded.model)).hash
    return Passes(keep, protocol(reading) | identity(loaded) | what)


def fixed(reading: Reading, config: AdaptConfig, passes: Passes) -> tuple[Score, Cost]:
    """What a split costs the model as it is."""

    def read(keeper: Keeper | None) -> dict[str, Any]:
        scorer = Scorer(reading.loaded.predictor, reading.split, config)
        cost = timed(scorer, config.limit, "fixed weights", keeper)
        return {"score": values_of(scorer.result()), "cost": asdict(cost)}

    found = passes.once({"split": reading.split.name, "way": "fixed"}, read)
    return score_of(found["score"]), Cost(**found["cost"])


def compared(
    reading: Reading, search: Search, as_it_is: Cost, scale: tuple[str, float]
) -> dict[str, Any]:
    """All ways in plain values.

    Args:
        reading: of the split that is reported.
        search: of the settings, on the validation split.
        as_it_is: what the split that is reported costs the model as it is.
        scale: unit and denominator of it.
    """
    unit, denominator = scale
    plain, config = search.plain, search.config
    _, size = as_read(record(replace(reading, split=search.split), plain), plain, config.limit)

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

    ways = [row("fixed", ({}, as_it_is, []))]
    ways += [row(name, way) for name, way in scored(reading, search)]
    fixed_validation = convert(plain.nats, unit, size)
    return {"unit": unit, "validation": fixed_validation, "ways": ways}


def scored(reading: Reading, search: Search) -> Iterator[tuple[AdaptMethod, Way]]:
    """Each way of the config, in its order."""
    for method in search.config.methods:
        if method == "memory":
            yield method, longer(reading, search)
        elif method in ("dynamic", "dynamic-head"):
            yield method, learning(reading, search, method)
        elif method in ("dynamic+cache", "dynamic+mbpa"):
            yield method, both(reading, search, method)
        else:
            lookup, curves = search.choose(method)
            settings = settings_of(lookup)
            cost = reported(reading, search, method, settings, partial(looking, lookup))
            yield method, (settings, cost, curves)


def reported(
    reading: Reading,
    search: Search,
    method: str,
    settings: dict[str, Any],
    scorer: Callable[[Reading, AdaptConfig], Scorer[Any]],
) -> Cost:
    """What a way costs on the split that is reported, read with a scorer that is made for it."""
    config = search.config

    def read(keeper: Keeper | None) -> dict[str, Any]:
        return asdict(timed(scorer(reading, config), config.limit, method, keeper))

    of = {"split": reading.split.name, "way": method, **settings}
    return Cost(**search.passes.once(of, read))


def looking(lookup: LookupConfig, reading: Reading, config: AdaptConfig) -> Scorer[Any]:
    """A scorer that looks up what was read."""
    return Scorer(AdaptedPredictor(reading.loaded.predictor, lookup), reading.split, config)


def learning(reading: Reading, search: Search, method: AdaptMethod) -> Way:
    """Weights that learn, at the best of some rates."""
    config, model, nats = search.config, reading.loaded.model, []

    def scorer(split: Split, lr: float) -> DynamicScorer:
        return DynamicScorer(model, split, dynamic_config(config, method, lr))

    for lr in config.lrs:
        name = f"{method} lr {lr:g}"
        nats.append(search.tried(method, name, partial(scorer, search.split, lr), lr=lr))
    curve = Curve("lr", config.lrs, tuple(nats))
    if method == "dynamic":
        search.lr = curve.best
    settings = {"lr": curve.best}
    cost = reported(
        reading, search, method, settings, lambda reading, _: scorer(reading.split, curve.best)
    )
    return settings, cost, [curve]


def both(reading: Reading, search: Search, method: AdaptMethod) -> Way:
    """Weights that learn while what was read is looked up, each with the settings that were found
    best of it alone; they are looked for first where that was not done.
    """
    lookup_method: AdaptMethod = "cache" if method == "dynamic+cache" else "mbpa"
    lookup = search.found.get(lookup_method) or search.choose(lookup_method)[0]
    if search.lr is None:
        learning(reading, search, "dynamic")
    assert search.lr is not None
    how = dynamic_config(search.config, "dynamic", search.lr)

    def scorer(reading: Reading, _: AdaptConfig) -> DynamicLookup:
        return DynamicLookup(reading.loaded.model, reading.split, how, lookup)

    settings = {"lr": search.lr, **settings_of(lookup)}
    return settings, reported(reading, search, method, settings, scorer), []


def longer(reading: Reading, search: Search) -> Way:
    """As many slots of uncompressed memory as a store has entries."""
    loaded, config = reading.loaded, search.config
    given = {field.name: getattr(config, field.name) for field in fields(Lengths)}

    def scorer(split: Split, slots: int) -> Longer:
        lengths = Lengths(**given | {"memory": slots})
        run = load_run(loaded.folder, loaded.checkpoint.name, lengths, config)
        return Longer(run.predictor, split, config)

    nats = []
    for slots in config.capacity:
        name = f"memory {slots}"
        nats.append(search.tried("memory", name, partial(scorer, search.split, slots), slots=slots))
    curve = Curve("capacity", config.capacity, tuple(nats))
    settings = {"memory": curve.best}
    cost = reported(
        reading, search, "memory", settings, lambda reading, _: scorer(reading.split, curve.best)
    )
    return settings, cost, [curve]


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
