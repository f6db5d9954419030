"""Whether a verdict holds with networks that its search has not seen."""

from __future__ import annotations

from datamodels.brittleness.judging import FLIPPED, HELD, judge
from datamodels.subsets import mask_without
from datamodels.verify.known import Targets
from datamodels.verify.questions import Listed
from datamodels.verify.record import REPAIRED, Claim, RecheckRecord
from datamodels.verify.retrain import Request, Retrained

RECHECK_FROM = 10**6
"""Repetitions of a recheck count from here: models that no search has seen."""


class Recheck(Listed):
    """A claim that some set of N images' first ones flips or repairs a prediction, asked of `number` networks again."""

    def __init__(self, claim: Claim, targets: Targets, number: int) -> None:
        self.claim, self.targets, self.size = claim, targets, claim.size or 0
        n = targets.examples.n
        mask = mask_without(n, list(claim.order[: self.size]))
        to = -1 if claim.relabelled is None else claim.relabelled
        super().__init__([Request.of(mask, repetition, to) for repetition in range(RECHECK_FROM, RECHECK_FROM + number)])

    def judge(self, found: Retrained) -> None:
        """The margin again."""
        self.outcome = judge(*found.of(self.requests, self.targets.members(self.claim.target)))

    def record(self) -> RecheckRecord:
        """It holds when the mean margin is at most 0 again, or of a prediction that was repaired above 0."""
        target, right = self.claim.target, self.outcome.mean_margin > 0
        holds = right == (self.claim.verdict == REPAIRED)
        name = self.targets.name(target)
        return RecheckRecord(target, self.claim.method, self.size, holds, self.outcome.verdict, self.outcome, name)

    @property
    def is_beyond_doubt(self) -> bool:
        """Whether the whole interval says what the claim says."""
        return self.outcome.verdict == (HELD if self.claim.verdict == REPAIRED else FLIPPED)
