"""A reward model beside the task's rule: what a response earns in training is a mean of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from vineppo.grading.finding import Pair
from vineppo.models import RewardModelConfig
from vineppo.types import Grade


class JudgeConfig(RewardModelConfig):
    weight: float = Field(default=1.0, gt=0, le=1)
    """The reward is (1 - weight) x the rule's + weight x the model's score. Verdicts, and evaluations, are the rule's
    alone."""


@dataclass(frozen=True)
class Judge:
    score: Callable[[Sequence[Pair]], Sequence[float]]
    """Of (problem, response) pairs, in batches."""
    weight: float

    def regrade(self, pairs: Sequence[Pair], grades: Sequence[Grade]) -> list[Grade]:
        """What could not be graded, for lack of time or for a crash, keeps its 0."""
        judged = [i for i, grade in enumerate(grades) if grade.verdict not in ("timeout", "crashed")]
        regraded = list(grades)
        for i, score in zip(judged, self.score([pairs[i] for i in judged]), strict=True):
            regraded[i] = self._mean(grades[i], score)
        return regraded

    def _mean(self, grade: Grade, score: float) -> Grade:
        """Process rewards keep the rule's share; the score is earned with the last segment."""
        rule, own = 1 - self.weight, self.weight * score
        if grade.segment_rewards is None:
            return replace(grade, reward=rule * grade.reward + own)
        *before, last = (rule * reward for reward in grade.segment_rewards)
        rewards = (*before, last + own)
        return replace(grade, reward=math.fsum(rewards), segment_rewards=rewards)
