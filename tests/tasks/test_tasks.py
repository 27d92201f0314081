"""What every task must satisfy, on problems written for these tests."""

import json
import random
from importlib.util import find_spec

import pytest

from vineppo.models.make import make_symbol_tokenizer
from vineppo.segments import are_cuts
from vineppo.tasks import TASKS
from vineppo.tasks.answers.boxes import boxed_answer
from vineppo.tasks.answers.formulas import math_equal
from vineppo.tasks.answers.numbers import parse_number
from vineppo.tasks.arithmetic import Arithmetic, ArithmeticConfig
from vineppo.tasks.code import Code, CodeConfig
from vineppo.tasks.game import Game, GameConfig
from vineppo.tasks.programs.drawn import DrawnConfig
from vineppo.tasks.python_tool import ChainConfig, PythonTool, PythonToolConfig
from vineppo.tasks.reasoning_gym import PACKAGE, ReasoningGym, ReasoningGymConfig
from vineppo.tasks.web import Web, WebConfig
from vineppo.types import Problem, UserError

GSM8K_ROWS = [
    {"question": f" A box holds {n} pens. How many pens do 3 boxes hold? ",
     "answer": f"One box holds {n} pens.\n3 boxes hold 3*{n}=<<3*{n}={3 * n}>>{3 * n} pens.\n#### {3 * n:,}"}
    for n in range(300, 320)
]  # fmt: skip
MATH_ROWS = [
    {"problem": f"Solve $x - {n} = 1$.", "solution": f"Adding ${n}$ to both sides gives $x = \\boxed{{{n + 1}}}.$"}
    for n in range(20)
]
QA_ROWS = [
    {"text": f"Where does train {n} stop?", "city": f"Stop {n}", "because": f"It is train {n}.\nStop  {n}"}
    for n in range(20)
]
EMBEDDED = [name for name in TASKS if name != "textarena"]
"""What is there without a package more."""
SAME_NUMBER = ["1018", "$1,018.00", " 1018. ", "1 018", "+1018%", "\\$1018\nbye"]
SOUP = [
    "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\begin{align}", "\\end{align}", "[asy]", "[/asy]",
    "{", "}", "\\", "\\$", "\n", "\n\n",
    ". ", "So it is. Then ", "####", " ", "=", ",", "x", "数学", "🎉", "\\boxed{", "\r", "\x00",
    "Some longer words without an end ", "3.14",
]  # fmt: skip


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


WITHOUT_PACKAGE = pytest.mark.skipif(find_spec(PACKAGE) is None, reason="an extra")
NAMES = [pytest.param(name, marks=WITHOUT_PACKAGE if name == PACKAGE else ()) for name in EMBEDDED]


