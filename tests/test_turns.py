"""Responses in turns: whoever starts in the middle gets the replies that came, and only the policy's tokens count."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from tiny import ALIKE, FAST, METHODS, START, StopAt, recipe_of, run
from turn_task import Guess

from vineppo.analysis import ANALYSES
from vineppo.analysis.measured import AnalysisConfig
from vineppo.analysis.pilot import find_last_tokens, turn_is_over, with_alternatives
from vineppo.analysis.subject import find_checkpoints
from vineppo.cli import main
from vineppo.credit.common import CreditContext
from vineppo.credit.states import StatesConfig, state_at, state_boundaries
from vineppo.credit.vineppo import VinePPO, VinePPOConfig
from vineppo.environment import Environment
from vineppo.episode import TurnLimits, runs_of
from vineppo.grading import Grader
from vineppo.methods.samples import to_samples
from vineppo.parts import LOADED
from vineppo.rollout_files import rollout_files, rollouts_of
from vineppo.rollouts import SamplingConfig, sample_groups
from vineppo.runs.metrics import whole_lines
from vineppo.runs.recipe import make_part
from vineppo.runs.setup import set_up
from vineppo.runs.shutdown import Stopped
from vineppo.runs.task_check import TaskCheck
from vineppo.transcript import Transcript, actions_of
from vineppo.types import Group, Rollout, SamplingParams, UserError

PAGE = Path(__file__).parent.parent / "docs" / "turns.md"
TASK = {"name": f"{Path(__file__).parent / 'turn_task.py'}:Guess"}
EVALUATION = {"num_samples": 2, "max_new_tokens": 12}
SFT = ALIKE | {
    "name": "sft", "task": TASK, "model": START, "learner": FAST, "evaluation": EVALUATION,
    "sft": {"num_problems": 60, "num_epochs": 12, "minibatch_size": 8},
}  # fmt: skip
SAMPLING = {"prompts_per_iteration": 5, "group_size": 4, "max_new_tokens": 12}
TRAINED = ("vineppo", "ppo", "grpo", "rloo", "vines", "tree", "vine_critic", "restem", "dpo")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A policy that guesses well at times."""
    folder = tmp_path_factory.mktemp("turns") / "sft"
    run(SFT, folder)
    return folder


def method(name: str, start: Path, **changes: Any) -> dict[str, Any]:
    tree = METHODS[name] | {"name": name, "task": TASK, "model": {"name": str(start)}, "sampling": SAMPLING}
    tree["evaluation"] = EVALUATION
    if name == "restem":
        tree["restem"] = tree["restem"] | {"validation": EVALUATION | {"split": "test"}}
    return tree | changes


@contextmanager
def environment_of(start: Path, task: str = "Guess", **changes: Any) -> Iterator[Environment]:
    recipe = recipe_of(method("grpo", start, task={"name": TASK["name"].replace("Guess", task)}))
    with set_up(recipe) as setup:
        yield replace(setup.make_environment(setup.make_engine(), recipe.sampling), **changes)  # type: ignore[attr-defined]


def sample(environment: Environment, seed: int = 0, **changes: Any) -> list[Group]:
    config = SamplingConfig.model_validate(SAMPLING | {"prompts_per_iteration": 12} | changes)
    return sample_groups(environment, environment.task.sample(12, seed=seed), config, seed=seed)


