"""Ways to learn from a text while it is scored, and their settings, chosen on one split.

The model reads that split once; what it made of each segment is kept, so that every setting of what
is looked up costs the looking up alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from data.common.requirements import require_memory
from data.shards import Split
from eval.adapting import DynamicScorer
from eval.eval_config import AdaptConfig, AdaptMethod, DynamicConfig, ScoreConfig
from eval.keeping import Keeper, Passes, read_on, score_of, values_of
from lm.inference.adapted import AdaptedPredictor, AdaptedState
from lm.inference.inference_config import LOOKUP_DEFAULTS, LookupConfig, ScoringConfig
from lm.inference.predictor import ModelPredictor, Predictor
from lm.scoring import Score, Scorer, require_finite

JOINED = ("rate", "share")
"""What is chosen anew where two methods join that were chosen apart."""


@dataclass(frozen=True)
class Step:
    """How many segments of every lane were read."""

    lanes: int
    number: int = 0

    def reset(self, _reset_B: Tensor) -> "Step":
        """The same: what was read is as it was."""
        return self

    def select(self, lanes: Sequence[int]) -> "Step":
        """Nobody asks a score for some of its lanes."""
        raise ValueError(f"lanes {list(lanes)} of a text that was read together do not go apart")

    def tensors(self) -> dict[str, Tensor]:
        """The number; see State."""
        return {"step": torch.tensor([self.lanes, self.number])}


class Recorded(Predictor[Step]):
    """What a model made of the segments of a score, given once more."""

    def __init__(self, inner: ModelPredictor, hidden: list[Tensor]) -> None:
        self.inner, self.model, self.hidden = inner, inner.model, hidden
        self.vocabulary, self.segment, self.warmup = inner.vocabulary, inner.segment, inner.warmup

    @property
    def device(self) -> torch.device:
        """Where tokens are read."""
        return self.inner.device

    def begin(self, lanes: int) -> Step:
        """Nothing read; see Predictor."""
        return Step(lanes)

    def read(
        self, tokens_Bt: Tensor, state: Step, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, Step]:
        """The hidden states of the next segment; see Predictor."""
        hidden_BTD = self.hidden[state.number]
        assert counts is None
        assert hidden_BTD.shape[:2] == tokens_Bt.shape
        return hidden_BTD, Step(state.lanes, state.number + 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the model's head."""
        return self.inner.logits(hidden)

    def restore(self, tensors: Mapping[str, Tensor]) -> Step:
        """The inverse of Step.tensors."""
        return Step(*tensors["step"].tolist())


class Recording(Scorer[Any]):
    """A plain score that keeps the hidden states of every segment."""

    def __init__(self, predictor: ModelPredictor, split: Split, config: ScoringConfig) -> None:
        super().__init__(predictor, split, config)
        self.model, self.hidden = predictor, list[Tensor]()

    def read(self, segment: Any, state: Any) -> tuple[Tensor, Any]:
        """As a Scorer's."""
        hidden, state = self.model.read(segment.inputs_BT, state)
        self.hidden.append(hidden)
        return self.model.nats(hidden, segment.targets_BT), state


@dataclass(frozen=True)
class Curve:
    """What one setting costs at the values of its list, the others as they were best till then."""

    setting: str
    values: tuple[Any, ...]
    nats: tuple[float, ...]

    @property
    def best(self) -> Any:
        """The value of the least cost, the first of several."""
        return self.values[self.nats.index(min(self.nats))]


