"""What is told apart on the command line, and what is said of anything else."""

from __future__ import annotations

import json

import pytest

from vineppo.report.read import find_sources, is_finished
from vineppo.types import UserError

ANALYSIS = {"kind": "value_accuracy", "title": "Values", "text": "How to read it.", "tables": {}, "charts": {}}


def kinds(path) -> list[str]:
    return [source.kind for source in find_sources(path)]


def test_every_kind_of_source(write_run, comparison, tmp_path):
    run = write_run("root/sft")
    assert kinds(run) == ["run"]
    (run / "analysis").mkdir()
    (run / "analysis" / "values.json").write_text(json.dumps(ANALYSIS))
    assert kinds(run) == ["run", "analysis"]
    write_run("root/vineppo")
    assert sorted(kinds(tmp_path / "root")) == ["analysis", "run", "run"]
    (tmp_path / "root" / "result.json").write_text('{"vineppo": {}}')
    assert kinds(tmp_path / "root")[0] == "quickstart"
    (tmp_path / "root" / "comparison.json").write_text(json.dumps(comparison))
    assert kinds(tmp_path / "root") == ["comparison"]
    assert kinds(tmp_path / "root" / "comparison.json") == ["comparison"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none", None, "no such file or folder"),
        ("broken.json", "{", "not valid JSON"),
        ("list.json", "[]", "expected a JSON object"),
        ("other.json", '{"title": "t"}', "text, tables, charts is missing"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, name, text, said):
    from vineppo.report import write_report

    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=said) as error:
        write_report([path])
    assert str(path) in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run \(recipe.toml\)"):
        find_sources(tmp_path)


def test_a_run_that_has_only_begun(write_run, read):
    folder = write_run()
    for path in (*(folder / "rollouts").iterdir(), *folder.glob("*.json*")):
        path.unlink()
    run = read(folder)
    assert (run["metrics"], run["result"], run["rollouts"]["shown"]) == ([], {}, [])
    assert not is_finished(folder)


def test_a_line_that_a_kill_tore_is_left_out(write_run, read):
    folder = write_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "reward/me')
    assert [line["iteration"] for line in read(folder)["metrics"]] == [1, 2, 3]
    assert is_finished(folder)
