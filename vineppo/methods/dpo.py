"""DPO+ (DPO-positive): offline preference learning from pairs of correct and wrong responses of the initial policy.

Pal et al. 2024, "Smaug"; constants of the paper's baseline. positive_lambda = 0 is plain DPO (Rafailov et al. 2023).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, model_validator

from vineppo.config import Config
from vineppo.learner.config import LearnerConfig
from vineppo.learner.objective import Counts, Loss, Sum
from vineppo.machine.tensor_files import load_tensors, save_tensors
from vineppo.methods.epochs import Passes, num_steps, run_passes
from vineppo.rollouts import check_policy_version, rollout_metrics, sample_iteration
from vineppo.runs.recipe import SamplingRecipe
from vineppo.sample import Sample, make_sample
from vineppo.seeding import derive_seed
from vineppo.types import Group, Rollout, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from vineppo.batch import Batch
    from vineppo.models.logprobs import Readings
    from vineppo.runs.session import Session

PAIRS = "pairs.pt"


class DPOConfig(Config):
    beta: float = Field(default=0.1, gt=0)
    positive_lambda: float = Field(default=50.0, ge=0)
    """Weight of the penalty for right responses that become less likely than they were."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    reward_threshold: float = Field(default=0.5, gt=0, le=1)
    """Reward from which a response is the better one of a pair."""
    max_pairs_per_problem: int = Field(default=64, ge=1)
    num_epochs: int = Field(default=3, ge=1)
    minibatch_size: int = Field(default=64, ge=1)
    """Pairs per optimizer step."""


class DPORecipe(SamplingRecipe):
    """For `vineppo train`, with a [dpo] section."""

    command, title, length, stepwise = "train", "DPO+", "dpo.num_epochs", True

    dpo: DPOConfig

    @model_validator(mode="after")
    def a_pair_is_two_responses(self) -> DPORecipe:
        if self.sampling.group_size < 2:
            raise ValueError("sampling.group_size = 1: a pair needs 2 or more responses to a prompt")
        return self


class Pair(NamedTuple):
    """Two responses to one prompt, the better first, with their reference log-probs."""

    chosen: Sample
    rejected: Sample


def run_dpo(recipe: DPORecipe, session: Session) -> None:
    """Pairs and their reference log-probs are made once, before the first step, and are part of every checkpoint."""
    config, setup, checkpoint = recipe.dpo, session.setup, session.checkpoint
    session.check_evaluations(setup.make_engine())
    pairs = load_pairs(checkpoint.folder) if checkpoint else sample_pairs(recipe, session)
    total_steps = num_steps(len(pairs), config.minibatch_size, config.num_epochs)
    reference = setup.load_initial_policy()
    learner = session.make_learner(reference, sampling=recipe.sampling.params(), total_steps=total_steps)
    if not checkpoint:
        with session.log.phase("score"):
            pairs = add_reference(pairs, learner.score)
    metrics, save_more = {"dpo/num_pairs": len(pairs)}, partial(save_pairs, pairs)
    passes = Passes("dpo", pairs, config.minibatch_size, config.num_epochs, metrics, save_more)
    run_passes(session, learner, passes, loss=partial(pair_loss, dpo=config))


def sample_pairs(recipe: DPORecipe, session: Session) -> list[Pair]:
    """From the initial policy; how many tokens and rewards that took stands in the log's first line."""
    setup, sampling, seed = session.setup, recipe.sampling, partial(derive_seed, recipe.seed)
    environment = setup.make_environment(setup.make_engine(), sampling)
    with environment.counting() as spent, session.shutdown.interruptible(), session.log.phase("sample"):
        sampled = sample_iteration(environment, sampling, seed=seed)
        check_policy_version(sampled.groups, 0)
    session.log.add({**rollout_metrics(sampled), **spent.metrics()})
    pairs = make_pairs(sampled.groups, recipe.dpo, seed=seed("pairs"))
    if not pairs:
        raise UserError("no problem has both a right and a wrong response, so there is no pair to learn from")
    return pairs


