"""What may stand in one table: finished, whole, each seed once, one recipe to a method. All else is named."""

from __future__ import annotations

import json
import shutil

import pytest
from run_folder import write_run

from vineppo.compare.comparison import compare_runs
from vineppo.compare.tables import to_markdown
from vineppo.types import UserError

TASK = '[task]\nname = "arithmetic"\nnum_steps = [3, 4]\n[evaluation]\nnum_problems = 400\nevery = 2\n'


def refused(*folders) -> str:
    with pytest.raises(UserError) as error:
        compare_runs(folders)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("result", [None, "{}", '{"finished": false, "pass@1": 0.5}', '{"finished": "yes"}'])
def test_a_run_that_is_not_finished_is_refused_and_continued_how(tmp_path, result):
    folder = write_run(tmp_path, "grpo", 0, [0.3, 0.4])
    (folder / "result.json").unlink()
    if result:
        (folder / "result.json").write_text(result)
    assert f"`vineppo train {folder / 'recipe.toml'} --out {folder} --resume`" in refused(folder)


def test_a_seed_counts_once(tmp_path):
    folder = write_run(tmp_path, "grpo", 0, [0.3])
    copy, link = tmp_path / "copy", tmp_path / "link"
    shutil.copytree(folder, copy)
    link.symlink_to(folder)
    for other in (folder, copy, link, folder / ".." / folder.name):
        assert "both are grpo with seed 0" in refused(folder, other)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"more": TASK.replace("4]", "5]")}, "task.num_steps = [3, 4] and [3, 5]"),
        ({"more": TASK.replace("400", "300")}, "evaluation.num_problems = 400 and 300"),
        ({"more": TASK.replace("every = 2", "every = 1")}, "evaluation.every = 2 and 1"),
        ({"more": TASK, "model": "another"}, "model.name = 'some/model' and 'another'"),
        ({"more": TASK + "[learner]\nlr = 1e-4\n"}, "learner.lr = None and 0.0001"),
    ],
)
def test_one_name_stands_for_one_recipe(tmp_path, change, key):
    first = write_run(tmp_path, "grpo", 0, [0.3], more=TASK)
    second = write_run(tmp_path, "grpo", 1, [0.3], **change)
    assert key in refused(first, second)


def test_what_makes_methods_hard_to_compare_is_said(tmp_path):
    first = write_run(tmp_path, "grpo", 0, [0.3], more=TASK)
    alike = write_run(tmp_path, "rloo", 0, [0.3], more=TASK.replace("every = 2", "every = 1"))
    assert compare_runs([first, alike])["warnings"] == []
    other = write_run(tmp_path, "ppo", 0, [0.3], more=TASK.replace("4]", "5]"), commit="def-dirty")
    (other / "environment.json").write_text(json.dumps({"device": "cuda", "num_threads": 8, "commit": "def-dirty"}))
    found = compare_runs([first, alike, other])
    warnings = " ".join(found["warnings"])
    for part in ("task.num_steps", "abc, def-dirty", "in no commit: def-dirty", "different devices", "of threads"):
        assert part in warnings
    assert to_markdown(found).startswith("**Note:** ")
    assert "| def-dirty |" in to_markdown(found)


def test_a_folder_that_is_no_run_and_one_without_an_evaluation(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "not a run" in refused(empty)
    assert "no evaluation" in refused(write_run(tmp_path, "ppo", 0, [None, None]))
    folder = write_run(tmp_path, "ppo", 0, [0.5])
    (folder / "recipe.toml").write_text("seed = 0\n")
    assert "recipe.toml: name is missing" in refused(folder)


DAMAGE = {  # file, what is done to its text, what is said
    "a line without an end": ("metrics.jsonl", lambda text: text[:-5], "metrics.jsonl: ends after line 2, .* has 3"),
    "seconds of the last iteration missing": (
        "timings.jsonl",
        lambda text: "".join(text.splitlines(True)[:-1]),
        "timings.jsonl: ends after line 2",
    ),
    "a line missing": (
        "metrics.jsonl",
        lambda text: "".join(text.splitlines(True)[::2]),
        "metrics.jsonl:2: iteration is 3",
    ),
    "a line twice": ("timings.jsonl", lambda text: text + text, "timings.jsonl:4: iteration is 1"),
    "a line that is no JSON": (
        "metrics.jsonl",
        lambda text: text.replace("}\n", "\n", 1),
        "metrics.jsonl:1: not valid",
    ),
    "a line that is no object": ("timings.jsonl", lambda text: "3\n" + text, "timings.jsonl:1: expected a JSON object"),
    "nothing": ("metrics.jsonl", lambda text: "", "metrics.jsonl: ends after line 0"),
    "not a number": (
        "metrics.jsonl",
        lambda text: text.replace('"eval/pass@1": 0.4', '"eval/pass@1": NaN'),
        "metrics.jsonl:2: eval/pass@1 is nan",
    ),
    "no value": (
        "metrics.jsonl",
        lambda text: text.replace('"eval/pass@1": 0.4', '"eval/pass@1": null'),
        "metrics.jsonl:2: eval/pass@1 is None",
    ),
    "a word for a number": (
        "timings.jsonl",
        lambda text: text.replace("1.5", '"long"', 1),
        "timings.jsonl:1: seconds/update is 'long'",
    ),
    "a number beyond all floats": (
        "metrics.jsonl",
        lambda text: text.replace('"tokens/policy": 100', '"tokens/policy": 1' + "0" * 400),
        "metrics.jsonl:1: tokens/policy",
    ),
    "no evaluation in the result": ("result.json", lambda text: '{"finished": true}', "result.json: pass@1 is None"),
    "an empty result": ("result.json", lambda text: "", "result.json: not valid JSON"),
    "an environment that is none": ("environment.json", lambda text: "[]", "environment.json: expected"),
    "a recipe that is none": ("recipe.toml", lambda text: "name", "recipe.toml: not valid TOML"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_with_file_and_line(tmp_path, kind):
    name, damage, reason = DAMAGE[kind]
    folder = write_run(tmp_path, "grpo", 0, [0.3, 0.4, 0.5])
    path = folder / name
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError, match=reason):
        compare_runs([folder])


def test_a_figure_that_was_not_finite_is_unknown_where_it_may_be(tmp_path):
    folder = write_run(tmp_path, "grpo", 0, [0.3, 0.4])
    path = folder / "metrics.jsonl"
    path.write_text(path.read_text().replace('"eval/kl_reference": 0.2', '"eval/kl_reference": null'))
    (run,) = compare_runs([folder])["runs"]
    assert [point["kl"] for point in run["points"]] == [0.1, None]