@pytest.fixture
def tasks(tmp_path):
    for name, rows in (("gsm8k", GSM8K_ROWS), ("math", MATH_ROWS), ("qa", QA_ROWS)):
        (tmp_path / name).mkdir()
        write_rows(tmp_path / name / "train.jsonl", rows[:15])
        write_rows(tmp_path / name / "test.jsonl", rows[15:])
    fields = {"qa": {"prompt": "text", "answer": "city", "solution": "because"}}
    made = {
        name: TASKS[name](TASKS[name].Config(path=str(tmp_path / name), num_validation=4, **fields.get(name, {})))
        for name in ("gsm8k", "math", "qa")
    }
    if find_spec(PACKAGE) is not None:
        made[PACKAGE] = ReasoningGym(ReasoningGymConfig(dataset="leg_counting", num_test=15, num_validation=4))
    return made | {
        "arithmetic": Arithmetic(ArithmeticConfig(num_test=50, num_validation=30)),
        "code": Code(CodeConfig(drawn=DrawnConfig(num_test=4, num_validation=3))),
        "python_tool": PythonTool(PythonToolConfig(drawn=ChainConfig(num_test=50, num_validation=30))),
        "game": Game(GameConfig(num_test=50, num_validation=30)),
        "web": Web(WebConfig(num_test=50, num_validation=30)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_gold_solutions_are_right_and_nothing_is_not(tasks, name):
    task = tasks[name]
    for problem in [*task.split("test"), *task.split("validation")]:
        assert task.grade(problem, problem.solution).reward == 1
        assert task.grade(problem, "").verdict == "unparseable"
        assert task.answer(problem.solution) is not None


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_distinct_repeatable_training_problems(tasks, name):
    task = tasks[name]
    sample = task.sample(8, seed=3)
    assert sample == task.sample(8, seed=3) != task.sample(8, seed=4)
    assert len({problem.id for problem in sample}) == 8
    held_out = {problem.prompt for split in ("validation", "test") for problem in task.split(split)}
    assert not held_out & {problem.prompt for problem in task.sample(11, seed=0)}


@pytest.mark.parametrize("name", NAMES)
def test_segments_partition_any_response(tasks, name):
    rng = random.Random(0)
    for _ in range(400):
        text = "".join(rng.choice(SOUP) for _ in range(rng.randint(0, 60)))
        assert are_cuts(tasks[name].segment(text), text)
        tasks[name].answer(text)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_split_is_named(tasks, name):
    with pytest.raises(UserError, match="dev"):
        tasks[name].split("dev")


def test_arithmetic_splits_cannot_overlap_and_their_symbols_are_known():
    task = Arithmetic(ArithmeticConfig(num_steps=(2, 2), num_test=80, num_validation=80))
    prompts = [{problem.prompt for problem in task.split(split)} for split in ("test", "validation")]
    prompts.append({problem.prompt for problem in task.sample(900, seed=1)})
    assert [len(split) for split in prompts] == [80, 80, 900]
    assert len(set().union(*prompts)) == 80 + 80 + 900
    tokenizer = make_symbol_tokenizer(task.symbols)
    problem = task.sample(1, seed=0)[0]
    text = problem.prompt + problem.solution
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_demonstrator_slips_as_told():
    """Half the facts, right half of the time: a line is right with probability 3/4, and answers stay the true ones."""
    task = Arithmetic(ArithmeticConfig(num_steps=(1, 1), slip_share=1.0, slip_reliability=(0.5, 0.5)))
    wrong: dict[str, set[str]] = {}
    for seed in range(40):
        for problem in task.sample(60, seed=seed):
            line, said = problem.solution.rsplit("\n#### ", 1)
            if said != problem.answer:
                wrong.setdefault(line.partition("=")[0], set()).add(said)
                assert task.grade(problem, problem.solution).verdict == "wrong"
    assert wrong
    assert all(len(values) == 1 for values in wrong.values())  # one fixed wrong value for each fact
    careful = Arithmetic(ArithmeticConfig(slip_share=0.0))
    assert all(careful.grade(problem, problem.solution).reward == 1 for problem in careful.sample(50, seed=0))


def test_arithmetic_refuses_what_it_cannot_draw():
    task = Arithmetic(ArithmeticConfig(num_steps=(1, 1), num_test=50))
    with pytest.raises(UserError, match="distinct test problems"):
        task.split("test")
    with pytest.raises(UserError, match="num_problems"):
        task.split("train")
    with pytest.raises(ValueError, match="coprime"):
        ArithmeticConfig(operations=("*5",))


def test_gsm8k_problem_texts(tasks):
    problem = next(p for p in tasks["gsm8k"].split("test") if p.id == "gsm8k/test/0")
    assert problem.prompt == ("[MATH_TASK] Problem:\nA box holds 315 pens. How many pens do 3 boxes hold?\n\nSolution:")
    assert problem.solution == "\nOne box holds 315 pens.\n3 boxes hold 3*315=945 pens.\n#### 945\n"


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        *(("1,018", f"so\n#### {text}", "correct") for text in SAME_NUMBER),
        ("-3", "#### \N{MINUS SIGN}3.0", "correct"),
        ("0.75", "#### 3/4", "correct"),
        ("18", "#### 17\nno:\n#### 18", "correct"),
        ("18", "#### 18\n#### 17", "wrong"),
        ("18", "#### 19", "wrong"),
        ("18", "the answer is 18", "unparseable"),
        ("18", "####", "unparseable"),
        ("18", "#### eighteen", "unparseable"),
        ("18", "#### " + "9" * 10_000, "unparseable"),
        ("18", "#### 18/0", "unparseable"),
    ],
)  # fmt: skip
def test_gsm8k_answers_are_compared_as_numbers(tasks, gold, response, verdict):
    assert tasks["gsm8k"].grade(Problem("p", "", gold), response).verdict == verdict


def test_numbers_are_exact():
    assert parse_number("0.1") == parse_number("1/10") != parse_number("0.10000000000000000001")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} so \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("$\\boxed 5$", "5"),
        ("\\fbox{a\\}b}", "a\\}b"),
        ("\\boxed{}", None),
        ("boxed{3}", None),
        ("\\boxed{" * 5000, None),
    ],
)
def test_the_last_balanced_box_is_the_answer(text, answer):
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    ("gold", "given", "equal"),
    [
        ("\\frac{1}{2}", "0.5", True),
        ("x + 1", "1 + x", True),
        ("(3, \\frac{\\pi}{2})", "\\left( 3, \\frac{\\pi}{2} \\right)", True),
        ("\\text{east}", "\\text{east}", True),
        ("3", "4", False),
        ("[1, 2]", "(1, 2)", False),
        ("1", "1, 2", False),
    ],
)
def test_mathematically_equal_answers_are_right(gold, given, equal):
    assert math_equal(gold, given) is equal


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("method", ["sample", "split", "segment", "grade", "answer"])
def test_a_task_of_ones_own_may_replace_a_method(name, method):
    assert callable(getattr(TASKS[name], method, None)), "made in the constructor, it would hide a subclass's"
