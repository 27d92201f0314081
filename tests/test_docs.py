"""The pages: short lines, paths and names that exist, examples that run."""

from __future__ import annotations

import ast
import doctest
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import METHODS, SFT, SHAPE, START, run

from vineppo import HOMES, __all__

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"(?<![\w./-])(?:[\w-]+/)*[\w-]+\.(?:py|cpp|md|svg|png|toml|json)\b(?!:[A-Z])")
OF_THE_REPOSITORY = ("vineppo", "tests", "benchmarks", "docs", "recipes", "scripts")
NOT_OURS = re.compile(r"\bfoo\.py|path/to/|^my/|^TT/|^(counting|guess|rewards|last_step)\.py|^(sft|vineppo)\.toml")
"""Placeholders, examples, and the files of the reference implementation (docs/sources.md: TT is a folder of its)."""


def paragraphs(text: str) -> list[tuple[int, str]]:
    """(number, line) of every line that is prose: no table, no code."""
    fenced, found = False, []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("|", "    ", "!", "<")):
            found.append((number, line))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped(page):
    too_long = [number for number, line in paragraphs(page.read_text()) if len(line) > 120]
    assert not too_long, f"{page.name}: lines {too_long} have more than 120 columns"


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 120


def find(name: str, page: Path) -> Path | None:
    """A file as pages write it: from the root, the package, the tests or the page's own folder."""
    homes = (ROOT, ROOT / "vineppo", ROOT / "tests", page.parent)
    return next((home / name for home in homes if (home / name).is_file()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    """Python files and pages by any path; other files where the path begins in the repository."""
    named = {name for name in FILE.findall(page.read_text()) if not NOT_OURS.search(name)}
    ours = {name for name in named if name.endswith((".py", ".cpp", ".md")) or name.startswith(OF_THE_REPOSITORY)}
    missing = sorted(name for name in ours if not find(name, page))
    assert not missing, f"{page.name} names {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing, f"{page.name} links to {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_that_a_page_names_is_in_that_file(page):
    """`losses.py: clipped_policy_loss`, also after a line break."""
    named = re.findall(r"`((?:\w+/)*\w+\.py):\s+([\w.]+)`", page.read_text())
    missing = [
        f"{file}: {name}"
        for file, name in named
        for path in [find(file, page)]
        if path and not re.search(rf"\b{name.split('.')[-1]}\b", path.read_text())
    ]
    assert not missing, f"{page.name} names {missing}"


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    pages = {page.name for page in index.parent.glob("*.md")} - {index.name}
    assert not {name for name in pages if f"({name})" not in index.read_text()}


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def test_the_lines_of_python_on_the_first_page_run(tmp_path, monkeypatch, capsys):
    """Word for word, on a model of the quickstart's place that a test can afford."""
    (block,) = python_blocks(ROOT / "README.md")
    assert len(block.splitlines()) <= 10
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    shape = {"from_scratch": SHAPE | {"context_size": 256}}
    run(SFT | {"task": {"name": "arithmetic", "num_test": 4}, "model": shape}, tmp_path / "runs/quickstart/vineppo")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 8, "one line for each response of the group"
    assert all(re.fullmatch(r"\[('[+-]\d\.\d\d'(, )?)+\]", line) for line in printed)


def test_the_estimator_of_ones_own_trains(tmp_path, monkeypatch):
    """Word for word; the rollouts that the run keeps have its credit."""
    (block,) = python_blocks(ROOT / "docs" / "methods.md")
    monkeypatch.chdir(tmp_path)
    Path("last_step.py").write_text(block)
    credit = {"name": "last_step.py:LastStep", "baseline": 0.25}
    run(METHODS["rloo"] | {"name": "own", "model": START, "credit": credit}, Path("run"))
    files = sorted(Path("run/rollouts").glob("*"))
    kept = [json.loads(line) for path in files for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert kept
    for rollout in kept:
        *before, last = rollout["advantages"]
        assert last == rollout["reward"] - 0.25
        assert not any(before)


def test_reading_a_recipe_in_a_notebook_loads_no_torch():
    code = "import sys, vineppo; vineppo.load_recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_of_the_package_can_be_imported():
    import vineppo

    assert sorted(HOMES) == sorted(__all__)
    assert all(getattr(vineppo, name).__module__.startswith("vineppo.") for name in __all__)
    with pytest.raises(AttributeError, match=r"it has .*load_recipe"):
        vineppo.trian  # type: ignore[attr-defined]  # noqa: B018


def test_the_tours_worked_example_has_the_numbers_that_the_program_computes():
    found = doctest.testfile(str(ROOT / "docs" / "tour.md"), module_relative=False)
    assert found.attempted > 20
    assert not found.failed


def test_the_tour_is_as_long_as_it_says():
    """Each file within a tenth, and all of them together about 2,600 lines."""
    rows = re.findall(r"^\| `([\w/.]+)` \| (\d+) \|", (ROOT / "docs" / "tour.md").read_text(), re.MULTILINE)
    real = {file: len((ROOT / "vineppo" / file).read_text().splitlines()) for file, _ in rows}
    wrong = [
        f"{file}: {lines}, not {real[file]}"
        for file, lines in rows
        if abs(int(lines) - real[file]) > 5 + real[file] / 10
    ]
    assert not wrong
    assert 1_800 < sum(real.values()) < 2_600


AREAS = "reward|rollouts|credit|critic|policy|kl|optim|grading|tokens|memory|eval|sft|restem|dpo|prm"


def written_keys() -> set[str]:
    """Texts of the package that are whole keys of metrics; those with a name filled in are left to the reader."""
    strings = (
        node.value
        for path in (ROOT / "vineppo").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return {text for text in strings if re.fullmatch(rf"(?:{AREAS})/[a-z]\w*(?:@1)?\w*(?<!_)", text)}


def documented_keys() -> set[str]:
    """Those of the tables of docs/metrics.md, where `a/b_mean`, `b_max` are two keys, as are `a/b_mean`, `_max`."""
    found = set()
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        first = ""
        for name in re.findall(r"`([^`]+)`", line.split("|")[1] if line.startswith("| `") else ""):
            first = name if "/" in name else first
            area = first.partition("/")[0]
            found |= {name, f"{area}/{name}", first + name, first.rpartition("_")[0] + name}
    return found


def test_every_key_that_the_program_writes_is_explained():
    keys = written_keys()
    assert len(keys) > 40
    assert not keys - documented_keys() - {"policy/num_skipped_steps"}, "but for one that only the report still reads"
