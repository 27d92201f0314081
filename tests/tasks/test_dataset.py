"""Data from files and from the hub, and one clear line for everything that can be wrong with it."""

import json
import sys

import pyarrow
import pyarrow.parquet
import pytest

from vineppo.config import validate
from vineppo.tasks.gsm8k import GSM8K, GSM8KConfig
from vineppo.tasks.math import MATH, MATHConfig
from vineppo.types import UserError

ROWS = [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(12)]


def make_task(path, **options) -> GSM8K:
    return GSM8K(GSM8KConfig.model_validate({"path": str(path), "num_validation": 2} | options))


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_jsonl_file_a_parquet_file_and_a_folder_hold_the_same_problems(tmp_path):
    lines = write(tmp_path / "train.jsonl", ROWS)
    table = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    assert make_task(lines).split("train") == make_task(table).split("train") == make_task(tmp_path).split("train")


def test_validation_is_held_out_of_train_and_does_not_depend_on_the_order(tmp_path):
    task = make_task(write(tmp_path / "a.jsonl", ROWS), num_validation=5)
    shuffled = make_task(write(tmp_path / "b.jsonl", ROWS[::-1]), num_validation=5)
    held_out = {problem.prompt for problem in task.split("validation")}
    assert len(held_out) == 5
    assert held_out == {problem.prompt for problem in shuffled.split("validation")}
    assert not held_out & {problem.prompt for problem in task.split("train")}


def test_one_file_of_training_problems_is_no_test_set(tmp_path):
    with pytest.raises(UserError, match=r"rows.jsonl.*test.jsonl"):
        make_task(write(tmp_path / "rows.jsonl", ROWS)).split("test")
    assert len(make_task(write(tmp_path / "test.jsonl", ROWS)).split("test")) == 12


def test_a_hub_name_goes_through_datasets(monkeypatch):
    monkeypatch.setattr(
        "datasets.load_dataset", lambda name, subset, split: ROWS if (name, subset) == ("a/b", "main") else 0 / 0
    )
    assert len(make_task("a/b", subset="main").split("test")) == 12
    with pytest.raises(UserError, match="a/c: neither a file nor a data set"):
        make_task("a/c").split("test")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([ROWS[0], "{oops"], r"train.jsonl:2: not valid JSON"),
        ([ROWS[0], "", "[1]"], r"train.jsonl:3: expected a JSON object"),
        ([ROWS[0], {"question": "?"}], r"train.jsonl:2: the field 'answer' is missing"),
        ([ROWS[0], {"question": 3, "answer": "#### 1"}], r"train.jsonl:2: the field 'question'"),
        ([], r"the train split is empty"),
        (ROWS[:2], r"num_validation = 2 leaves nothing of 2"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, lines, message):
    write(tmp_path / "train.jsonl", lines)
    with pytest.raises(UserError, match=message) as caught:
        make_task(tmp_path).split("train")
    assert "\n" not in str(caught.value)


def test_all_unparseable_golds_are_counted_and_ten_are_listed(tmp_path):
    write(tmp_path / "train.jsonl", [{"question": f"{n}?", "answer": "#### many"} for n in range(12)] + ROWS)
    with pytest.raises(UserError, match=r"^12 gold answers cannot be parsed") as caught:
        make_task(tmp_path).split("train")
    assert str(caught.value).count("train.jsonl:") == 10
    write(tmp_path / "test.jsonl", [{"problem": "?", "solution": "no box"}])
    with pytest.raises(UserError, match=r"1 gold answers.*test.jsonl:1"):
        MATH(MATHConfig(path=str(tmp_path))).split("test")


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "missing.jsonl"])
def test_a_missing_path_is_named(name):
    with pytest.raises(UserError, match=name):
        make_task(name).split("train")


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"train.parquet: not a readable Parquet file"):
        make_task(tmp_path).split("train")
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"train.jsonl: not readable as UTF-8"):
        make_task(tmp_path).split("train")
    with pytest.raises(UserError, match=r"neither test.jsonl nor test.parquet"):
        make_task(tmp_path).split("test")


def test_more_problems_than_there_are(tmp_path):
    with pytest.raises(UserError, match="99 distinct training problems asked for, there are 10"):
        make_task(write(tmp_path / "train.jsonl", ROWS)).sample(99, seed=0)


@pytest.mark.parametrize(("config", "placeholder"), [(GSM8KConfig, "question"), (MATHConfig, "problem")])
def test_templates_need_their_placeholders(config, placeholder):
    with pytest.raises(UserError, match=f"prompt_template.*{placeholder}"):
        validate(config, {"path": "x", "prompt_template": "Solve:"}, source="recipe.toml")
    with pytest.raises(UserError, match=r"solution_template.*solution"):
        validate(config, {"path": "x", "solution_template": "\n"}, source="recipe.toml")


def test_missing_extras_say_what_to_install(tmp_path, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "train.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"vineppo\[data\]"):
        make_task(tmp_path).split("train")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"vineppo\[math\]"):
        MATH(MATHConfig(path="x"))