def pair_loss(batch: Batch, readings: Readings, config: LearnerConfig, counts: Counts, *, dpo: DPOConfig) -> Loss:
    """DPO-positive, mean over pairs. Responses count by the sum of their log-probs."""
    totals_B = batch.sum_responses(readings.logprobs_N)
    refs_B = totals_B.new_tensor([sum(sample.at_actions(sample.ref_logprobs or ())) for sample in batch.samples])
    losses_P, margins_P = dpo_loss(
        *totals_B.chunk(2),
        *refs_B.chunk(2),
        beta=dpo.beta,
        positive_lambda=dpo.positive_lambda,
        label_smoothing=dpo.label_smoothing,
    )
    chosen_P, rejected_P = (totals_B - refs_B).chunk(2)
    loss = losses_P.sum() / counts.num_rows
    metrics = {
        "dpo/loss": Sum(loss),
        "dpo/margin": Sum(margins_P.sum(), per=counts.num_rows),
        "dpo/ordered_frac": Sum((margins_P > 0).sum(), per=counts.num_rows),
        "dpo/chosen_gain": Sum(chosen_P.sum(), per=counts.num_rows),
        "dpo/rejected_gain": Sum(rejected_P.sum(), per=counts.num_rows),
    }
    return Loss(loss, metrics)


def dpo_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    ref_chosen_P: Tensor,
    ref_rejected_P: Tensor,
    *,
    beta: float,
    positive_lambda: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """DPO-positive per pair, from log-probs of whole responses: (losses_P, margins_P).

    z = [chosen - rejected] - [ref_chosen - ref_rejected] - lambda max(0, ref_chosen - chosen), and
    -(1 - s) log sigmoid(beta z) - s log sigmoid(-beta z) (Pal et al. 2024, "Smaug", eq. 3). lambda = 0 is plain DPO
    (Rafailov et al. 2023, eq. 7). The margin is beta times the first two brackets.
    """
    import torch.nn.functional as F

    margins_P = (chosen_P - rejected_P) - (ref_chosen_P - ref_rejected_P)
    z_P = beta * (margins_P - positive_lambda * (ref_chosen_P - chosen_P).clamp(min=0))
    losses_P = -(1 - label_smoothing) * F.logsigmoid(z_P) - label_smoothing * F.logsigmoid(-z_P)
    return losses_P, beta * margins_P


def make_pairs(groups: Sequence[Group], config: DPOConfig, *, seed: int) -> list[Pair]:
    """Every right with every wrong response to a problem, both distinct; a uniform draw where these are too many.

    Problems that lack either kind have none.
    """
    pairs: list[Pair] = []
    for group in groups:
        right = distinct([rollout for rollout in group if rollout.reward >= config.reward_threshold])
        wrong = distinct([rollout for rollout in group if rollout.reward < config.reward_threshold])
        number = min(config.max_pairs_per_problem, len(right) * len(wrong))
        rng = random.Random(derive_seed(seed, group[0].problem.id))
        for index in sorted(rng.sample(range(len(right) * len(wrong)), number)):
            chosen, rejected = divmod(index, len(wrong))
            pairs.append(Pair(right[chosen], wrong[rejected]))
    return pairs


def distinct(rollouts: Sequence[Rollout]) -> list[Sample]:
    """In the order they were sampled."""
    return [make_sample(*key) for key in dict.fromkeys((r.prompt_ids, r.token_ids, r.action_mask) for r in rollouts)]


def add_reference(pairs: Sequence[Pair], score: Callable[[Sequence[Sample]], list[Sample]]) -> list[Pair]:
    """The pairs with reference log-probs; a response that is in several pairs is scored once."""
    responses = list(
        {(s.prompt_ids, s.response_ids): s for pair in pairs for s in (pair.chosen, pair.rejected)}.values()
    )
    scored = {(s.prompt_ids, s.response_ids): s for s in score(responses)}
    return [
        Pair(*(scored[sample.prompt_ids, sample.response_ids] for sample in (pair.chosen, pair.rejected)))
        for pair in pairs
    ]


def save_pairs(pairs: Sequence[Pair], folder: Path) -> None:
    """(prompt, response, reference log-probs) of both, and the mask where there is one."""
    rows = [[to_row(sample) for sample in (pair.chosen, pair.rejected)] for pair in pairs]
    save_tensors(rows, folder / PAIRS)


def to_row(sample: Sample) -> tuple[Any, ...]:
    row = sample.prompt_ids, sample.response_ids, sample.ref_logprobs
    return row if sample.action_mask is None else (*row, sample.action_mask)


def from_row(
    prompt_ids: tuple[int, ...],
    response_ids: tuple[int, ...],
    ref_logprobs: tuple[float, ...],
    action_mask: tuple[bool, ...] | None = None,
) -> Sample:
    return replace(make_sample(prompt_ids, response_ids, action_mask), ref_logprobs=ref_logprobs)


def load_pairs(folder: Path) -> list[Pair]:
    rows = load_tensors(folder / PAIRS)
    try:
        return [Pair(*(from_row(*row) for row in pair)) for pair in rows]
    except (TypeError, ValueError):
        raise UserError(f"{folder / PAIRS}: not pairs of responses; restore the checkpoint") from None
