"""Several readings of one text by the same weights, side by side as lanes of one forward pass, and
what training makes of what they say of the same token.

    full   segment, memory and compressed memory: what is scored, and what moves memory on
    local  without long memory (perception)
    far    compressed memory alone, the segment's embeddings blank (prediction)
    again  the full reading under other dropout

Pulling them together by the mean of their divergences is the auxiliary loss of Perception-
Prediction-Reaction agents (Stooke et al., arXiv 2006.15223); KL(full || local) is the cost of
information of a default policy that does not have it (Galashov et al., arXiv 1905.01240).

Shapes: B lanes of text, b of them with further readings, P readings, T tokens, D width, V
vocabulary, n tokens of any lanes.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lm.model.components import VocabularyHead, cross_entropy
from lm.model.memory import MemoryState, View
from lm.model.transformer import CompressiveTransformer, SegmentStates
from lm.objectives import measures
from lm.objectives.objective import Compared, Objective, Segment, SegmentRead, Term, judged
from lm.objectives.readings_config import ReadingsConfig


class Readings(Objective):
    r"""The terms of further readings, and how a segment is read for them.

    | term | of each scored token, in nats |
    |---|---|
    | nats_local, nats_far, nats_again | negative log-likelihood of that reading |
    | agreement | mean of KL(p \\|\\| q) over all ordered pairs of readings |
    | agreement_full_local, ... | the same of each pair alone, where there are several |
    | worth | KL(full \\|\\| local): what long memory has told |

    A term whose weight is 0 has no gradient and is only shown.
    """

    def __init__(self, config: ReadingsConfig) -> None:
        self.config = config
        self.names = ("full", *config.further)
        own = {f"nats_{name}": config.nats for name in config.further}
        pairs = list(combinations(self.names, 2))
        between = {"agreement": config.agreement} if pairs else {}
        self.pairs = {f"agreement_{p}_{q}": (p, q) for p, q in pairs} if len(pairs) > 1 else {}
        worth = {"worth": config.default} if config.local else {}
        self.weight = own | between | dict.fromkeys(self.pairs, 0.0) | worth
        """Of every term, in the order of what `compare` returns."""

    def terms(self, read: SegmentRead) -> dict[str, Term]:
        """See the class; of lanes that stand for others each token counts as often."""
        compared = read.compared
        if compared is None:
            return {}
        scored, times = compared.scored_bT, compared.stands_for
        count = times * scored.sum()
        return {
            name: Term(times * (value * scored).sum(), count, "scored")
            for name, value in compared.values.items()
        }

    def weights(self, step: int) -> Mapping[str, float]:  # noqa: ARG002
        """Those of the config."""
        return self.weight

    def read(
        self,
        model: CompressiveTransformer,
        segment: Segment,
        memory: MemoryState,
        logits: bool,
        step: int,
    ) -> SegmentRead:
        """See lm.objectives.objective.ReadSegment."""
        rows = slice(-step % self.config.every, memory.lanes, self.config.every)
        states = self._states(model, segment, memory, rows)
        lanes, hidden_LTD = memory.lanes, states.hidden_BTD
        if len(hidden_LTD) == lanes:
            return judged(model, segment, states, logits)
        # Of its own room, so that the other lanes' is free.
        moved = states.memory.lane_slice(slice(lanes)).map(Tensor.clone)
        own = SegmentStates(hidden_LTD[:lanes], moved, *states[2:])
        some = segment.lanes(rows)
        if logits or model.head.chunk is None:
            logits_LTV = model.head(hidden_LTD)
            full_BTV = logits_LTV[:lanes]
            nats_n = cross_entropy(full_BTV.flatten(0, 1), segment.targets_BT.flatten())
            others = logits_LTV[lanes:].chunk(len(self.names) - 1)
            found = self.compare([full_BTV[rows], *others], some.targets_BT)
        else:
            full_BTV = None
            nats_n, found = self._in_chunks(model.head, hidden_LTD, segment, rows)
        values = dict(zip(self.weight, found, strict=True))
        compared = Compared(values, some.scored_BT, self.config.every)
        nats_BT = nats_n.view(segment.targets_BT.shape)
        return SegmentRead(segment, own, nats_BT, full_BTV if logits else None, compared)

    def _states(
        self, model: CompressiveTransformer, segment: Segment, memory: MemoryState, rows: slice
    ) -> SegmentStates:
        """The lanes of the full reading, and behind them those of each further one."""
        further, lanes, device = self.names[1:], memory.lanes, segment.inputs_BT.device
        tokens, before, some = segment.inputs_BT, memory, len(range(lanes)[rows])
        if further:
            tokens = torch.cat([tokens, *[tokens[rows]] * len(further)])
            before = MemoryState.concatenate([memory, *[memory.lane_slice(rows)] * len(further)])

        def of(*names: str) -> Tensor:
            chosen_L = torch.zeros(before.lanes, dtype=torch.bool, device=device)
            for number, name in enumerate(further):
                if name in names:
                    chosen_L[lanes + number * some : lanes + (number + 1) * some] = True
            return chosen_L

        no_memory, no_compressed = of("far"), of("local")
        if self.config.local == "segment":
            no_memory |= no_compressed
        if self.config.hide:
            hidden = torch.rand(lanes, device=device) < self.config.hide
            no_memory[:lanes] |= hidden
            no_compressed[:lanes] |= hidden
        view = View(no_memory, no_compressed, of("far"), of(*further))
        return model.read_segment(tokens, before, view=view)

    def compare(self, logits: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
        """The numbers of each token that `weight` names, in its order, [...] each.

        Args:
            logits: of every reading, the full one first, [..., V].
            targets: tokens that follow, [...].
        """
        logs = dict(zip(self.names, map(measures.log_probabilities, logits), strict=True))
        still = {name: log.detach() for name, log in logs.items()}
        found = []
        for name, weight in self.weight.items():
            of = logs if weight else still
            if name == "agreement":
                found.append(measures.agreement(list(of.values())))
            elif name == "worth":
                found.append(measures.divergence(of["full"], of["local"]))
            elif name in self.pairs:
                found.append(measures.agreement([of[each] for each in self.pairs[name]]))
            else:
                log = of[name.removeprefix("nats_")]
                found.append(-log.gather(-1, targets[..., None])[..., 0])
        return found

    def _in_chunks(
        self, head: VocabularyHead, hidden_LTD: Tensor, segment: Segment, rows: slice
    ) -> tuple[Tensor, list[Tensor]]:
        """Nats of the full reading [B T], and `compare`, with logits of so many tokens held at once
        as the head's chunks have; they are made again in the backward pass.
        """
        (lanes, tokens), readings = segment.targets_BT.shape, len(self.names)
        assert head.chunk is not None
        size = max(1, head.chunk // readings)
        some = list(range(lanes)[rows])
        rest = [lane for lane in range(lanes) if lane not in some]
        targets_n = segment.targets_BT[rows].flatten()

        def part(hidden_PnD: Tensor, targets_n: Tensor) -> Tensor:
            logits = head.logits(hidden_PnD)
            nats_n = cross_entropy(logits[0], targets_n)
            return torch.stack([nats_n, *self.compare(list(logits), targets_n)])

        def within(head: VocabularyHead, hidden_LTD: Tensor) -> Tensor:
            full_BTD, others = hidden_LTD[:lanes], hidden_LTD[lanes:]
            both = torch.cat([full_BTD[rows], others]).unflatten(0, (readings, -1)).flatten(1, 2)
            found = [
                checkpoint(part, *pair, use_reentrant=False)
                for pair in zip(both.split(size, dim=1), targets_n.split(size), strict=True)
            ]
            values = torch.cat(found, dim=1).flatten()
            if not rest:
                return values
            alone = full_BTD[rest].flatten(0, 1), segment.targets_BT[rest].flatten()
            return torch.cat([values, head.nats_by_chunks(*alone)])

        out = head(hidden_LTD, within=within)
        count = (1 + len(self.weight)) * len(targets_n)
        own, *found = out[:count].view(-1, len(some), tokens)
        nats_BT = torch.cat([own, out[count:].view(-1, tokens)])
        place = torch.tensor([*some, *rest], device=out.device).argsort()
        return nats_BT[place].flatten(), found
