"""Pools by a walk down the tree of states, and by looking at every response from its first token."""

from __future__ import annotations

import pytest
from coin_walk import make_environment

from vineppo.credit.pooling import Node, by_depth, make_paths
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.seeding import derive_seed
from vineppo.types import Rollout

SAMPLING = SamplingConfig(prompts_per_iteration=3, group_size=6, max_new_tokens=10)


@pytest.fixture(scope="module")
def environment():
    return make_environment()


@pytest.fixture(scope="module")
def rollouts(environment) -> list[Rollout]:
    groups = sample_groups(environment, environment.task.sample(3, seed=1), SAMPLING, seed=2)
    return [rollout for group in groups for rollout in group]


@pytest.fixture(scope="module", params=[1, 2, 3], ids="states at every {}. token".format)
def paths(request, environment, rollouts) -> list[list[Node]]:
    """With two vines from every state."""
    cuts = [(*range(0, len(r.token_ids), request.param), len(r.token_ids)) for r in rollouts]
    paths = make_paths(rollouts, cuts)
    nodes = [node for layer in by_depth(paths) for node in layer]
    vines = environment.branch(
        [node.state for node in nodes],
        [node.budget for node in nodes],
        2,
        seed=lambda state, k: derive_seed(state.problem.id, state.prefix_ids, k),
        purpose="vine",
    )
    for node, of_node in zip(nodes, vines, strict=True):
        node.add_vines(of_node)
    return paths


def all_nodes(paths: list[list[Node]]) -> set[Node]:
    return {node for path in paths for node in path}


def begins_with(node: Node, problem: str, prefix_ids: tuple[int, ...]) -> bool:
    own = node.state.prefix_ids
    return problem == node.state.problem.id and prefix_ids[: len(own)] == own


def test_a_pool_is_every_response_that_begins_with_the_state_but_the_own(rollouts, paths):
    met = 0
    for rollout, path in zip(rollouts, paths, strict=True):
        for node in path:
            siblings = [
                other.reward
                for other in rollouts
                if other is not rollout and begins_with(node, other.problem.id, other.prompt_ids + other.token_ids)
            ]
            vines = [
                vine.grade.reward
                for root in all_nodes(paths)
                for vine in root.vines
                if len(root.state.prefix_ids) <= len(node.state.prefix_ids)
                and begins_with(node, root.state.problem.id, root.state.prefix_ids + vine.completion.token_ids)
            ]
            assert sorted(node.rewards(rollout)) == sorted(siblings + vines)
            met += len(node.passing)
    assert met > 0


def test_equal_states_are_one_and_different_ones_are_not(rollouts, paths):
    keys = {(node.state.problem.id, node.state.prefix_ids) for node in all_nodes(paths)}
    assert len(keys) == len(all_nodes(paths)) < sum(map(len, paths))
    assert all(node.state.prefix_ids[len(rollout.prompt_ids) :] == rollout.token_ids[: len(node.state.response_ids)]
               for rollout, path in zip(rollouts, paths, strict=True) for node in path)  # fmt: skip


def test_layers_hold_every_node_once_below_what_is_above_it(paths):
    layers = by_depth(paths)
    assert sorted(map(id, [node for layer in layers for node in layer])) == sorted(map(id, all_nodes(paths)))
    for depth, layer in enumerate(layers):
        assert all(
            node.depth == depth and (node.above in layers[depth - 1] if depth else not node.above) for node in layer
        )


def test_responses_of_other_budgets_do_not_meet(rollouts):
    shorter = [Rollout(**{**vars(r), "max_new_tokens": r.max_new_tokens - 1}) for r in rollouts[:6]]
    both = [*rollouts[:6], *shorter]
    for path in make_paths(both, [r.boundaries for r in both]):
        assert len({r.max_new_tokens for node in path for r in node.rollouts}) == 1
