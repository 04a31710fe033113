"""The likelihood of the next token."""

from lm.objectives.objective import Objective, SegmentRead, Term


class Likelihood(Objective):
    """Negative log-likelihood in nats, over the tokens that are scored."""

    def terms(self, read: SegmentRead) -> dict[str, Term]:
        """The sum over the segment, under the name `nats`."""
        scored = read.scored_BT
        return {"nats": Term((read.nats_BT * scored).sum(), scored.sum(), "scored")}
