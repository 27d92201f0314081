"""Knobs of the estimators whose modules need numpy, for recipes that are only read."""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vineppo.config import Named
from vineppo.credit.states import StatesConfig
from vineppo.learner.config import ActionCriticConfig
from vineppo.models import RewardModelConfig

NumVines = Annotated[int, Field(ge=0)]

MAX_LEAVES = 4096
"""Of one rollout's tree."""


class VinesConfig(Named):
    name: str = "vines"
    num_vines: int = Field(default=2, ge=0)
    """Most continuations of a state (K); with 0 the rewards of siblings are all that is measured."""
    states: StatesConfig = StatesConfig()
    allocation: Literal["worthwhile", "lacking", "even"] = "worthwhile"
    """Which states have vines. worthwhile: where these take more variance off than further responses for the same
    tokens would, by what earlier iterations found. lacking: where fewer than K other responses run through, so many as
    are lacking. even: all, K each."""
    gae_lambda: float | None = Field(default=None, ge=0, le=1)
    """Generalised advantage estimation over the measured values. By default gains are fitted to earlier iterations."""
    baseline: Literal["fitted", "value"] = "fitted"
    """value: V itself. fitted: the linear function of it that had the least gradient variance in earlier iterations."""
    skip_settled: int = Field(default=1, ge=1)
    """Behind a state whose vines all earned the same, measure only every so many-th state; 1 measures all."""

    @property
    def compares_group(self) -> bool:
        return self.num_vines == 0

    @model_validator(mode="after")
    def two_vines_can_agree(self) -> VinesConfig:
        if self.skip_settled > 1 and self.num_vines < 2:
            raise ValueError("skip_settled asks whether a state's vines agree; give num_vines at least 2")
        return self


class TreeConfig(Named):
    compares_group: ClassVar[bool] = True
    weighs_tokens: ClassVar[bool] = True
    name: str = "tree"
    num_vines: NumVines | tuple[NumVines, ...] = 1
    """Continuations (K) of a state besides the first one: the same at every state behind the prompt, or those of the
    first, second, .. of them, and none of later ones. Siblings that come by a state count among them."""
    shape: Literal["vines", "tree"] = "vines"
    """Whether only rollouts have vines, or vines have vines too."""
    train: Literal["all", "first"] = "all"
    """Which tokens of a vine are learnt from: all, or those up to the next state."""
    states: StatesConfig = StatesConfig()
    """Which states of a response are counted; all kinds are stopping times."""
    baseline_prior: float = Field(default=6.0, ge=0)
    """How many siblings the mean return elsewhere counts for, in the mean return of siblings that is the baseline."""
    fit_baseline: bool = True
    """Stretch, shift and mix baselines by constants that other groups and earlier iterations show to vary least."""

    @model_validator(mode="after")
    def trees_are_finite(self) -> TreeConfig:
        if self.shape == "vines":
            return self
        if isinstance(self.num_vines, int):
            raise ValueError(
                'shape = "tree" with one number of vines for all states has no end; give num_vines as a list, '
                "of the first, second, .. state"
            )
        if prod(1 + k for k in self.num_vines) > MAX_LEAVES:
            raise ValueError(f"num_vines = {list(self.num_vines)} makes a tree of more than {MAX_LEAVES} responses")
        if self.train == "first":
            raise ValueError('train = "first" learns nothing from vines of vines; it goes with shape = "vines"')
        return self

    @property
    def depth(self) -> int | None:
        """States of a vine that may have vines; None: only rollouts have."""
        return sum(map(bool, self.num_vines)) if self.shape == "tree" and isinstance(self.num_vines, tuple) else None

    def vines_at(self, number: int) -> int:
        """K of state `number`, from 1: the prompt is number 0 and has the group."""
        if isinstance(self.num_vines, int):
            return self.num_vines
        return self.num_vines[number - 1] if number <= len(self.num_vines) else 0


class VineCriticConfig(Named):
    compares_group: ClassVar[bool] = True
    num_alternatives: ClassVar[int] = 8
    """Of the recipe's [sampling], where it says nothing."""
    name: str = "vine_critic"
    baseline: Literal["best", "value"] = "best"
    """best: towards the baseline of least variance at each state. value: not beyond the critic's value of the state."""
    control_variate: bool = True
    """Whether the luck that the critic sees in what follows a token is taken off; false leaves a baseline."""
    num_vines: int = Field(default=0, ge=0)
    """Continuations of every state that `states` names (K). The critic learns from their rewards as from rollouts'."""
    states: StatesConfig = StatesConfig()
    critic: ActionCriticConfig = ActionCriticConfig()
    reward_model: RewardModelConfig | None = None
    """A frozen one in place of the critic that learns; the knobs of `critic` then are of no use."""

    @model_validator(mode="after")
    def vines_teach(self) -> VineCriticConfig:
        if self.reward_model and self.num_vines:
            raise ValueError("a reward_model is frozen, and would learn nothing from vines; leave out num_vines")
        return self
