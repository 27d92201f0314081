"""Vines: measured values that cost next to nothing. VinePPO's credit, with all that is sampled anyway put to use.

A state's value is measured by its vines and by every other response that runs through it (pooling.py); vines are
sampled only where such are lacking and where they matter; what was measured before and after a state smooths its value
(smoothing.py). As in VinePPO, vines are not trained on. Why all of this is unbiased: docs/methods.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from vineppo.credit.allocation import squared_scores
from vineppo.credit.common import CreditContext, broadcast_to_tokens, credit_metrics, first_advantages
from vineppo.credit.config import VinesConfig
from vineppo.credit.pooling import Node, by_depth, make_paths, unique
from vineppo.credit.smoothing import Gains, Sums, Trail, filtered_values, segment_advantages
from vineppo.credit.states import check_states, sample_vines, state_boundaries
from vineppo.credit.worth import num_worthwhile, weight_of
from vineppo.machine.files import read_json, write_json
from vineppo.machine.saved_state import restoring
from vineppo.sample import Sample
from vineppo.types import Assigned, Credit, Group, Rollout, UserError, ValueEstimate, num_actions

STATE_FILE = "vines.json"


class Vines:
    Config = VinesConfig

    def __init__(self, config: VinesConfig, context: CreditContext):
        check_states(config.states, context.environment.params)
        self.config = config
        self.environment = context.environment
        self.gains = Gains(config.gae_lambda, config.baseline == "fitted")
        self._next_gains = self.gains  # once the iteration has been learnt from; a stop may throw it away

    def assign(self, groups: Sequence[Group], *, seed: int) -> Assigned:
        rollouts = [rollout for group in groups for rollout in group]
        paths = make_paths(rollouts, [state_boundaries(rollout, self.config.states) for rollout in rollouts])
        scores = [squared_scores(rollout) for rollout in rollouts]
        for path, of_tokens in zip(paths, scores, strict=True):
            score_segments(path, of_tokens)
        self.measure(paths, seed=seed)
        measured = [[node for node in path if not node.is_skipped] for path in paths]
        trails = [self.trail(*of_one) for of_one in zip(rollouts, measured, scores, strict=True)]
        credits = [self.credit(*of_one) for of_one in zip(rollouts, measured, trails, strict=True)]
        self._next_gains = self.gains.learn(trails, count_tokens(rollouts, paths))
        rest = iter(credits)
        by_group = [[next(rest) for _ in group] for group in groups]
        metrics = credit_metrics(by_group, first_advantages(credits))
        return Assigned(by_group, pool_metrics(paths, self.config.num_vines) | metrics)

    def measure(self, paths: Sequence[Sequence[Node]], *, seed: int) -> None:
        """Samples vines: all in one engine call, or layer by layer where what is above decides."""
        layers = by_depth(paths)
        if self.config.allocation == "even" and self.config.skip_settled == 1:
            layers = [[node for layer in layers for node in layer]]
        for layer in layers:
            for node in layer:
                node.is_skipped = self.is_settled(node)
                node.weight = weight_of(node, self.gains)
            self.sample({node: num for node in layer if (num := self.num_wanted(node))}, seed=seed)

    def is_settled(self, node: Node) -> bool:
        """Whether the last measured state above has vines that agree, and is near."""
        if self.config.skip_settled == 1 or node.above is None:
            return False
        last = node.above
        while last.is_skipped:
            assert last.above is not None
            last = last.above
        rewards = [*last.vine_rewards, *last.passing]
        return len(rewards) > 1 and len(set(rewards)) == 1 and node.depth - last.depth < self.config.skip_settled

    def num_wanted(self, node: Node) -> int:
        """Never by what anybody earned: by tokens before the state, by numbers, and by earlier iterations."""
        num, others = self.config.num_vines, len(node.rollouts) - 1
        if node.is_skipped:
            return 0
        if self.config.allocation == "lacking":
            return max(0, num - others - len(node.passing))
        if node.above is None:
            return 0 if others else num  # siblings cost nothing
        return num if self.config.allocation == "even" else num_worthwhile(self.gains, node, num)

    def sample(self, lacking: dict[Node, int], *, seed: int) -> None:
        if not lacking:
            return
        states, budgets = [node.state for node in lacking], [node.budget for node in lacking]
        vines = sample_vines(self.environment, states, budgets, list(lacking.values()), seed=seed)
        for node, of_node in zip(lacking, vines, strict=True):
            node.add_vines(of_node)

    def trail(self, rollout: Rollout, nodes: Sequence[Node], scores: Sequence[float]) -> Trail:
        """Rewards of vines that decided what is measured below are left out where the mean must not depend on that."""
        decides = self.config.skip_settled > 1
        pools = [node.rewards(rollout) for node in nodes]
        if not pools[0]:
            raise UserError("credit.num_vines = 0 leaves a response that is alone in its group without a baseline")
        end_pools = [[*node.vine_rewards, *node.sibling_rewards(rollout)] for node in nodes] if decides else pools
        cuts = cuts_of(rollout, nodes)
        return Trail(
            pools,
            end_pools,
            rollout.reward,
            [math.fsum(scores[start:end]) for start, end in pairwise(cuts)],
            [num_actions(rollout.token_ids[cut:], rollout.is_action[cut:]) for cut in cuts[:-1]],
        )

    def credit(self, rollout: Rollout, nodes: Sequence[Node], trail: Trail) -> Credit:
        boundaries = cuts_of(rollout, nodes)
        return Credit(
            boundaries,
            broadcast_to_tokens(segment_advantages(trail, self.gains), boundaries),
            values=(*filtered_values(trail, self.gains), rollout.reward),
            estimates=tuple(self.estimate(*pair) for pair in zip(nodes, trail.pools, strict=True)),
        )

    def estimate(self, node: Node, pool: Sequence[float]) -> ValueEstimate:
        """The pool, of which the first are the state's vines."""
        return ValueEstimate(
            node.state.problem.id,
            node.state.prefix_ids,
            tuple(pool),
            texts=self.environment.continuations(node.state, node.vines),
            num_truncated=sum(vine.completion.finish_reason == "length" for vine in node.vines),
        )

    def update(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        self.gains = self._next_gains
        return {}

    def memory(self) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        write_json(folder / STATE_FILE, {"positions": self.gains.positions, "num_tokens": self.gains.num_tokens})

    def load(self, folder: Path) -> None:
        path = folder / STATE_FILE
        state = read_json(path)
        with restoring(path, f"what {self.config.name} has saved"):
            positions = tuple(Sums(*map(float, row)) for row in state["positions"])
            num_tokens = float(state["num_tokens"])
            numbers = [number for row in positions for number in row] + [num_tokens]
            if not all(map(math.isfinite, numbers)) or num_tokens < 0 or any(row.count <= 0 for row in positions):
                raise ValueError("sums that no responses add up to")
        self.gains = self._next_gains = replace(self.gains, positions=positions, num_tokens=num_tokens)


def cuts_of(rollout: Rollout, nodes: Sequence[Node]) -> tuple[int, ...]:  # [S+1]
    return (*(len(node.state.response_ids) for node in nodes), len(rollout.token_ids))


def score_segments(path: Sequence[Node], scores: Sequence[float]) -> None:
    """By the squared scores of a response's tokens [L]; they are the same for all that run through a state."""
    for above, node in pairwise(path):
        node.score = math.fsum(scores[len(above.state.response_ids) : len(node.state.response_ids)])


def count_tokens(rollouts: Sequence[Rollout], paths: Sequence[Sequence[Node]]) -> int:
    """Sampled for all of this."""
    vines = [vine for node in unique(paths) for vine in node.vines]
    return sum(rollout.num_actions for rollout in rollouts) + sum(vine.num_actions for vine in vines)


def pool_metrics(paths: Sequence[Sequence[Node]], num_vines: int) -> dict[str, float]:
    nodes = unique(paths)
    vines = [vine for node in nodes for vine in node.vines]
    measured = [node for path in paths for node in path if not node.is_skipped]
    return {
        "credit/num_states": len(measured),
        "credit/num_states_merged": len(nodes),
        "credit/num_states_skipped": sum(node.is_skipped for node in nodes),
        "credit/num_vines": len(vines),
        "credit/num_vines_truncated": sum(vine.completion.finish_reason == "length" for vine in vines),
        "credit/num_vines_spared": num_vines * len(nodes) - len(vines),
        "credit/siblings_mean": fmean(len(node.rollouts) - 1 for node in measured),
        "credit/passing_vines_mean": fmean(len(node.passing) for node in measured),
    }
