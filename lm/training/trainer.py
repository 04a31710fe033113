"""The training step: what one rank has, and how one update of the weights is made.

Losses stay sums and counts until one division by what all ranks counted together, so every token
of an update weighs the same however lanes are spread over ranks and micro-batches. Auxiliary losses
are means over the ranks' elements, and where an update has several back-propagations, the mean of
these.
"""

import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.common.requirements import require_memory
from data.lanes import Batch, LaneReader
from data.shards import Shards
from lm.feeding import ReadAhead
from lm.inference.predictor import require_room
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer
from lm.objectives import chosen
from lm.objectives.objective import Term, total_loss, weights_at
from lm.runs import checkpoints
from lm.runs.checkpoints import CheckpointState
from lm.runs.run_config import RunConfig, identity
from lm.sparse.routes import Route
from lm.training.bptt import (
    Unroll,
    checkpoint_activations,
    compile_layers,
    on_device,
    scored_tokens,
)
from lm.training.dist import Pair, Sums, World
from lm.training.engine import (
    build_engine,
    clip_gradients,
    full_optimizer_state,
    full_weights,
    set_full_optimizer_state,
    set_master,
)
from lm.training.gradients import (
    NonFiniteError,
    compression_norms,
    first_bad,
    random_state,
    set_random_state,
)
from lm.training.optim import Masters, build_optimizer, lr_scale, set_lr
from lm.training.resume import (
    Snapshot,
    check_probe,
    optimizer_tensors,
    probe,
    rank_tensors,
    restore_rank,
)
from lm.training.sparsity import EngineStore, Sparsity
from lm.training.stopping import Length

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

MOST_AHEAD = 64
"""Segments that are read before they are asked for."""


