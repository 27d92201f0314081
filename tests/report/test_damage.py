"""Run folders that were cut, edited or sent by somebody: one line that names the place, or a page that names it."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from run_folder import rollout

from vineppo.cli import main
from vineppo.report import try_report
from vineppo.report.page import pack
from vineppo.report.run import run_section

ROLLOUTS = "rollouts/iteration-000002.jsonl.gz"


def report(folder: Path, capsys: Any) -> str:
    """What was said; one line either way, and no page where it is a complaint."""
    capsys.readouterr()
    page = folder / "report.html"
    page.unlink(missing_ok=True)
    code = main(["report", str(folder)])
    out, err = capsys.readouterr()
    said = err if code else out
    assert (code, said.count("\n"), page.exists()) in {(0, 1, True), (2, 1, False)}, said
    assert said.startswith("vineppo: " if code else "report: "), said
    assert ("not written" in try_report(folder)) == bool(code)
    return err


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metrics.jsonl", "[1]\n", "metrics.jsonl:1: expected a JSON object, got list"),
        (
            "metrics.jsonl",
            '{"iteration": 1}\n{"reward/mean": 1}\n',
            "metrics.jsonl:2: the field 'iteration' is missing",
        ),
        ("metrics.jsonl", '{"iteration": 1, "reward/mean": "x"}\n', "metrics.jsonl:1: the field 'reward/mean' is not"),
        ("metrics.jsonl", '{"iteration": 1, "reward/mean": NaN}\n', "metrics.jsonl:1: the field 'reward/mean' is not"),
        ("metrics.jsonl", '{"iteration": 1, "rollouts/num": 1%s}\n' % ("0" * 400), "'rollouts/num' is not a number"),
        ("metrics.jsonl", '{"iteration": 1}\n\0\0\n', "metrics.jsonl:2: not valid JSON"),
        ("timings.jsonl", '{"iteration": 1, "seconds/sample": []}\n', "timings.jsonl:1"),
        ("recipe.toml", "task = 3\n", "task = 3: must be a section"),
        ("recipe.toml", 'train = "x"\n', "train = 'x': must be a section"),
        ("recipe.toml", "[train]\nnum_iterations = 1.5\n", "train.num_iterations = 1.5"),
        ("recipe.toml", "[model]\nfrom_scratch = 1\n", "model.from_scratch = 1"),
        ("recipe.toml", "[\n", "recipe.toml: not valid TOML"),
        ("environment.json", "[]", "environment.json: expected a JSON object"),
        ("result.json", "{", "result.json: not valid JSON"),
        ("analysis/kl.json", '{"title": 1, "text": "", "tables": {}, "charts": {}}', "analysis/kl.json"),
        ("analysis/kl.json", '{"title": "", "text": "", "tables": {"a": [1]}, "charts": {}}', "tables.a is not"),
        ("comparison.json", '{"methods": {"a": 1}}', "comparison.json: not as vineppo writes it"),
        ("comparison.json", '{"methods": 3}', "comparison.json: not as vineppo writes it"),
    ],
)
def test_a_damaged_file_is_named(write_run, capsys, file, text, said):
    folder = write_run()
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(text)
    assert said in report(folder, capsys)


WHOLE = rollout("2+1", 1.0, [0.5, 0.75])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{}", ":2: the field 'problem' is not a text"),
        ("[]", ":2: expected a JSON object"),
        (json.dumps({**WHOLE, "advantages": [0.5]}), ":2: advantages has 1 entries for 2 segments"),
        (json.dumps({**WHOLE, "advantages": [0.5, None]}), ":2: the field 'advantages' is not a list of numbers"),
        (json.dumps({**WHOLE, "values": [0.5, float("nan"), 1]}), ":2: the field 'values' is not a list of numbers"),
        (json.dumps({**WHOLE, "vines": [[{"text": 1, "reward": 1}], []]}), ":2: the field 'vines' is not"),
        (json.dumps({**WHOLE, "segments": [], "advantages": [], "values": [1.0]}), ":2: "),
        (json.dumps({**WHOLE, "standard_errors": [0.1, "x"]}), ":2: the field 'standard_errors'"),
        ("\x00", ":2: not valid JSON"),
    ],
)
def test_a_damaged_rollout_is_named_in_the_page(write_run, read, capsys, line, said):
    folder = write_run()
    with gzip.open(folder / ROLLOUTS, "wt") as file:
        file.write(f"{json.dumps(WHOLE)}\n{line}\n")
    assert report(folder, capsys) == ""
    section = run_section(read(folder))
    (warning,) = section["warnings"]
    assert f"{ROLLOUTS}{said}" in warning
    assert {shown["iteration"] for shown in section["inspector"]["rollouts"]} == {1, 3}


def test_other_names_among_the_rollouts_are_no_rollouts(write_run, read, capsys):
    folder = write_run()
    for name in ("iteration-abcdef.jsonl.gz", "iteration-1.jsonl.gz", "iteration-000002.jsonl.gz.bak"):
        (folder / "rollouts" / name).write_text("x")
    (folder / "rollouts" / "iteration-1000000.jsonl.gz").write_bytes((folder / ROLLOUTS).read_bytes())
    (folder / "rollouts" / "iteration-000009.jsonl.gz").mkdir()
    assert report(folder, capsys) == ""
    found = read(folder)["rollouts"]
    assert found["iterations"] == [1, 2, 3, 9, 1_000_000]
    assert len(found["damaged"]) == 1


def test_many_damaged_files_are_counted(write_run, read):
    folder = write_run(num_iterations=9)
    for path in (folder / "rollouts").iterdir():
        path.write_bytes(b"\x1f\x8b torn")
    warnings = run_section(read(folder))["warnings"]
    assert len(warnings) == 6
    assert warnings[-1] == "4 more files of rollouts are damaged and left out."


JUNK: list[Any] = [
    None,
    True,
    -1,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "x\0\ud800",
    [],
    [[]],
    {},
    {"a": []},
]


def mutate(value: Any, random: random.Random) -> Any:
    """The same with one thing in it replaced, dropped or added."""
    if random.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return random.choice(JUNK)
    changed = dict(value) if isinstance(value, dict) else list(value)
    key = random.choice(list(changed) if isinstance(changed, dict) else range(len(changed)))
    if random.random() < 0.3:
        del changed[key]
    elif random.random() < 0.1 and isinstance(changed, dict):
        changed[random.choice(["", "title", "iteration", "eval/pass@1"])] = random.choice(JUNK)
    else:
        changed[key] = mutate(changed[key], random)
    return changed


@pytest.mark.parametrize("seed", range(6))
def test_no_damage_ends_in_a_traceback(write_run, comparison, capsys, tmp_path, seed):
    rng = random.Random(seed)
    run = write_run("all/run")
    chart = {"data": {"values": []}, "mark": "bar"}
    analysis = {"title": "t", "text": "", "tables": {"a": [{"b": 1}]}, "charts": {"c": chart}}
    scores = {"pass@1": 0.2, "ci95": [0.1, 0.3], "num_problems": 600}
    quickstart = {"sft": scores, "vineppo": scores, "seconds": {"total": 9.5}, "seed": 0, "device": "cpu"}
    (run / "analysis").mkdir()
    whole = {
        run / "analysis" / "kl.json": json.dumps(analysis),
        run.parent / "result.json": json.dumps(quickstart),
        tmp_path / "compared" / "comparison.json": json.dumps(comparison),
        **{path: path.read_text() for path in (*run.glob("*.jsonl"), *run.glob("*.json"))},
    }
    (tmp_path / "compared").mkdir()
    for path, text in whole.items():
        path.write_text(text)
    for path, text in list(whole.items()) * 3:
        lines = text.splitlines()
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(mutate(json.loads(lines[number]), rng))
        path.write_text("\n".join(lines) + "\n")
        report(run.parent, capsys)
        report(tmp_path / "compared", capsys)
        path.write_text(text)
    for _ in range(5):
        with gzip.open(run / ROLLOUTS, "wt") as file:
            file.write(json.dumps(mutate(WHOLE, rng)) + "\n")
        report(run, capsys)


def test_numbers_that_no_browser_reads_are_left_out():
    assert pack({"a": [float("nan"), float("inf"), 1.5]}) == pack({"a": [None, None, 1.5]})


def test_half_a_character_is_no_obstacle(write_run, capsys):
    folder = write_run()
    (folder / "analysis").mkdir()
    half = {"title": "\ud800", "text": "\ud800", "tables": {"\ud800": [{"a": "\ud800"}]}, "charts": {}}
    (folder / "analysis" / "kl.json").write_text(json.dumps(half))
    with gzip.open(folder / ROLLOUTS, "wt") as file:
        file.write(json.dumps(rollout("\ud800", 1.0, [0.5], extra="\ud800")) + "\n")
    assert report(folder, capsys) == ""


@pytest.mark.parametrize("option", ["--out", "--figures"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(write_run, tmp_path, capsys, monkeypatch, option):
    folder = write_run()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("vineppo.report.make_sections", lambda sources: pytest.fail("the work was begun"))
    assert main(["report", str(folder), option, str(tmp_path / "file" / "below")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / "file") in said
    assert main(["report", str(folder), "--out", str(folder)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_a_chart_that_cannot_be_drawn_is_named(write_run, tmp_path, capsys):
    folder = write_run()
    (folder / "analysis").mkdir()
    broken = {"title": "t", "text": "", "tables": {}, "charts": {"odd": {"mark": {"type": 3}, "data": 5}}}
    (folder / "analysis" / "kl.json").write_text(json.dumps(broken))
    assert main(["report", str(folder), "--figures", str(tmp_path / "figures")]) == 2
    assert "the chart 'odd' cannot be drawn" in capsys.readouterr().err
