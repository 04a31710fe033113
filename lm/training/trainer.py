"""The training step: what one rank has, and how one update of the weights is made.

Losses stay sums and counts until one division by what all ranks counted together, so every token
of an update weighs the same however lanes are spread over ranks and micro-batches. Auxiliary losses
are means over the ranks' elements, and where an update has several back-propagations, the mean of
these.
"""

import math
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.requirements import require_memory
from data.common.tensors import TensorFile
from data.lanes import LaneReader
from data.shards import Shards
from lm.feeding import ReadAhead
from lm.inference.predictor import ModelState, require_room
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Segment, Term, Unroll, total_loss, weights_at
from lm.objectives.registry import chosen, reading_of
from lm.objectives.teaching import Teaching
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig, identity
from lm.training.compiling import checkpoint_activations, compile_layers
from lm.training.dist import Pair, Sums, World
from lm.training.engine import Engine
from lm.training.gate import Gate
from lm.training.gradients import NonFiniteError, compression_norms, first_bad
from lm.training.learning import choose_learning
from lm.training.optim import lr_scale, set_lr
from lm.training.origin import Origin, take_weights
from lm.training.resume import (
    Snapshot,
    check_probe,
    matching_state,
    optimizer_tensors,
    probe,
    rank_tensors,
    restore_rank,
)
from lm.training.sparsity import Sparsity
from lm.training.stopping import Length
from lm.training.teacher import Teacher

MOST_AHEAD = 64
"""Segments that are read before they are asked for."""

Read = list[tuple[Segment, int]]
"""What one back-propagation spans: segments, and how many targets of each count."""