class Trainer:
    """A model, its optimiser, its lanes and their memory, on one rank."""

    def __init__(
        self, config: RunConfig, shards: Shards, world: World, folder: Path | None = None
    ) -> None:
        """New, or continued from the checkpoint in `folder`.

        Raises:
            ValueError: lanes that do not divide, or a checkpoint damaged or of other shards.
        """
        training = config.training
        if training.lanes % (world.size * training.micro_batches):
            raise ValueError(
                "training.lanes must be a multiple of the number of ranks times "
                f"training.micro_batches, not {training.lanes} over {world.size} times "
                f"{training.micro_batches}"
            )
        self.config, self.shards, self.world, self.folder = config, shards, world, folder
        torch.manual_seed(training.seed)
        self.model = CompressiveTransformer(config.model, shards.vocabulary.size)
        require_room(self.model, training.lanes // world.size)
        self._require_graph(world)
        self.sparsity = Sparsity(self.model, config)
        self.model.to(world.device)
        self.restored = None if folder is None else self._matching_state(folder)
        """What state.json says of the checkpoint that this one continues from."""
        self.length = Length(training, self.restored)
        routes: Mapping[str, Route] = {}
        if folder is not None and (state := self.restored):
            checkpoints.load_weights(self.model, folder / checkpoints.WEIGHTS)
            self.sparsity.restore(folder, state.step, state.sparse)
            routes = state.sparse.routes if state.sparse else {}
        self.sparsity.choose_routes(config, world, routes)
        if training.activation_checkpointing:
            checkpoint_activations(self.model)
        if training.compile:
            compile_layers(self.model, world.device)
        self.objectives = chosen(training.objectives)
        self.module = Unroll(self.model, self.objectives)
        own = training.precision == "bf16" and training.zero == 0
        self.masters = Masters(self.model) if own else None
        # What the optimiser moves, and what checkpoints hold.
        self.stored = self.masters.module if self.masters else self.model
        self.optimizer = build_optimizer(self.stored, config.optim)
        lanes = training.lanes // world.size
        self.engine = self._engine(lanes)
        # The same weights everywhere, other dropout on every rank.
        torch.manual_seed(training.seed + world.rank)
        reader = LaneReader(
            shards.split("train"),
            lanes=training.lanes,
            segment=config.model.segment,
            seed=training.seed,
            order=training.order,
            reset_documents=training.reset_documents,
            first=world.rank * lanes,
            count=lanes,
        )
        most = max(number for _, number in training.accumulate)
        ahead = min(training.unroll * most, MOST_AHEAD)
        self.lanes = ReadAhead(reader, world.device, ahead)
        self.memory: MemoryState = self.model.empty_memory(lanes)
        self.watched: tuple[Batch, MemoryState] | None = None
        """The first segment of the last step that was watched, and memory before it."""
        self.step = 0
        self.skipped = 0
        if folder is not None and state:
            self._restore(folder, state)

    def _require_graph(self, world: World) -> None:
        """Refuse a back-propagation over more segments than any machine holds the inputs of."""
        training, model = self.config.training, self.config.model
        lanes = training.lanes // (world.size * training.micro_batches)
        # In bf16, with nothing kept but what enters each layer.
        needed = 2 * training.unroll * lanes * model.segment * model.width * model.layers
        room = None
        if world.device.type == "cuda":
            room = torch.cuda.get_device_properties(world.device).total_memory
        what = f"back-propagation over {training.unroll:,} segments (training.unroll)"
        require_memory(needed, what, room)

    def _engine(self, lanes: int) -> "DeepSpeedEngine":
        """DeepSpeed's engine around the model, with float32 masters that have lost nothing."""
        training = self.config.training
        if training.precision == "float32" or training.zero == 0:
            return build_engine(self.module, self.optimizer, self.config, lanes)
        # DeepSpeed rounds the weights to bf16 first and makes the masters of what is left.
        weights = [parameter.detach().clone() for parameter in self.model.parameters()]
        engine = build_engine(self.module, self.optimizer, self.config, lanes)
        for parameter, weight in zip(self.model.parameters(), weights, strict=True):
            set_master(parameter, weight)
        return engine

    def train_step(self, steps: int, watch: bool = False) -> dict[str, float]:
        """Read segments of every lane and update the weights once.

        Args:
            steps: length of the run, for the learning rate.
            watch: also look at each layer's compression, and keep what was read in `watched`.

        Returns:
            Sums over all ranks: nats, tokens, the auxiliary losses' means; gradient norm and rate.
            When watching, `NAME/LAYER` for each layer: the auxiliary losses' means and the norm of
            the compression function's gradient; and what the last choice of sparse weights changed.
            A step that was left out returns `skipped`, how many were so far.

        Raises:
            NonFiniteError: before the weights move.
        """
        training = self.config.training
        self._refresh_sparse_sets()
        random = random_state(self.world)
        reads = [
            [self.lanes.next() for _ in range(training.unroll)]
            for _ in range(training.accumulated(self.step))
        ]
        scale = lr_scale(self.config.optim, self.step, steps)
        set_lr(self.optimizer, scale)
        if watch:
            self.watched = reads[0][0], self.memory
        memory, sums = self._gradients(reads)
        norms = compression_norms(self.engine, self.model) if watch else {}
        norm = self._update(all(map(math.isfinite, chain.from_iterable(sums.values()))))
        if norm is None:
            if training.non_finite == "stop":
                raise self._non_finite(reads, random)
            self.skipped += 1
            self.step += 1
            return {"nats": 0.0, "tokens": 0.0, "skipped": self.skipped}
        self.memory = memory
        self.step += 1
        nats, tokens = sums.pop("nats")
        means = {
            name: total / max(count, 1)
            for name, (total, count) in sums.items()
            if watch or "/" not in name
        }
        learning = {"grad_norm": norm, "lr": scale * self.config.optim.lr}
        changed = self.sparsity.changed if watch else {}
        return {"nats": nats, "tokens": tokens, **means, **learning, **norms, **changed}

    def _refresh_sparse_sets(self) -> None:
        store = EngineStore(self.engine, self.stored, self.optimizer)
        if self.sparsity.refresh(self.step, store) and self.masters:
            self.masters.give_weights()

    def _gradients(self, reads: list[list[Batch]]) -> tuple[MemoryState, dict[str, Pair]]:
        """Gather the gradients of an update; returns memory and sums of losses over all ranks."""
        parts = self.config.training.micro_batches
        lanes = self.memory.lanes // parts
        (tokens,) = self.world.totals([sum(map(scored_tokens, reads))])
        sums = Sums()
        memory = self.memory
        for number, batches in enumerate(reads, start=1):
            after = []
            for part in range(parts):
                rows = slice(part * lanes, (part + 1) * lanes)
                last = number == len(reads) and part == parts - 1
                self.engine.set_gradient_accumulation_boundary(last)
                before = memory if parts == 1 else memory.lane_slice(rows)
                terms, by_layer, moved = self.engine(
                    on_device(batches, rows, self.world.device), before
                )
                self.engine.backward(self._loss(terms, tokens, parts * len(reads)))
                sums.add(terms)
                sums.add(by_layer)
                after.append(moved)
            memory = after[0] if parts == 1 else MemoryState.concatenate(after)
        return memory, sums.totals(self.world)

    def _loss(self, terms: dict[str, Term], tokens: float, parts: int) -> Tensor:
        """What one back-propagation adds to the update's loss; DeepSpeed averages over ranks.

        Args:
            terms: of this rank.
            tokens: that the update scores, over all ranks.
            parts: back-propagations of the update.
        """
        size = self.world.size
        factors: dict[str, float | Tensor] = {
            name: size / max(tokens, 1) for name, t in terms.items() if t.divisor == "scored"
        }
        if own := {name: term for name, term in terms.items() if name not in factors}:
            counts = self.world.sum(torch.stack([term.counted for term in own.values()]).double())
            factors |= zip(own, size / parts / counts.clamp(min=1), strict=True)
        return total_loss(terms, factors, weights_at(self.objectives, self.step))

    def _update(self, finite: bool) -> float | None:
        """Move the weights; returns the gradient's norm, or None if they have not moved."""
        training = self.config.training
        if training.zero == 0:
            if self.masters:
                self.masters.take_gradients()
            norm = clip_gradients(self.stored, self.config.optim.clip).item()
            if not (finite and math.isfinite(norm)):
                self.engine.zero_grad()
                return None
            self.engine.step()
            if self.masters:
                self.masters.give_weights()
            return norm
        if not finite and training.non_finite == "stop":
            return None
        self.engine.step()
        return float(self.engine.get_global_grad_norm()) if self.engine.was_step_applied() else None

    def _non_finite(self, reads: list[list[Batch]], random: dict[str, Tensor]) -> NonFiniteError:
        """Name what is not finite, by computing the gradients again and watching them."""
        set_random_state(random, self.world)
        what = first_bad(self.model, self.world, lambda: self._gradients(reads))
        return NonFiniteError(
            f"step {self.step + 1}: {what} is not finite and the weights have not moved; "
            "the same command with a lower --optim.lr or --optim.clip, or a longer --optim.warmup, "
            "goes on from the last checkpoint, or from an earlier one with --checkpoint"
        )

    def snapshot(self, previous: Path | None = None) -> Snapshot:
        """Everything a checkpoint holds, copied, with all ranks.

        Args:
            previous: the newest complete checkpoint of this run, for what it shares with this one.
        """
        rank, size = self.world.rank, self.world.size
        files = {f"rank-{rank}.safetensors": rank_tensors(self.memory, self.world)}
        share = [name for name, _ in self.model.named_parameters()][rank::size]
        weights = {
            name: tensor.to("cpu", copy=True)
            for name, tensor in full_weights(self.engine, self.stored)
            if self.world.first
        }
        files[f"optimizer-{rank}.safetensors"] = {
            key: tensor.to("cpu", copy=True)
            for key, tensor in full_optimizer_state(
                self.engine, dict(self.stored.named_parameters()), self.optimizer
            )
            if key.rpartition("/")[0] in share
        }
        if self.world.first:
            files[checkpoints.WEIGHTS] = weights
        links = self.sparsity.save(self.step, files, previous) if self.world.first else {}
        vocabulary, loss = (
            self.shards.vocabulary,
            probe(self.module, self.shards, self.world.device),
        )
        state = {
            "ranks": size,
            "shards": self.shards.hash,
            "vocabulary": {"hash": vocabulary.hash, "size": vocabulary.size},
            "lanes": self._gathered_lanes(),
            "skipped": self.skipped,
            "identity": identity(self.config),
            "precision": self.config.training.precision,
            "sparse": self.sparsity.state(),
            "probe": loss if math.isfinite(loss) else None,
        }
        return Snapshot(self.step, files, links, state)

    def _matching_state(self, folder: Path) -> CheckpointState:
        state = checkpoints.read_state(folder)
        if state.shards != self.shards.hash:
            raise ValueError(
                f"{folder} was trained on other shards than {self.shards.path}; prepare the same "
                "shards again or give another --run folder"
            )
        if state.identity not in (None, identity(self.config)):
            raise ValueError(
                f"{folder} is of another run than the config.yaml beside it describes: put back "
                "the file, or the checkpoint where it belongs"
            )
        return state

    def _restore(self, folder: Path, state: CheckpointState) -> None:
        """Take over all that a checkpoint holds beside the weights, which the model has already."""
        training = self.config.training
        parameters = dict(self.stored.named_parameters())
        tensors = optimizer_tensors(folder, state, parameters)
        set_full_optimizer_state(self.engine, self.stored, self.optimizer, tensors)
        self.step, self.skipped = state.step, state.skipped
        self.memory = restore_rank(folder, state, self.memory, self.world, training.seed)
        lanes, first = self.memory.lanes, self.world.rank * self.memory.lanes
        self.lanes.load_state(
            {
                name: value[first : first + lanes] if isinstance(value, list) else value
                for name, value in state.lanes.items()
            }
        )
        value = probe(self.module, self.shards, self.world.device)
        half = "bf16" in (training.precision, state.precision)
        check_probe(value, state.probe, "bf16" if half else "float32", folder)

    def _gathered_lanes(self) -> dict[str, Any]:
        """Cursors of all lanes, in lane order."""
        everyone = self.world.gather(self.lanes.state())
        return {
            name: list(chain.from_iterable(state[name] for state in everyone))
            if isinstance(value, list)
            else value
            for name, value in everyone[0].items()
        }