class Search:
    """Costs of one split under settings of what is looked up."""

    def __init__(
        self,
        predictor: ModelPredictor,
        split: Split,
        config: AdaptConfig,
        passes: Passes | None = None,
    ) -> None:
        """Nothing is read that `passes` know.

        Raises:
            ValueError: hidden states of the split do not fit into memory, or its costs are not
                finite.
        """
        self.predictor, self.split, self.config = predictor, split, config
        self.passes = passes or Passes()
        self.found: dict[str, LookupConfig] = {}
        self.lr: float | None = None
        """The best learning rate of dynamic evaluation, once it is known."""
        self.plain: Score = score_of(self.passes.once(self.of("fixed"), self._plain))
        """What the split costs the model as it is."""

    def of(self, method: str, **settings: Any) -> dict[str, Any]:
        """What a pass over the split is known by."""
        return {"split": self.split.name, "method": method, **settings}

    @cached_property
    def recording(self) -> Recording:
        """The split as it was read once."""
        read = Recording(self.predictor, self.split, self.config)
        steps = min(len(read), self.config.limit or len(read))
        model = self.predictor.model
        each = self.config.lanes * self.predictor.segment * model.config.width
        what = f"what the model makes of {self.split.name} (give --limit to read less of it)"
        require_memory(steps * each * model.embedding.weight.element_size(), what)
        for _ in read.through(self.config.limit):
            pass
        require_finite(read.document_nats)
        return read

    def _plain(self, _: Keeper | None) -> dict[str, Any]:
        return values_of(self.recording.result())

    def nats(self, lookup: LookupConfig, name: str) -> float:
        """Of the split with what is looked up; `name` is what progress calls it."""

        def read(_keeper: Keeper | None) -> float:
            recorded = Recorded(self.predictor, self.recording.hidden)
            scorer = Scorer(AdaptedPredictor(recorded, lookup), self.split, self.config)
            for _ in scorer.through(self.config.limit, name):
                pass
            return scorer.result().nats

        nats: float = self.passes.once(self.of(**settings_of(lookup)), read)
        return nats

    def tried(
        self, method: str, name: str, scorer: Callable[[], Scorer[Any]], **settings: Any
    ) -> float:
        """Nats of the split under settings of a way of its own, read with a scorer that is made for
        it.
        """

        def read(keeper: Keeper | None) -> float:
            return timed(scorer(), self.config.limit, name, keeper).nats

        nats: float = self.passes.once(self.of(method, **settings), read)
        return nats

    def choose(self, method: AdaptMethod) -> tuple[LookupConfig, list[Curve]]:
        """The best settings of a method, and what each cost on the way.

        Of methods that join, the settings that were found best of each alone stay, where there are
        such, but for JOINED.
        """
        parts = method.split("+")
        lookup = LookupConfig(method=method).settled()  # type: ignore[arg-type]
        if "knn" in parts:
            lookup = replace(lookup, datastore=self.config.datastore)
        for part in parts:
            if part in self.found and len(parts) > 1:
                own = {name: getattr(self.found[part], name) for name in LOOKUP_DEFAULTS[part]}
                lookup = replace(lookup, capacity=self.found[part].capacity, **own)
        known = len(parts) > 1 and self.found.keys() >= {*parts}
        curves = []
        for name in JOINED if known else ("capacity", *lookup.takes):
            values = getattr(self.config, name)
            if not values or name == "datastore" or (name == "decay" and lookup.steps == 1):
                continue
            tried = [with_setting(lookup, name, value) for value in values]
            costs = [
                self.nats(each, f"{method} {name} {value}")
                for each, value in zip(tried, values, strict=True)
            ]
            curves.append(Curve(name, values, tuple(costs)))
            lookup = with_setting(lookup, name, curves[-1].best)
        self.found[method] = lookup
        return lookup, curves


def with_setting(lookup: LookupConfig, name: str, value: Any) -> LookupConfig:
    """The same with another value; of a single step, nothing decays."""
    more = {"decay": LOOKUP_DEFAULTS["mbpa"]["decay"]} if (name, value) == ("steps", 1) else {}
    return replace(lookup, **{name: value, **more})


@dataclass(frozen=True)
class Cost:
    """What a way of reading a split costs, and what it takes."""

    nats: float
    tokens_per_second: float
    """That it reads, those of warm-up too, by the clock."""
    tokens_per_cpu_second: float
    """The same by the time that this process's threads computed."""
    bytes: int
    """Of what it keeps of a lane beside the model as it is; of learning weights: in all."""


def timed(scorer: Scorer[Any], limit: int | None, name: str, keeper: Keeper | None = None) -> Cost:
    """Read a split, from where the keeper left off; speed is of what is read here.

    Raises:
        ValueError: its costs are not finite, or what is kept is damaged.
    """
    if keeper is not None:
        keeper.restore(scorer)
    begun, clock, cpu = scorer.step, time.perf_counter(), time.process_time()
    read_on(scorer, keeper, limit=limit, name=name)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    require_finite(scorer.document_nats, f"{name} carried them away; try other settings")
    size = scorer.config.lanes * scorer.predictor.segment * (scorer.step - begun)
    return Cost(scorer.result().nats, size / clock, size / cpu, _kept(scorer))


class Longer(Scorer[Any]):
    """A plain score with memories of other lengths, which are what it keeps."""


def _kept(scorer: Scorer[Any]) -> int:
    kept = 0
    if isinstance(scorer, Longer):
        tensors = scorer.state.tensors().values()
        kept += sum(x.numel() * x.element_size() for x in tensors) // scorer.config.lanes
    if isinstance(scorer, DynamicScorer):
        # The trained weights and Adam's two moments stand beside those that learn.
        kept += 4 * sum(each.numel() * each.element_size() for each in scorer.parameters)
    if isinstance(scorer.state, AdaptedState):
        tensors = scorer.state.looked_up().values()
        size = sum(each.numel() * each.element_size() for each in tensors)
        kept += size // scorer.state.lanes
    return kept


def dynamic_config(config: AdaptConfig, method: AdaptMethod, lr: float) -> DynamicConfig:
    """How weights learn under a method."""
    reading = {field.name: getattr(config, field.name) for field in fields(ScoreConfig)}
    learn: Literal["all", "head"] = "head" if method == "dynamic-head" else "all"
    return DynamicConfig(**reading, lrs=(lr,), learn=learn)


def settings_of(lookup: LookupConfig) -> dict[str, Any]:
    """What is to be given for it after --adapt., without what does not belong to the method."""
    given = {name: value for name, value in asdict(lookup).items() if value is not None}
    return {n: str(each) if isinstance(each, Path) else each for n, each in given.items()}
