"""Data from files and from the hub, and one clear line for everything that can be wrong with it."""

import json
import os
import pickle
import sys

import pyarrow
import pyarrow.parquet
import pytest
from tasks import bad_data

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
        ([ROWS[0], {"question": 3, "answer": "#### 1"}], r"train.jsonl:2: the field 'question' is not a text but int"),
        ([ROWS[0], {"question": " \n", "answer": "#### 1"}], r"train.jsonl:2: the field 'question' is blank"),
        (
            [ROWS[0], {"question": "a\ud800", "answer": "#### 1"}],
            r"jsonl:2: .*'question' .*'\\ud800', at position 1",
        ),
        ([ROWS[0], {"question": "?", "answer": "\udfff #### 1"}], r"train.jsonl:2: .*'answer' has half of a character"),
        ([ROWS[0], "[" * 100_000], r"train.jsonl:2: not valid JSON"),
        ([ROWS[0], '{"question": ' + "1" * 5000 + "}"], r"train.jsonl:2: not valid JSON"),
        ([json.dumps(ROWS)], r"train.jsonl:1: expected a JSON object, got list; every line must be one JSON object"),
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


@pytest.mark.parametrize(
    "name",
    ["no/such/folder", "./nothing", "missing.jsonl", " ", "a b/c", "-a/b", "x" * 5000, "/" + "x" * 5000, "a\0b",
     "~nobody-has-this-name/data", "http://a.b/c"],
)  # fmt: skip
def test_a_missing_path_is_named_and_no_hub_is_asked(monkeypatch, name):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match=r"no such file or folder|not readable: File name too long") as caught:
        make_task(name).split("train")
    assert repr(name)[1:-1] in str(caught.value)


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet"])
def test_what_is_no_regular_file_is_not_read(tmp_path, name):
    os.mkfifo(tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"{name}: not a regular file"):
            make_task(path).split("train")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"{name}: not a regular file"):
        make_task(tmp_path).split("train")
    with pytest.raises(UserError, match="/dev/zero: not a regular file"):
        make_task("/dev/zero").split("train")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="loop"):
        make_task(tmp_path / "loop").split("train")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_what_may_not_be_read_is_named(tmp_path):
    write(tmp_path / "train.jsonl", ROWS).chmod(0)
    with pytest.raises(UserError, match=r"train.jsonl: not readable: Permission denied"):
        make_task(tmp_path).split("train")


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    with (tmp_path / "train.jsonl").open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(UserError, match=r"train.jsonl: 8388608 MiB of data are more than this process may hold"):
        make_task(tmp_path).split("train")
    (tmp_path / "train.jsonl").write_text('{"question": "' + "a" * 10_000)
    monkeypatch.setattr("vineppo.tasks.dataset.MAX_LINE", 5000)
    with pytest.raises(UserError, match=r"train.jsonl:1: longer than"):
        make_task(tmp_path).split("train")
    same = pyarrow.table({name: [ROWS[0][name]] * 100_000 for name in ROWS[0]})  # a few kB as a file
    pyarrow.parquet.write_table(same, tmp_path / "many.parquet")
    monkeypatch.setattr("vineppo.tasks.dataset.available_memory_bytes", lambda: 1 << 22)
    with pytest.raises(UserError, match=r"many.parquet: \d+ MiB of data are more"):
        make_task(tmp_path / "many.parquet").split("train")


def test_marks_of_other_systems_change_nothing(tmp_path):
    lines = "\r\n".join(map(json.dumps, ROWS))
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n\r\n")
    assert make_task(tmp_path).split("train") == make_task(write(tmp_path / "rows.jsonl", ROWS)).split("train")


def test_a_problem_that_stands_in_the_data_twice_is_never_on_both_sides(tmp_path):
    task = make_task(write(tmp_path / "a.jsonl", [*ROWS, *ROWS[::-1]]), num_validation=5)
    train, validation = task.split("train"), task.split("validation")
    assert len(validation) == 5  # two that stand twice, and one of the next two
    assert len(train) == 2 * 12 - 6
    assert not {problem.prompt for problem in train} & {problem.prompt for problem in validation}
    with pytest.raises(UserError, match="num_validation = 1 leaves nothing of 3"):
        make_task(write(tmp_path / "b.jsonl", [ROWS[0]] * 3), num_validation=1).split("train")


def test_a_process_that_grades_is_not_sent_the_problems(tmp_path):
    task = make_task(write(tmp_path / "train.jsonl", ROWS))
    before = pickle.dumps(task)
    train = task.split("train")
    assert pickle.dumps(task) == before
    assert pickle.loads(before).split("train") == train


def test_damaged_files_load_or_are_refused_by_line(tmp_path):
    ends = bad_data.run(tmp_path, 300)
    assert ends.total() == 300
    assert min(ends.values()) >= 5
    assert len(ends) == 4


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"train.parquet: not a readable Parquet file"):
        make_task(tmp_path).split("train")
    (tmp_path / "train.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"train.jsonl:1: not UTF-8 text \(byte 0\); save"):
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
