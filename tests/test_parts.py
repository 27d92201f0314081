"""Parts of one's own, in a file: docs/tasks.md's task from recipe to result, and what is said where one is wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tomli_w
from tiny import ALIKE, FAST, METHODS, SFT, START, Tree, run

from vineppo.cli import main
from vineppo.config import read_toml
from vineppo.methods import load_recipe
from vineppo.parts import find_part, full_name, load_part
from vineppo.runs.recipe import PARTS
from vineppo.tasks import TASKS
from vineppo.types import UserError

GUIDE = Path(__file__).parent.parent / "docs" / "tasks.md"
ESTIMATOR = """
from pydantic import Field
from vineppo.config import Named

class HalfConfig(Named):
    share: float = Field(default=0.5, gt=0)

class Half:
    Config = HalfConfig

class Bare:
    pass

class Number:
    Config = 3
"""


CONSTANT = {"lr": 1e-2, "schedule": "constant", "warmup_ratio": 0}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, with counting.py from the guide and estimator.py in it."""
    code = re.search(r"```python\n(# counting\.py\n.*?)```", GUIDE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "counting.py").write_text(code[1])
    (tmp_path / "estimator.py").write_text(ESTIMATOR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(tree: Tree, name: str = "recipe.toml") -> str:
    Path(name).write_text(tomli_w.dumps(tree))
    return name


def sft_of(task: str) -> Tree:
    return ALIKE | {
        "name": "own", "model": START, "learner": FAST | {"optim": CONSTANT},
        "task": {"name": task, "num_test": 10}, "grading": {"num_workers": 1},
        "sft": {"num_problems": 30, "num_epochs": 2, "minibatch_size": 8},
    }  # fmt: skip


def complaint(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("vineppo: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("isolate", ["False", "True"])
def test_the_guides_task_is_trained_evaluated_and_resumed(here, capsys, isolate):
    path = here / "counting.py"
    path.write_text(path.read_text().replace("isolate = False", f"isolate = {isolate}"))
    recipe = write(sft_of("counting.py:Counting"))
    assert main(["config", "show", recipe]) == 0
    assert f'name = "{path}:Counting"\nnum_test = 10\n' in capsys.readouterr().out
    assert main(["sft", recipe, "--out", "run"]) == 0
    assert main(["sft", recipe, "--out", "run", "--resume", "sft.num_epochs=5"]) == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["finished"]
    assert result["num_problems"] == 10
    assert result["verdicts"].get("crashed", 0) == 0
    assert sum(result["verdicts"].values()) + result["num_truncated"] == 20
    assert result["num_truncated"] < 20  # the others were graded
    assert main(["eval", recipe, "--model", "run", "--json", "eval.json"]) == 0
    assert json.loads(Path("eval.json").read_text())["pass@1"] == result["pass@1"]


def test_the_guide_leads_from_nothing_to_a_trained_policy(here, capsys):
    """Its two recipes, with its commands, in their order."""
    for name in ("sft", "vineppo"):
        recipe = re.search(rf"```toml\n(# {name}\.toml\n.*?)```", GUIDE.read_text(), re.DOTALL)
        assert recipe is not None
        (here / f"{name}.toml").write_text(recipe[1])
    commands = re.search(r"seconds, and look:\n\n((?:    vineppo .*\n)+)", GUIDE.read_text())
    assert commands is not None
    for line in commands[1].splitlines():
        assert main(line.split()[1:]) == 0
    before, after = (
        json.loads((here / f"runs/counting-{name}/result.json").read_text()) for name in ("sft", "vineppo")
    )
    assert min(before["pass@1"], after["pass@1"]) > 0.15


def test_more_problems_than_the_guides_task_has_are_asked_for_in_one_line(here, capsys):
    recipe = write(sft_of("counting.py:Counting"))
    said = complaint(capsys, "sft", recipe, "--out", "run", "sft.num_problems=6400")
    assert "task Counting, sft.num_problems = 6400: " in said
    assert re.search(r"counting\.py:\d+: ValueError: Sample larger than population", said)


def test_the_loop_trains_on_it_and_compare_runs_it_in_other_processes(here):
    run(sft_of("counting.py:Counting"), here / "sft")
    tree = METHODS["grpo"] | {"task": {"name": "counting.py:Counting"}, "model": {"name": str(here / "sft")}}
    grpo = write(tree | {"name": "grpo", "train": tree["train"] | {"num_iterations": 2}}, "grpo.toml")
    assert main(["compare", grpo, "--out", "compared"]) == 0
    lines = (here / "compared" / "grpo-seed0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["grading/num_crashed"] for line in lines] == [0, 0]
    assert main(["compare", grpo, "--out", "compared"]) == 0


def test_grading_processes_run_the_text_that_was_read_first(here):
    """However the file changes while a run goes on; its answers are graded in processes that start later."""
    path = here / "counting.py"
    path.write_text(path.read_text().replace("isolate = False", "isolate = True"))
    tree = sft_of("counting.py:Counting")
    load_part("counting.py:Counting", "test")
    path.write_text("raise RuntimeError('edited')")
    assert json.loads((run(tree, here / "run").parent.parent / "result.json").read_text())["finished"]


def test_a_run_knows_its_file_from_anywhere(here, capsys, monkeypatch):
    recipe = str(here / write(sft_of("counting.py:Counting")))
    assert main(["sft", recipe, "--out", "run"]) == 0
    assert read_toml(here / "run" / "recipe.toml")["task"]["name"] == f"{here}/counting.py:Counting"
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    resume = ["sft", recipe, "--out", str(here / "run"), "--resume"]
    assert f"{here}/elsewhere/counting.py: no such file; a path begins at" in complaint(capsys, *resume)
    Path("counting.py").write_text((here / "counting.py").read_text())
    said = complaint(capsys, *resume)
    assert f"recipe has changed since this run began (task.name: '{here}/counting.py:Counting' ->" in said
    assert main([*resume, f"task.name={here}/counting.py:Counting"]) == 0


def test_the_knobs_of_an_own_part_are_checked_like_any(here, capsys):
    tree = METHODS["grpo"] | {"name": "half", "model": START, "credit": {"name": "estimator.py:Half"}}
    recipe = write(tree)
    assert load_recipe(Path(recipe), ["credit.share=0.25"]).model_dump()["credit"]["share"] == 0.25
    said = complaint(capsys, "config", "show", recipe, "credit.shar=1")
    assert "unknown key 'credit.shar'; did you mean 'share'?" in said
    assert "credit.share = 0" in complaint(capsys, "config", "show", recipe, "credit.share=0")
    assert "unknown key 'task.num_tests'; did you mean 'num_test'?" in complaint(
        capsys, "config", "show", write(sft_of("counting.py:Counting")), "task.num_tests=1"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.py:Task", "nowhere.py: no such file"),
        (".:Task", "TypeError"),
        ("counting.py:Countin", "has no class 'Countin' (did you mean 'Counting'?)"),
        ("counting.py:", "has no class ''"),
        ("counting.py:random", "has no class 'random'"),
        ("estimator.py:Bare", "Bare needs a Config, a subclass of vineppo.config.Named"),
        ("estimator.py:Number", "Number needs a Config"),
        ("estimator.py:Half", "unknown key 'task.num_test'"),
        ("no_such_package.part:Task", "no_such_package.part: ModuleNotFoundError: No module named 'no_such_package'"),
        ("vineppo.tasks.math:MATHs", "has no class 'MATHs' (did you mean 'MATH'?)"),
        (
            "counting",
            f"must be one of {', '.join(map(repr, TASKS))}, or your own as path/to/file.py:Class",
        ),
        ("arithmetics", "(did you mean 'arithmetic'?)"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(here, capsys, name, said):
    found = complaint(capsys, "config", "show", write(sft_of(name)))
    assert found.startswith("vineppo: recipe.toml: ")
    assert said in found


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\nx = = 2\n", "broken.py:2: SyntaxError: invalid syntax"),
        ("def f():\n    return missing\n\nf()\n", "broken.py:2: NameError: name 'missing' is not defined"),
        ("import sys\nsys.exit('no')\n", "broken.py:2: SystemExit: no"),
        ("import nothing_of_this_name\n", "broken.py:1: ModuleNotFoundError"),
        ("x = '\0'\n", "broken.py"),
        ("raise ValueError('a\\nb\\x1b[2J')\n", r"broken.py:1: ValueError: a\nb\x1b[2J"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(here, capsys, code, said):
    (here / "broken.py").write_text(code)
    assert said in complaint(capsys, "config", "show", write(sft_of("broken.py:Task")))
    (here / "broken.py").write_text((here / "counting.py").read_text())
    assert main(["config", "show", write(sft_of("broken.py:Counting"))]) == 0  # a failure is not remembered


def test_a_task_that_lacks_something_is_told_what(here, capsys):
    path = here / "counting.py"
    path.write_text(path.read_text().replace("def segment", "def cut").replace("isolate = False", ""))
    assert "Counting lacks isolate, segment; see Task in vineppo/protocols.py" in complaint(
        capsys, "sft", write(sft_of("counting.py:Counting")), "--out", "run"
    )
    assert not Path("run").exists()


def test_an_estimator_of_ones_own_extends_a_built_in_one_and_trains(here):
    """Half of GRPO's advantages, as they stand in the log: nothing else of the first iteration is different."""
    Path("half.py").write_text(
        "from vineppo.credit.common import assign_by_group\n"
        "from vineppo.credit.grpo import GRPO\n\n\n"
        "class Half(GRPO):\n"
        "    def assign(self, groups, *, seed):\n"
        "        return assign_by_group(groups, lambda rewards: [a / 2 for a in self.formula(rewards)])\n"
    )
    start = {"name": str(run(SFT, here / "sft"))}
    lines = {}
    for name in ("grpo", "half.py:Half"):
        tree = METHODS["grpo"] | {"name": "own", "model": start, "credit": {"name": name}}
        tree |= {"train": tree["train"] | {"num_iterations": 1, "advantage_norm": "off"}}
        folder = run(tree, here / name.partition(".")[0]).parent.parent
        lines[name] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    whole, half = lines["grpo"], lines["half.py:Half"]
    assert half["reward/mean"] == whole["reward/mean"]
    assert half["credit/advantage_std"] == pytest.approx(whole["credit/advantage_std"] / 2)
    assert whole["credit/advantage_std"] > 0


def test_two_files_of_one_name_are_two_parts(here):
    names = []
    for folder in ("a", "b"):
        (here / folder).mkdir()
        (here / folder / "estimator.py").write_text(ESTIMATOR.replace("0.5", f"0.{ord(folder)}"))
        load_part(f"{folder}/estimator.py:Half", "test")
        names.append(full_name(f"{folder}/estimator.py:Half"))
    assert [find_part(name, PARTS["credit"], "test").Config(name=name).share for name in names] == [0.97, 0.98]


def test_an_installed_class_is_as_good_as_a_file(here):
    load_part("vineppo.tasks.arithmetic:Arithmetic", "test")
    assert find_part("vineppo.tasks.arithmetic:Arithmetic", {}, "test") is PARTS["task"]["arithmetic"]
    with pytest.raises(UserError, match="did you mean 'arithmetic'"):
        find_part("arithmetik", PARTS["task"], "test")