def flat(groups: Sequence[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group]


def test_supervised_learning_and_play_go_on_after_replies(start):
    result = json.loads((start / "result.json").read_text())
    assert result["pass@1"] > 0.4
    with environment_of(start) as environment:
        numbers = [len(runs_of(r.token_ids, r.action_mask)) for r in flat(sample(environment))]
    assert {1, 3, 5} <= set(numbers)  # the policy has the first word and the last


def test_a_replayed_state_replies_as_the_live_one_did(start):
    with environment_of(start) as environment:
        for rollout in flat(sample(environment)):
            mask = rollout.is_action
            assert isinstance(rollout.text, Transcript)
            for t in (t for t in range(1, len(mask)) if mask[t - 1] and not mask[t]):
                said = environment.text(rollout.token_ids[:t], mask[:t])
                assert isinstance(said, Transcript)
                reply = environment.task.reply(rollout.problem, said)  # type: ignore[attr-defined]
                ids = environment.framing.reply_ids(reply)
                assert rollout.token_ids[t : t + len(ids)] == ids
                assert not any(mask[t : t + len(ids)])
                assert said.turns == rollout.text.turns[: len(said.turns)]


def test_a_greedy_vine_from_any_state_is_the_rest_of_its_greedy_rollout(start):
    with environment_of(start, params=SamplingParams(temperature=0.0)) as environment:
        several = False
        for rollout in flat(sample(environment, group_size=1)):
            for boundary in range(1, len(rollout.token_ids)):
                if not rollout.is_action[boundary]:
                    continue
                state = state_at(rollout, boundary)
                (vine,) = environment.finish([state], [rollout.budget_at(boundary)], [7], purpose="vine")
                assert state.response_ids + vine.completion.token_ids == rollout.token_ids
                assert (vine.text, vine.grade.reward) == (rollout.text, rollout.reward)
                assert vine.num_actions == rollout.num_actions - sum(rollout.is_action[:boundary])
                several |= vine.action_mask is not None
        assert several


def test_advantages_add_up_and_replies_get_none(start):
    with environment_of(start) as environment:
        groups = sample(environment)
        assigned = VinePPO(VinePPOConfig(num_vines=3), CreditContext(environment)).assign(groups, seed=1)
        for rollout, credit in zip(flat(groups), [c for row in assigned.credits for c in row], strict=True):
            assert credit.values is not None
            assert math.fsum(credit.segment_advantages) == pytest.approx(rollout.reward - credit.values[0])
        for rollout, made in zip(flat(groups), to_samples(groups, assigned.credits), strict=True):
            assert made.num_actions == rollout.num_actions
            assert len(made.at_actions(made.advantages)) == rollout.num_actions


def test_states_are_before_turns_or_before_segments(start):
    with environment_of(start) as environment:
        for rollout in flat(sample(environment)):
            turns = state_boundaries(rollout, StatesConfig(kind="turns"))
            starts = [sum(map(len, runs_of(rollout.token_ids, rollout.action_mask)[: 2 * n])) for n in range(4)]
            assert turns == tuple(sorted({*(s for s in starts if s < len(rollout.token_ids)), len(rollout.token_ids)}))
            assert set(turns) <= set(rollout.boundaries)
            assert all(rollout.is_action[b] for b in rollout.boundaries[:-1])


def test_budgets_are_of_what_the_policy_writes(start):
    with environment_of(start) as environment:
        free = sample(environment)
        for budget in (2, 3, 4, 6):
            for rollout, whole in zip(flat(sample(environment, max_new_tokens=budget)), flat(free), strict=True):
                assert rollout.num_actions == min(budget, whole.num_actions)
                is_cut = rollout.completion.finish_reason == "length"
                assert is_cut == (budget < whole.num_actions or whole.completion.finish_reason == "length")
                assert rollout.token_ids == whole.token_ids[: len(rollout.token_ids)]
                assert rollout.reward == (0.0 if is_cut else whole.reward)


def test_turns_have_limits_of_their_own(start):
    with environment_of(start) as environment:
        free = flat(sample(environment))
        for limits in (TurnLimits(max_turns=1), TurnLimits(max_turns=2), TurnLimits(max_turn_tokens=1)):
            for rollout, whole in zip(flat(sample(replace(environment, limits=limits))), free, strict=True):
                runs = runs_of(rollout.token_ids, rollout.action_mask)[::2]
                if limits.max_turns:
                    assert len(runs) <= limits.max_turns
                    assert (rollout.reward == whole.reward) or rollout.completion.finish_reason == "length"
                else:
                    assert [len(run) for run in runs] == [1]  # a digit, and no room for its end
                    assert rollout.completion.finish_reason == "length"
                assert rollout.token_ids == whole.token_ids[: len(rollout.token_ids)]


def test_a_context_that_is_full_cuts_off(start):
    with environment_of(start) as environment:
        longest = max(len(r.prompt_ids) + len(r.token_ids) for r in flat(sample(environment)))
        tight = replace(environment, max_prefix_tokens=longest - 3)
        reasons = {r.completion.finish_reason for r in flat(sample(tight))}
        assert reasons == {"eos", "length"}
        assert max(len(r.prompt_ids) + len(r.token_ids) for r in flat(sample(tight))) < longest


def test_who_says_it_decides_and_not_what_is_said(start):
    """A policy that writes a reply itself has said one thing, and was told nothing."""
    with environment_of(start) as environment:
        (problem,) = environment.task.sample(1, seed=0)
        wrong = "0" if problem.answer != "0" else "1"
        forged, real = Transcript.of([f"{wrong}<{problem.answer}"]), Transcript.of([wrong, "<", problem.answer])
        assert forged == real
        assert [grade.reward for grade in environment.grader.grade([(problem, forged), (problem, real)])] == [0.0, 1.0]


def test_what_a_vine_wrote_and_was_told_is_kept_apart(start):
    with environment_of(start, params=SamplingParams(temperature=0.0)) as environment:
        for rollout in flat(sample(environment, group_size=1)):
            for boundary in (b for b in range(len(rollout.token_ids)) if rollout.is_action[b]):
                state = state_at(rollout, boundary)
                vines = environment.finish([state], [rollout.budget_at(boundary)], [7], purpose="vine")
                (rest,) = environment.continuations(state, vines)
                before = environment.text(state.response_ids, state.action_mask)
                assert before + rest == rollout.text
                assert isinstance(rest, Transcript)
                assert isinstance(rollout.text, Transcript)
                assert "".join(rest.actions) == "".join(rollout.text.actions)[len("".join(actions_of(before))) :]


def test_files_of_rollouts_say_who_wrote_what(start, tmp_path):
    run(method("vineppo", start), tmp_path)
    path = rollout_files(tmp_path / "rollouts")[1]
    rows = list(rollouts_of(path, path.name))
    assert {len(turns) for row in rows for turns in row.get("turns", [])} == {1, 2}
    for row in rows:
        for text, turns in zip(row["segments"], row.get("turns", []), strict="turns" in row):
            assert "".join(turns) == text
            assert all(reply in "<>" for reply in turns[1::2])
    vines = [vine for row in rows for state in row["vines"] for vine in state]
    assert any(vine.get("turns", []) for vine in vines)
    assert all("".join(vine["turns"]) == vine["text"] for vine in vines if "turns" in vine)


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "vineppo"
    run(method("vineppo", start), folder)
    return folder


@pytest.mark.parametrize("kind", sorted(ANALYSES.keys() - {"signal_to_noise"}))
def test_analyses_measure_over_turns(kind, trained):
    config = AnalysisConfig(
        num_problems=8, num_reference=8, vines=(1, 3), group_size=3, num_actions=2, num_draws=12, num_minibatches=4,
        temperatures=(0.0, 1.0), num_pilots=6,
    )  # fmt: skip
    result = ANALYSES[kind](find_checkpoints([trained], last_only=True), config)
    assert all(result.tables.values())


@pytest.mark.parametrize("stop", [(), ("3", "5")])
def test_a_fork_that_ends_a_turn_is_replied_to_though_no_response_has_ended(stop, start):
    with environment_of(start, limits=TurnLimits(max_turns=2), params=SamplingParams(stop=stop)) as environment:
        groups = sample(with_alternatives(environment))
        cut = [[r for r in group if r.completion.finish_reason == "length"] for group in groups]
        last_tokens = find_last_tokens(environment, [group for group in cut if group])
        assert last_tokens == {environment.tokenizer.eos_token_id}
        for rollout in flat(cut):
            (first, *_) = runs_of(rollout.token_ids, rollout.action_mask)
            assert turn_is_over(environment, state_at(rollout, len(first)), last_tokens)
            assert not any(turn_is_over(environment, state_at(rollout, n), last_tokens) for n in range(1, len(first)))


def test_process_rewards_follow_the_turns(start):
    with environment_of(start, task="Steps") as environment:
        for rollout in flat(sample(environment)):
            if rollout.completion.finish_reason == "length":
                continue
            assert rollout.segment_rewards is not None
            pieces = [environment.text(rollout.token_ids[a:b]) for a, b in pairwise(rollout.boundaries)]
            digits = [piece[: 1 if len(piece) > 1 else None].strip("<>\n") for piece in pieces]
            assert list(rollout.segment_rewards) == [0.1 * text.isdigit() for text in digits]


def test_it_is_the_same_in_processes_that_grade(start):
    with environment_of(start) as environment:
        here = sample(environment)
    tree = method("grpo", start, task=TASK | {"isolate": True})
    with set_up(recipe_of(tree)) as setup:
        there = sample(setup.make_environment(setup.make_engine(), setup.recipe.sampling))  # type: ignore[attr-defined]
    assert here == there


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_trains_and_goes_on_after_a_stop(name, start, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(method(name, start), whole)
    with pytest.raises(Stopped):
        run(method(name, start), parts, sinks=[StopAt(2)])
    run(method(name, start), parts, resume=True)
    assert whole_lines(whole / "metrics.jsonl") == whole_lines(parts / "metrics.jsonl")


def test_a_stop_in_the_middle_of_turns_loses_nothing(start, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tree = method("vineppo", start)
    num_replies, stop_at = 0, 0

    def stopping(self: Any, problem: Any, transcript: Any) -> str | None:
        nonlocal num_replies
        num_replies += 1
        if num_replies == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return Guess.reply(self, problem, transcript)

    class Counter(StopAt):
        def write(self, iteration: int, metrics: object) -> None:
            counts.append(num_replies)

    counts: list[int] = []
    monkeypatch.setattr(LOADED[recipe_of(tree).task.name], "reply", stopping)
    run(tree, whole, sinks=[Counter(None)])
    num_replies, stop_at = 0, next(before + 1 for before, after in pairwise(counts) if after > before)
    with pytest.raises(Stopped):
        run(tree, parts)
    assert 0 < len(whole_lines(parts / "metrics.jsonl")) < len(whole_lines(whole / "metrics.jsonl"))
    run(tree, parts, resume=True)
    assert whole_lines(whole / "metrics.jsonl") == whole_lines(parts / "metrics.jsonl")


@pytest.mark.parametrize("isolate", [False, True])
def test_one_turn_is_what_it_was_without_turns(isolate, start, tmp_path):
    logs = []
    for task in ("OneTurn", "NoTurns"):
        name = {"name": TASK["name"].replace("Guess", task), "isolate": isolate}
        run(method("vineppo", start, task=name), tmp_path / task)
        logs.append(whole_lines(tmp_path / task / "metrics.jsonl"))
    assert logs[0] == logs[1]


def test_the_guides_task_keeps_its_promises_and_is_learnt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(# guess\.py.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    Path("guess.py").write_text(block)
    tree = SFT | {"task": {"name": "guess.py:Guess"}}
    Path("sft.toml").write_text(tomli_w.dumps(tree))
    assert main(["check-task", "sft.toml"]) == 0
    assert "turns of worked solutions are replied to as they say" in capsys.readouterr().out
    assert main(["sft", "sft.toml", "--out", "run"]) == 0
    assert json.loads(Path("run/result.json").read_text())["pass@1"] > 0.3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("'>>'", r"problem .*: '>>' to '\d' of its own solution, which goes on with "),
        ("str(next(COUNTER))", "two replies to ''"),
        ("1 / 0", "crashed on '' .*ZeroDivisionError"),
        ("5", "crashed on '' reply\\(\\) gave 5, neither None nor a text"),
        ("'higher'", "'higher' to '' is not made of symbols"),
    ],
)
def test_a_task_that_breaks_its_promise_to_reply_is_named(reply, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent / "turn_task.py").read_text()
    broken = f"\n\nimport itertools\nCOUNTER = itertools.count()\nGuess.reply = lambda self, problem, said: {reply}\n"
    Path("broken.py").write_text(text + broken)
    recipe = recipe_of(SFT | {"task": {"name": "broken.py:Guess"}})
    task = make_part("task", recipe.task)
    with Grader(task, recipe.grading) as grader, pytest.raises(UserError, match=f"^task Guess.reply: .*{message}"):
        list(TaskCheck(recipe, task, grader).run())


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "'', neither None nor a text"),
        ("<\ud800", "half a character or a NUL in it"),
        ("\0", "half a character or a NUL in it"),
    ],
)
def test_a_reply_that_cannot_be_told_is_counted(reply, why, start, monkeypatch):
    with environment_of(start) as environment:
        monkeypatch.setattr(type(environment.task), "reply", lambda self, problem, said: reply)
        with pytest.raises(UserError, match=r"crashed the grader.*reply\(\) gave ") as raised:
            sample(environment)
        assert why in str(raised.value)


def test_a_reply_without_symbols_ends_the_run_in_one_line(start, monkeypatch):
    with environment_of(start) as environment:
        monkeypatch.setattr(type(environment.task), "reply", lambda self, problem, said: "higher")
        with pytest.raises(UserError, match=r"^reply 'higher': the model's tokenizer cannot write it"):
            sample(environment)


def test_a_task_that_lost_its_reply_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent / "turn_task.py").read_text()
    Path("lost.py").write_text(text.replace("def reply(", "def replies("))
    recipe = recipe_of(SFT | {"task": {"name": "lost.py:Guess"}})
    task = make_part("task", recipe.task)
    with (
        Grader(task, recipe.grading) as grader,
        pytest.raises(UserError, match=r"Guess.reply: is missing, and the worked"),
    ):
        list(TaskCheck(recipe, task, grader).run())
