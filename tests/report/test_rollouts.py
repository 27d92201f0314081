"""Which rollouts a page takes, and the credit that it works out for them."""

from __future__ import annotations

from collections import Counter

import pytest
from run_folder import rollout

from vineppo.credit.grpo import GRPO, GRPOConfig
from vineppo.credit.rloo import RLOO, RLOOConfig
from vineppo.report.rollouts import BUDGET, evenly, read_rollouts
from vineppo.types import Completion, Problem, Rollout


def graded(reward: float) -> Rollout:
    completion = Completion((1,), (0.0,), "eos", 0)
    return Rollout(Problem("p", "", ""), (0,), completion, "", reward, "correct", (0, 1), 8)


@pytest.mark.parametrize("rewards", [[1.0, 0.0], [1.0, 0.0, 0.0, 0.5], [0.25, 1.0, 1.0], [0.1] * 3])
def test_a_group_gives_the_credit_that_the_estimators_give(write_run, rewards):
    group = [graded(reward) for reward in rewards]
    folder = write_run(rollouts=lambda i: [rollout("p", reward, [0.5]) for reward in rewards]) / "rollouts"
    shown = read_rollouts(folder, BUDGET)["shown"][: len(rewards)]
    for name, estimator in (
        ("grpo", GRPO(GRPOConfig())),
        ("centred", GRPO(GRPOConfig(divide_by_std=False))),
        ("rloo", RLOO(RLOOConfig())),
    ):
        (credits,) = estimator.assign([group], seed=0).credits
        assert [r[name] for r in shown] == pytest.approx([credit.advantages[0] for credit in credits], abs=1e-4)


def test_small_runs_are_shown_whole(write_run):
    found = read_rollouts(write_run() / "rollouts", BUDGET)
    assert len(found["shown"]) == 15
    assert found["iterations"] == [1, 2, 3]
    first = found["shown"][0]
    assert (first["iteration"], first["rloo"]) == (1, 1.0)
    assert first["grpo"] == pytest.approx(2**0.5, abs=1e-3)
    assert first["vines"][0][1] == {"text": "\nvine of 1+1 ", "reward": 0.0}


def test_large_runs_keep_whole_groups_of_every_iteration(write_run):
    def many(iteration):
        return [rollout(f"{iteration}+{p}", float(g % 2), [0.5]) for p in range(20) for g in range(4)]

    folder = write_run(rollouts=many) / "rollouts"
    size = sum(path.stat().st_size for path in folder.iterdir())
    shown = read_rollouts(folder, size // 4)["shown"]
    assert Counter(rollout["iteration"] for rollout in shown) == {1: 20, 2: 20, 3: 20}
    assert set(Counter(rollout["problem"] for rollout in shown).values()) == {4}


def test_a_response_without_siblings_has_no_sibling_credit(write_run):
    folder = write_run(rollouts=lambda i: [rollout("alone", 1.0, [0.5])]) / "rollouts"
    assert {(r["grpo"], r["rloo"]) for r in read_rollouts(folder, BUDGET)["shown"]} == {(None, None)}


def test_older_files_without_vines_and_torn_ones(write_run):
    folder = write_run() / "rollouts"
    torn = folder / "iteration-000002.jsonl.gz"
    torn.write_bytes(torn.read_bytes()[:60])
    found = read_rollouts(folder, BUDGET)
    (note,) = found["damaged"]
    assert note.startswith(f"rollouts/{torn.name}: torn or damaged after line ")
    assert {rollout["iteration"] for rollout in found["shown"]} == {1, 3}


def test_evenly():
    assert evenly(range(5), 9) == [0, 1, 2, 3, 4]
    assert evenly(range(101), 3) == [0, 50, 100]
    assert evenly(range(10), 1) == [0]
