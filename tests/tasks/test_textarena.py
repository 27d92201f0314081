"""Games of textarena: replayed exactly, or refused with the reason. What its absence says needs no package."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from ast import literal_eval
from typing import Any

import pytest

from vineppo.grading import Grader, GradingConfig
from vineppo.tasks.arena import Arena, arena, check_replays, contained, hints, in_a_line
from vineppo.tasks.episodes import play
from vineppo.tasks.textarena import TextArena, TextArenaConfig
from vineppo.transcript import Transcript
from vineppo.types import UserError

GAMES = {  # one of each family that runs without data from elsewhere, and an action that it takes
    "2048-v0-3x3": "[up]",
    "Bandit-v0": "[red]",
    "Blackjack-v0": "[stand]",
    "FrozenLake-v0-random": "[right]",
    "FifteenPuzzle-v0": "[up]",
    "GuessTheNumber-v0-hardcore": "[7]",
    "LightsOut-v0": "[0 0]",
    "Mastermind-v0": "[1 2 3 4]",
    "Minesweeper-v0-small": "[2 3]",
    "Secretary-v0": "[continue]",
    "Set-v0": "[1, 2, 3]",
}


def make_task(env: str, **knobs: Any) -> TextArena:
    pytest.importorskip("textarena")
    return TextArena(TextArenaConfig.model_validate({"env": env, "num_test": 4, "num_validation": 4, **knobs}))


def test_without_the_package_it_is_named():
    code = (
        "import sys; sys.modules['textarena'] = None\n"
        "from vineppo.tasks.textarena import TextArena, TextArenaConfig\n"
        "try: TextArena(TextArenaConfig(env='Mastermind-v0'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == 'UserError task textarena needs the package textarena: pip install "vineppo[textarena]"\n'


def test_the_tasks_are_listed_without_it():
    code = "import sys, vineppo.tasks; sys.exit('textarena' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_generators_are_put_back_and_what_is_printed_is_not_shown(capsys):
    import numpy as np

    with contained(5):
        first = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    with contained(5):
        assert (random.random(), np.random.random()) == first
        print("\x1b[2J")
    assert (random.random(), np.random.random()) == expected
    assert not capsys.readouterr().out


def test_a_reason_is_one_line():
    assert in_a_line(LookupError("\n*****\n  Resource words\n not found")) == "LookupError: Resource words not found"


@pytest.mark.parametrize("env", GAMES)
def test_a_game_goes_on_as_it_did_whoever_replays_it(env):
    """Turn by turn and at once, on an environment that played another game before and on a new one."""
    task = make_task(env)
    problem, other = task.sample(2, seed=0)
    assert task.sample(2, seed=0) == [problem, other]
    rng, tried = random.Random(0), [GAMES[env], *hints(problem.prompt)]
    said = play(task, problem, lambda actions: rng.choice(tried) if len(actions) < 8 else "nothing at all")
    play(task, other, lambda actions: rng.choice(tried) if len(actions) < 4 else "nothing at all")
    at_once = Arena(env).replay(problem.meta["seed"], said.actions)
    assert [f"\n{text}\n" for text in at_once.said[1:]][: len(said.replies)] == list(said.replies)
    assert at_once.reward == task.grade(problem, said).reward
    assert task.grade(problem, said).verdict in ("correct", "wrong")
    assert task.grade(problem, "").reward == 0
    assert task.grade(pickle.loads(pickle.dumps(problem)), said) == task.grade(problem, said)


@pytest.mark.parametrize("env", GAMES)
def test_a_legal_action_is_no_invalid_move(env):
    task = make_task(env)
    first = task.reply(task.sample(1, seed=0)[0], Transcript.of([GAMES[env]]))
    assert first is None or "invalid move" not in first


def test_replies_depend_on_the_actions_alone():
    task = make_task("Mastermind-v0")
    problem = task.sample(1, seed=0)[0]
    said = Transcript.of(["[1 2 3 4]", "4 black pegs", "[6 5 4 3]"])
    assert task.reply(problem, said) == task.reply(problem, Transcript.of(["[1 2 3 4]", "\n", "[6 5 4 3]"]))


def test_who_knows_the_code_wins_even_after_a_mistake():
    task = make_task("Mastermind-v0")
    for problem in task.split("test"):
        code = f"[{' '.join(map(str, literal_eval(problem.meta['content'])['secret_code']))}]"
        assert code not in problem.prompt
        assert task.grade(problem, code).verdict == "correct"
        assert task.reply(problem, Transcript.of([code])) is None
        assert task.grade(problem, Transcript.of(["gibberish", "", code])).reward == 1


def test_problems_of_the_splits_hide_different_things():
    task = make_task("Mastermind-v0")
    splits = [task.sample(20, seed=0), task.split("test"), task.split("validation")]
    contents = [{problem.meta["content"] for problem in problems} for problems in splits]
    assert len(set().union(*contents)) == sum(map(len, contents)) == 28
    with pytest.raises(UserError, match="num_problems"):
        task.split("train")


def test_it_is_graded_and_answers_in_processes_of_its_own():
    task = make_task("Mastermind-v0")
    problem = task.sample(1, seed=0)[0]
    said = Transcript.of(["[1 2 3 4]"])
    with Grader(task, GradingConfig(num_workers=1, timeout_s=60, memory_mb=4096)) as grader:
        assert grader.grade([(problem, said)]) == [task.grade(problem, said)]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ("RushHour-v0", "does not replay: the same seed and actions gave two games"),
        ("TicTacToe-v0", "is no game for one player"),
        ("QuantumTicTacToe-v0", "is no game for one player"),
        ("Wordl-v0", "has no such environment"),
        ("Debate-v0", "cannot be made: ValueError: OpenRouter API key not found"),
        ("ThreeCardMonte-v0", "fails: ValueError"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_reason(env, said, monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(UserError, match=said):
        make_task(env)


def test_a_game_that_draws_from_elsewhere_does_not_replay(monkeypatch):
    """Whatever the source: here the operating system's."""
    pytest.importorskip("textarena")
    used = arena("Mastermind-v0")
    monkeypatch.setattr(random, "choice", random.SystemRandom().choice)
    monkeypatch.setattr(random, "sample", random.SystemRandom().sample)
    with pytest.raises(UserError, match="does not replay"):
        check_replays(used.env_id)


def test_a_game_of_which_there_is_one_has_no_splits():
    with pytest.raises(UserError, match="distinct test problems exist"):
        make_task("TowerOfHanoi-v0").split("test")
