"""Functions of the user's give rewards, whichever of three conventions they follow, and what is wrong is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomli_w
from tiny import FAST, METHODS, MODULO_3, SFT, Tree, run

from vineppo.cli import main
from vineppo.config import read_toml
from vineppo.grading import Grader, GradingConfig
from vineppo.parts import load_function
from vineppo.tasks.arithmetic import Arithmetic, ArithmeticConfig
from vineppo.tasks.qa import QA, QAConfig
from vineppo.types import Grade, Problem

FILE = Path(__file__).parent / "reward_functions.py"
CONSTANT = {"lr": 1e-3, "schedule": "constant", "warmup_ratio": 0}
RECORD = {"question": "Capital?", "city": "Oslo", "country": "Norway", "info": {"level": 3}, "year": 7}
PROBLEM = Problem("qa/train/0", "Q: Capital?\n", "Oslo", meta=RECORD)


def named(function: str) -> str:
    load_function(f"{FILE}:{function}", "test")
    return f"{FILE}:{function}"


def task_of(*functions: str, **options) -> QA:
    rewards = {function: {"function": named(function)} for function in functions}
    return QA(QAConfig.model_validate({"path": "none", "answer": "city", "rewards": rewards} | options))


@pytest.mark.parametrize(
    ("function", "response", "reward"),
    [
        ("trl_length", "in Oslo", 7.0),
        ("trl_city", "in Oslo", 1.0),
        ("trl_city", "in Rome", 0.0),
        ("trl_some", "Norway", 1.0),
        ("trl_async", "", 1.0),
        ("rubric_answer", "in Oslo", 1.0),
        ("rubric_async", "", 0.25),
        ("short", "in Oslo", 1.0),
        ("own_box", r"\boxed{Oslo}", 1.0),
        ("tiny", "", 0.5),
        ("scorer", "in Oslo", 3.0),
    ],
)
def test_every_convention_gives_its_reward_alone_and_by_name(function, response, reward):
    verdict = "correct" if reward >= 0.5 else "wrong"
    alone = QA(QAConfig(path="none", answer="city", grader=named(function)))
    assert alone.grade(PROBLEM, response) == Grade(reward, verdict)
    grade = task_of(function).grade(PROBLEM, response)
    assert grade == Grade(reward, verdict, named_rewards={function: reward})


def test_the_reward_is_the_weighted_sum_with_graders_among_them():
    rewards = {
        "right": {"function": "exact", "weight": 0.75},
        "length": {"function": named("trl_length"), "weight": -0.125},
        "land": {"function": named("trl_some")},
    }
    task = QA(QAConfig.model_validate({"path": "none", "answer": "city", "rewards": rewards, "correct_from": 0.25}))
    assert task.grade(PROBLEM, "Oslo") == Grade(0.25, "correct", named_rewards={"right": 1, "length": 4, "land": 0})
    unknown = Problem("p", "", "Oslo", meta=RECORD | {"country": None})  # TRL's None: it does not apply
    assert task.grade(unknown, "Oslo!") == Grade(-0.625, "wrong", named_rewards={"right": 0, "length": 5})


def test_a_vote_takes_the_place_of_the_gold_field_too():
    """Else majority voting would compare an answer with the gold one."""
    task = task_of("trl_city")
    assert task.grade(Problem("p", "", "Rome", meta=RECORD), "Rome").verdict == "correct"


def test_messages_are_a_chat_of_the_bare_question():
    task = task_of("trl_chat", messages=True)
    assert task.grade(PROBLEM, "Oslo").reward == 1.5
    assert task.grade(Problem("p", "Q?", "Oslo", meta=RECORD | {"question": "none"}), "Oslo").reward == 0.5


WRONG = [
    ("two_for_one", r"two_for_one must give a list of one number for one completion, not list \[1.0, 1.0\]"),
    ("bare_number", "bare_number must give a list of one number for one completion, not float 1.0"),
    ("nothing", "nothing must give a finite number, not NoneType None"),
    ("text", "text must give a finite number, not str '1.0'"),
    ("not_a_number", "not_a_number must give a finite number, not float nan"),
    ("wants_more", "wants_more wants steps; there are answer, city, completion, country, info, prompt, question"),
    ("wants_tokens", "wants_tokens wants completion_ids; there are"),
    ("fails", r"reward_functions.py:\d+: IndexError: string index out of range"),
]


@pytest.mark.parametrize("isolated", [False, True])
def test_what_is_wrong_is_a_crash_that_says_why(isolated):
    for function, why in WRONG:
        task = task_of(function)
        assert task.isolate
        task.isolate = isolated
        with Grader(task, GradingConfig(num_workers=1)) as grader:
            (reply,) = grader.findings([(PROBLEM, "Oslo")])
        assert reply.grade == Grade(0.0, "crashed")
        assert re.search(why, reply.why), reply.why


def test_a_function_that_hangs_is_a_timeout():
    with Grader(task_of("spins"), GradingConfig(num_workers=1, timeout_s=0.3)) as grader:
        assert grader.grade([(PROBLEM, "Oslo")]) == [Grade(0.0, "timeout")]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"grader": f"{FILE}:tiny2"}, "no function 'tiny2' (did you mean 'tiny'?)"),
        ({"grader": f"{FILE}:Scorer"}, "no function 'Scorer'"),
        ({"grader": f"{FILE}:math"}, "no function 'math'"),
        ({"grader": "nowhere.py:f"}, "nowhere.py: no such file"),
        ({"grader": "exactly"}, "task.grader = 'exactly': must be one of 'exact', 'number', 'choice', 'math', 'regex'"),
        ({"rewards": {}}, "rewards is empty"),
        ({"rewards": {"a": {}}}, "'task.rewards.a.function' is required"),
        ({"rewards": {"a": {"function": "exact", "weigth": 1.0}}}, "'task.rewards.a.weigth'; did you mean 'weight'?"),
        ({"rewards": {"a/b": {"function": "exact"}}}, "a name must be 1 to 60 of"),
        ({"rewards": {"a": {"function": "exact"}}, "grader": "number"}, "give grader, or rewards"),
        ({"answer_in": "nowhere"}, "with answer_in = 'nowhere' there is no answer for 'exact'"),
        ({"grader": f"{FILE}:no_response"}, "no_response: its parameters are (prompt, answer), with no response among"),
        ({"grader": f"{FILE}:fails", "answer_in": "nowhere"}, "IndexError: string index out of range"),
        ({"grader": f"{FILE}:text", "answer_in": "nowhere"}, "must give a finite number, not str '1.0'"),
        ({"grader": f"{FILE}:short", "answer_in": "nowhere"}, None),
    ],
)
def test_check_task_says_in_a_line_what_is_wrong(tmp_path, policy, monkeypatch, capsys, options, complaint):
    monkeypatch.chdir(tmp_path)
    task = {"name": "qa", "path": "data", "solution": "answer"} | options
    recipe = write_recipe(tmp_path, policy, task)
    assert main(["check-task", recipe]) == (0 if complaint is None else 2)
    said = capsys.readouterr().err
    if complaint is not None:
        assert complaint in said
        assert said.count("\n") == 1


def write_recipe(folder: Path, policy: Path, task: Tree, **sections) -> str:
    """On the sums modulo 3 of `tiny`, as a file of questions and answers."""
    sums = Arithmetic(ArithmeticConfig.model_validate(MODULO_3))
    (folder / "data").mkdir()
    for split, problems in (("train", sums.sample(30, seed=0)), ("test", sums.split("test"))):
        rows = [{"question": p.prompt.strip(), "answer": p.solution.strip(), "digit": p.answer} for p in problems]
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"name": "qa", "model": {"name": str(policy)}, "task": task | {"num_validation": 5}}
    (folder / "recipe.toml").write_text(tomli_w.dumps(METHODS["grpo"] | own | sections))
    return "recipe.toml"


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return run(SFT, tmp_path_factory.mktemp("sft") / "run")


def test_a_run_logs_every_reward_and_goes_on(tmp_path, policy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rewards.py").write_text(
        "def digit(completions, digit, **columns):\n"
        "    return [float(text.strip().endswith(gold)) for text, gold in zip(completions, digit)]\n\n"
        "def brief(response):\n    return 1 / (1 + len(response))\n"
    )
    rewards = {"right": {"function": "rewards.py:digit"}, "brief": {"function": "rewards.py:brief", "weight": 0.5}}
    task = {"name": "qa", "path": "data", "answer_in": "nowhere", "rewards": rewards, "correct_from": 0.75}
    recipe = write_recipe(tmp_path, policy, task, grading={"num_workers": 1}, learner=FAST | {"optim": CONSTANT})
    assert main(["train", recipe, "--out", "run", "train.num_iterations=1"]) == 0
    assert read_toml(Path("run/recipe.toml"))["task"]["rewards"]["brief"]["function"] == f"{tmp_path}/rewards.py:brief"
    assert main(["train", recipe, "--out", "run", "--resume", "train.num_iterations=2"]) == 0
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["reward/named_right"] + 0.5 * line["reward/named_brief"] == pytest.approx(line["reward/mean"])
        assert line["grading/num_crashed"] == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["named_rewards"].keys() == {"right", "brief"}
    assert result["maj@2"] == 0  # nothing votes
