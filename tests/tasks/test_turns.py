"""What every task that takes turns must satisfy: replies follow from the problem and the actions, whoever asks."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from vineppo.models.make import make_symbol_tokenizer
from vineppo.protocols import HasSymbols, TakesTurns, Task
from vineppo.tasks.episodes import play
from vineppo.tasks.game import Game, GameConfig
from vineppo.tasks.web import Web, WebConfig
from vineppo.transcript import Transcript, turns_of
from vineppo.types import Problem, UserError

MAKE: dict[str, Callable[..., Any]] = {
    "guess": lambda **knobs: Game(GameConfig(**{"game": "guess", "num_test": 40, **knobs})),
    "keydoor": lambda **knobs: Game(GameConfig(**{"game": "keydoor", "num_test": 40, **knobs})),
    "web": lambda **knobs: Web(WebConfig(**{"num_test": 40, **knobs})),
}
ILLEGAL = ("", "x", "abcabc", " \n", "click[Z]", "back back", "n s", "buy?", "数", "\x00", "search[", "N", "ab cd")

pytestmark = pytest.mark.parametrize("name", MAKE)


def once(mistake: str, place: int, player: Callable[[Sequence[str]], str]) -> Callable[[Sequence[str]], str]:
    """A player who makes one mistake, at its action number `place`."""
    return lambda actions: mistake if len(actions) == place else player(actions)


def wanderer(task: Any, rng: random.Random) -> Callable[[Sequence[str]], str]:
    """Writes what the task's texts are made of, what it does not know, and a demonstrator's actions."""
    known = [action for problem in task.sample(5, seed=9) for action in problem.solution.actions]
    return lambda actions: rng.choice([rng.choice(known), rng.choice(ILLEGAL), "".join(rng.choices(task.symbols, k=3))])


def with_a_turn_left(task: Any) -> list[Problem]:
    """Test problems whose worked solution needs more than one action and not all: a guess may be a lucky one or not."""
    problems = task.split("test")
    limit = len(play(task, problems[0], lambda actions: "").actions)
    found = [problem for problem in problems if 1 < len(problem.solution.actions) < limit]
    assert len(found) > 20
    return found


def wanderings(task: Any, n: int) -> list[tuple[Problem, Transcript]]:
    rng = random.Random(0)
    return [(problem, play(task, problem, wanderer(task, rng))) for problem in task.sample(n, seed=3)]


def test_it_is_a_task_that_takes_turns_and_lists_its_symbols(name):
    task = MAKE[name]()
    assert isinstance(task, Task)
    assert isinstance(task, TakesTurns)
    assert isinstance(task, HasSymbols)


def test_the_demonstrators_replies_are_the_environments(name):
    task = MAKE[name](slip_share=0.5)
    for problem in [*task.sample(60, seed=0), *task.split("test")]:
        turns = problem.solution.turns
        for n in range(1, len(turns) + 1, 2):
            reply = task.reply(problem, Transcript.of(turns[:n]))
            assert reply == (turns[n] if n < len(turns) else None)
            assert reply != ""


def test_replies_and_grades_depend_on_the_actions_alone(name):
    """Not on what stands where a reply was, nor on who asks, nor on what was asked before."""
    task, other = MAKE[name](), MAKE[name]()
    for problem, said in wanderings(task, 30):
        forged = Transcript.of([turn if i % 2 == 0 else "won ==== key buy\n" for i, turn in enumerate(said.turns)])
        elsewhere = pickle.loads(pickle.dumps(problem))
        for n in range(len(said.turns), 0, -2):
            reply = task.reply(problem, Transcript.of(said.turns[:n]))
            assert task.reply(problem, Transcript.of(forged.turns[:n])) == reply
            assert other.reply(elsewhere, Transcript.of(said.turns[:n])) == reply
        assert task.grade(problem, forged) == other.grade(elsewhere, said)


def test_an_action_that_forges_a_reply_is_one_action_that_cannot_be_read(name):
    """The whole of a won game in one turn is answered as anything unreadable is, and earns nothing."""
    task = MAKE[name]()
    for problem in with_a_turn_left(task):
        unreadable = task.reply(problem, Transcript.of(["?"]))
        assert task.reply(problem, Transcript.of([str(problem.solution)])) == unreadable
        assert task.grade(problem, str(problem.solution)).reward == 0
        two_turns = Transcript.of([str(problem.solution), unreadable, *turns_of(problem.solution)])
        assert task.grade(problem, two_turns).verdict == "correct"


def test_illegal_actions_are_answered_and_can_be_repaired(name):
    """The reply says so, nothing has changed, and the same actions still win after it."""
    task = MAKE[name]()
    for problem in with_a_turn_left(task):
        for action in ILLEGAL:
            reply = task.reply(problem, Transcript.of([action]))
            assert reply.startswith((" is no", " is not"))
            assert task.grade(problem, Transcript.of([action, reply, *turns_of(problem.solution)])).verdict == "correct"


def test_an_episode_ends_though_nothing_is_ever_done(name):
    task = MAKE[name]()
    problem = task.sample(1, seed=0)[0]
    said = play(task, problem, lambda actions: "")
    assert 1 < len(said.actions) < 20
    assert task.grade(problem, said).reward == 0
    assert task.answer(said) is None
    longer = Transcript.of([*said.turns, "anything", *turns_of(problem.solution)])  # what comes after the end
    assert task.grade(problem, longer) == task.grade(problem, said)
    assert task.answer(longer) == task.answer(said)


def test_the_worked_solution_grades_best_and_nothing_worst(name):
    task = MAKE[name]()
    for problem in [*task.split("test"), *task.split("validation")[:40]]:
        assert task.grade(problem, problem.solution).reward == 1
        assert task.grade(problem, "").reward == 0
        assert task.grade(problem, "").verdict == "unparseable"
    assert all(0 <= task.grade(problem, said).reward <= 1 for problem, said in wanderings(task, 60))


def test_what_a_response_comes_to_is_right_where_it_is_the_answer(name):
    """Majority voting rests on it."""
    task, graded = MAKE[name](slip_share=0.8), 0
    pairs = [(problem, problem.solution) for problem in task.sample(60, seed=1)]
    for problem, said in [*pairs, *wanderings(task, 60)]:
        if task.grade(problem, said).verdict in ("correct", "wrong"):
            graded += 1
            found = task.answer(said)
            assert found is not None
            assert task.grade(replace(problem, answer=found), said).verdict == "correct"
    assert graded > 30


def test_the_answer_cannot_be_read_off_the_prompt(name):
    assert not any(problem.answer in problem.prompt for problem in MAKE[name]().split("test"))


def test_texts_are_made_of_symbols(name):
    task = MAKE[name](prompt_template="Play!\n{prompt}")
    tokenizer, longest = make_symbol_tokenizer(task.symbols), 0
    for problem in task.sample(100, seed=2):
        ids = tokenizer.encode(problem.prompt + problem.solution)
        assert tokenizer.decode(ids) == problem.prompt + problem.solution
        longest = max(longest, len(ids) + len(problem.solution.actions))  # each ends with eos
    assert problem.prompt.startswith("Play!\n")
    assert longest < 400


def test_a_turn_is_one_segment(name):
    task = MAKE[name]()
    for problem in task.sample(5, seed=0):
        assert not any(task.segment(action[:n]) for action in problem.solution.actions for n in range(len(action) + 1))


def test_problems_repeat_are_distinct_and_stay_in_their_splits(name):
    task = MAKE[name]()
    train = task.sample(200, seed=5)
    assert train == MAKE[name]().sample(200, seed=5) != task.sample(200, seed=6)
    assert [problem.solution.turns for problem in train] == [p.solution.turns for p in task.sample(200, seed=5)]
    assert task.split("test") == MAKE[name]().split("test")
    splits = [train, task.split("test"), task.split("validation")]
    assert [len(problems) for problems in splits] == [200, 40, 500]
    assert all(len({problem.id for problem in problems}) == len(problems) for problems in splits)
    prompts = [{problem.prompt for problem in problems} for problems in splits]
    assert len(set().union(*prompts)) == sum(map(len, prompts))
    with pytest.raises(UserError, match="num_problems"):
        task.split("train")


def test_the_demonstrator_errs_as_told(name):
    """More slips, fewer wins; without any every game is won."""
    wins = []
    for slip_share in (0.0, 0.4, 1.0):
        task = MAKE[name](slip_share=slip_share)
        problems = task.sample(150, seed=0)
        wins.append(sum(task.grade(problem, problem.solution).verdict == "correct" for problem in problems) / 150)
    assert wins[0] == 1 > wins[1] > wins[2] + 0.2
    assert wins[2] < 0.25


def test_a_random_player_rarely_wins(name):
    """Whose every action is a legal one: in less than a quarter of the games; of what is no action at all: never."""
    rng, task = random.Random(1), MAKE[name](slip_share=1.0)
    lucky = [task.grade(problem, problem.solution).verdict == "correct" for problem in task.sample(300, seed=2)]
    assert sum(lucky) / 300 < 0.25
    soup = [(p, play(task, p, lambda actions: "".join(rng.choices(task.symbols, k=6)))) for p in task.split("test")]
    assert sum(task.grade(problem, said).verdict == "correct" for problem, said in soup) <= 1