class Trainer:
    """A model, its optimiser, its lanes and their memory, on one rank."""

    def __init__(
        self,
        config: RunConfig,
        shards: Shards,
        world: World,
        folder: Path | None = None,
        origin: Origin | None = None,
    ) -> None:
        """New, continued from the checkpoint in `folder`, or new with the weights of `origin`.

        Raises:
            ValueError: lanes that do not divide, or a checkpoint damaged or of other shards.
        """
        training = config.training
        assert training.precision != "auto", "see lm.training.compiling.settled"
        if training.lanes % (world.size * training.micro_batches):
            raise ValueError(
                "training.lanes must be a multiple of the number of ranks times "
                f"training.micro_batches, not {training.lanes} over {world.size} times "
                f"{training.micro_batches}"
            )
        self.config, self.shards, self.world, self.folder = config, shards, world, folder
        own = training.lanes // world.size
        if own // training.micro_batches % (every := training.readings.every):
            raise ValueError(
                f"training.readings.every must divide the {own // training.micro_batches} lanes "
                f"that a rank reads at once, which {every} does not"
            )
        torch.manual_seed(training.seed)
        self.model = CompressiveTransformer(config.model, shards.vocabulary.size)
        require_room(self.model, own)
        self._require_graph()
        self.sparsity = Sparsity(self.model, config)
        self.model.to(world.device)
        self.restored = None if folder is None else matching_state(folder, shards, config)
        """What state.json says of the checkpoint that this one continues from."""
        self.length = Length(training, self.restored)
        self.origin = None if origin is None else take_weights(self.model, origin)
        """What is recorded of the weights that a new run begins with."""
        choose_learning(self.model, config)
        self._settle_model()
        further, read = reading_of(training.readings)
        self.objectives = chosen(training.objectives) + further
        self.teacher = Teacher(config, shards, world, own) if training.teacher else None
        if self.teacher is not None:
            self.objectives.append(Teaching(training.teacher, self.teacher.logits))
        self.module = Unroll(self.model, self.objectives, read)
        self.gate = Gate(training.gate, self.model, world) if training.gate else None
        self.engine = Engine(self.module, config, own)
        # The same weights everywhere, other dropout on every rank.
        torch.manual_seed(training.seed + world.rank)
        self.lanes = self._lanes(own)
        self.memory: MemoryState = self.model.empty_memory(own)
        self.step = 0
        self.skipped = 0
        self._restore()

    def _require_graph(self) -> None:
        """Refuse a back-propagation over more segments than any machine holds the inputs of."""
        training, model, device = self.config.training, self.config.model, self.world.device
        lanes = training.lanes // (self.world.size * training.micro_batches)
        # In bf16, with nothing kept but what enters each layer.
        needed = 2 * training.unroll * lanes * model.segment * model.width * model.layers
        room = None
        if device.type == "cuda":
            room = torch.cuda.get_device_properties(device).total_memory
        what = f"back-propagation over {training.unroll:,} segments (training.unroll)"
        require_memory(needed, what, room)

    def _settle_model(self) -> None:
        """Take over a checkpoint's weights, and choose how the layers are computed."""
        training, state = self.config.training, self.restored
        if self.folder is not None and state is not None:
            file = TensorFile(self.folder / checkpoints.WEIGHTS, checkpoints.MEND)
            checkpoints.load_weights(self.model, file)
            self.sparsity.restore(self.folder, state.step, state.sparse)
        routes = state.sparse.routes if state is not None and state.sparse else {}
        self.sparsity.choose_routes(self.config, self.world, routes)
        if training.activation_checkpointing:
            checkpoint_activations(self.model)
        if training.compile:
            compile_layers(self.model, self.world.device)

    def _lanes(self, count: int) -> ReadAhead:
        """This rank's lanes, read ahead as far as one update needs."""
        training = self.config.training
        reader = LaneReader(
            self.shards.split("train"),
            lanes=training.lanes,
            segment=self.config.model.segment,
            seed=training.seed,
            order=training.order,
            reset_documents=training.reset_documents,
            first=self.world.rank * count,
            count=count,
        )
        most = max(number for _, number in training.accumulate)
        return ReadAhead(reader, self.world.device, min(training.unroll * most, MOST_AHEAD))

    @property
    def accumulated(self) -> int:
        """Back-propagations of the next step."""
        numbers = self.config.training.accumulate
        return [number for first, number in numbers if first <= self.step][-1]

    @property
    def teaching(self) -> bool:
        """Whether the teacher still counts."""
        return self.teacher is not None and self.config.training.teacher.share(self.step) > 0

    def train_step(
        self, steps: int, watch: Callable[[Segment, MemoryState], object] | None = None
    ) -> dict[str, float]:
        """Read segments of every lane and update the weights once.

        Args:
            steps: length of the run, for the learning rate.
            watch: given, each layer's compression is looked at too; called with the step's first
                segment and memory before it.

        Returns:
            Sums over all ranks: nats, tokens, the auxiliary losses' means; gradient norm and rate.
            When watching, `NAME/LAYER` for each layer: the auxiliary losses' means, the relative
            error of compression and the norm of its gradient; and what the last choice of sparse
            weights changed.
            A step that was left out returns `skipped`, how many were so far.

        Raises:
            NonFiniteError: before the weights move.
        """
        training = self.config.training
        if self.sparsity.routes:
            self.sparsity.refresh(self.step, self.engine)
        random = self.world.random_state()
        several = self.accumulated
        reads = [[self.lanes.next() for _ in range(training.unroll)] for _ in range(several)]
        scale = lr_scale(self.config.optim, self.step, steps)
        set_lr(self.engine.optimizer, scale)
        if watch is not None:
            watch(reads[0][0][0], self.memory)
        memory, taught, sums = self._gradients(reads)
        gated = {} if self.gate is None else self.gate.apply()
        norms = {} if watch is None else compression_norms(self.engine, self.model)
        norm = self.engine.update(all(map(math.isfinite, chain.from_iterable(sums.values()))))
        if norm is None:
            if training.non_finite == "stop":
                raise self._non_finite(reads, random)
            self._skip(reads)
            return {"nats": 0.0, "tokens": 0.0, "skipped": self.skipped}
        self.memory = memory
        if self.teacher is not None and taught is not None:
            self.teacher.state = taught
        self.step += 1
        nats, tokens = sums.pop("nats")
        means = {
            name: total / count if count else 0.0
            for name, (total, count) in sums.items()
            if watch is not None or "/" not in name
        }
        learning = {"grad_norm": norm, "lr": scale * self.config.optim.lr}
        changed = {} if watch is None else self.sparsity.changed
        looked_at = {n: x for n, x in gated.items() if watch is not None or "/" not in n}
        return {
            "nats": nats,
            "tokens": tokens,
            **means,
            **learning,
            **norms,
            **changed,
            **looked_at,
        }

    def _skip(self, reads: list[Read]) -> None:
        """Leave a step out. Memory stays what it was before, but for what its segments forget."""
        self.skipped += 1
        self.step += 1
        resets = [segment.reset_B for read in reads for segment, _ in read]
        reset_B = torch.stack(resets).any(dim=0)
        self.memory = self.memory.reset(reset_B)
        if self.teacher is not None:
            self.teacher.state = self.teacher.state.reset(reset_B)

    def _gradients(
        self, reads: list[Read]
    ) -> tuple[MemoryState, ModelState | None, dict[str, Pair]]:
        """Gather the gradients of an update; returns memory and a teacher's state after it, and the
        sums of losses over all ranks.
        """
        parts = self.config.training.micro_batches
        lanes = self.memory.lanes // parts
        self.module.step = self.step
        (tokens,) = self.world.totals([sum(scored for read in reads for _, scored in read)])
        sums = Sums()
        memory = self.memory
        if self.gate is not None:
            self.gate.begin()
        teacher = self.teacher if self.teaching else None
        taught = None if teacher is None else teacher.state
        for number, read in enumerate(reads, start=1):
            after, told = [], None
            if teacher is not None and taught is not None:
                told, taught = teacher.tell([segment for segment, _ in read], taught)
            for part in range(parts):
                rows = slice(part * lanes, (part + 1) * lanes)
                segments = [segment.lanes(rows) for segment, _ in read]
                before = memory if parts == 1 else memory.lane_slice(rows)
                last = number == len(reads) and part == parts - 1
                own = told and [each[rows] for each in told]
                terms, by_layer, moved = self.engine.forward(segments, before, last, own)
                self._backward(terms, tokens, parts * len(reads))
                sums.add(terms)
                sums.add(by_layer)
                after.append(moved)
            memory = after[0] if parts == 1 else MemoryState.concatenate(after)
        return memory, taught, sums.totals(self.world)

    def _backward(self, terms: dict[str, Term], tokens: float, parts: int) -> None:
        """Add one back-propagation to the gradients of an update; DeepSpeed averages over ranks.

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
        weights, main = weights_at(self.objectives, self.step), terms
        if self.gate is not None:
            # A teacher's losses are there until it has faded.
            self.gate.check({*terms, *weights_at(self.objectives, 0)})
            gated = self.config.training.gate.losses
            auxiliary = {name: term for name, term in terms.items() if name in gated}
            main = {name: term for name, term in terms.items() if name not in gated}
            if auxiliary:
                self.gate.add(total_loss(auxiliary, factors, weights), self.engine)
        self.engine.backward(total_loss(main, factors, weights))

    def _non_finite(self, reads: list[Read], random: dict[str, Tensor]) -> NonFiniteError:
        """Name what is not finite, by computing the gradients again and watching them."""
        self.world.set_random_state(random)
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
        rank, size, vocabulary = self.world.rank, self.world.size, self.shards.vocabulary
        own = rank_tensors(self.memory, self.world)
        files = {f"rank-{rank}.safetensors": own}
        if self.teacher is not None:
            own |= self.teacher.tensors()
        weights = {
            name: tensor.to("cpu", copy=True)
            for name, tensor in self.engine.weights()
            if self.world.first
        }
        share = [name for name, _ in self.model.named_parameters()][rank::size]
        files[f"optimizer-{rank}.safetensors"] = {
            key: tensor.to("cpu", copy=True)
            for key, tensor in self.engine.state()
            if key.rpartition("/")[0] in share
        }
        links = {}
        if self.world.first:
            files[checkpoints.WEIGHTS] = weights
            links = self.sparsity.save(self.step, files, previous)
        loss = probe(self.module, self.shards, self.world.device)
        state = {
            "ranks": size,
            "shards": self.shards.hash,
            "vocabulary": {"hash": vocabulary.hash, "size": vocabulary.size},
            "lanes": self._gathered_lanes(),
            "skipped": self.skipped,
            "identity": identity(self.config),
            **self._adapters(),
            "teacher": self.teacher and self.teacher.weights,
            "precision": self.config.training.precision,
            "sparse": self.sparsity.state(),
            "probe": loss if math.isfinite(loss) else None,
        }
        return Snapshot(self.step, files, links, state)

    def _adapters(self) -> dict[str, float]:
        """What state.json says of adapters, if there are any."""
        training = self.config.training
        return {"adapter_scale": training.lora.scale} if training.learn == "lora" else {}

    def _restore(self) -> None:
        """Take over all that a checkpoint holds beside the weights, which the model has already."""
        folder, state, training = self.folder, self.restored, self.config.training
        if folder is None or state is None:
            return
        self.engine.load_state(optimizer_tensors(folder, state, self.engine.shapes()))
        self.step, self.skipped = state.step, state.skipped
        self.memory = restore_rank(folder, state, self.memory, self.world, training.seed)
        if self.teacher is not None:
            self.teacher.restore(folder, state)
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
