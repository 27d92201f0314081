"""The report: run folders, comparisons and analyses become one HTML file that needs nothing beside it.

read.py finds and reads them, run.py and comparison.py say what of them is shown, page.py writes the page; the browser
does the rest with the .js files. Nothing here computes with tensors, so a report is written on any machine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vineppo.machine.files import check_file, check_folder, read_json
from vineppo.report.charts import save_figure
from vineppo.report.comparison import comparison_section
from vineppo.report.page import write_page
from vineppo.report.read import Source, find_sources, is_finished, read_analysis, read_run
from vineppo.report.rollouts import BUDGET
from vineppo.report.run import before_and_after, run_section
from vineppo.types import UserError

POLL_S = 2
REFRESH_S = 10


def write_report(
    paths: Sequence[Path], *, out: Path | None = None, figures: Path | None = None, refresh_s: int | None = None
) -> Path:
    """One page on all of them; where it is. `figures` gets every chart as .svg and .pdf."""
    sources = [source for path in paths for source in find_sources(path)]
    out = out or default_out(paths[0])
    check_folder(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_file(out)
    if figures:
        check_folder(figures)
    sections = make_sections(sources)
    write_page(sections, out, refresh_s=refresh_s)
    if figures:
        save_figures(sections, figures)
    return out


def try_report(path: Path) -> str:
    """For the end of a run, which no fault of its report may spoil: a line on where the report is, or why not."""
    try:
        return f"report: {write_report([path])}"
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"report: not written ({reason}); try `vineppo report {path}`"


def watch_report(paths: Sequence[Path], *, out: Path | None = None, figures: Path | None = None) -> Path:
    """Writes the page again whenever a run has a new line, until all are finished or the user stops it."""
    seen: object = None
    try:
        while True:
            sources = [source for path in paths for source in find_sources(path)]
            runs = [source.path for source in sources if source.kind in ("run", "quickstart")]
            if not runs:
                raise UserError("--watch follows runs, and there is none among these sources")
            if all(map(is_finished, runs)):
                break
            if seen != (seen := [run_file_times(run) for run in runs]):
                write_report(paths, out=out, refresh_s=REFRESH_S)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        pass
    return write_report(paths, out=out, figures=figures)


def run_file_times(run: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in (run / "metrics.jsonl", run / "result.json") if path.exists()]


def default_out(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "report.html"


def make_sections(sources: Sequence[Source]) -> list[dict[str, Any]]:
    budget = BUDGET // max(1, sum(source.kind == "run" for source in sources))
    sections = [make_section(source, budget) for source in sources]
    taken: set[str] = set()
    for section in sections:
        section["id"] = free_name(slug(section["title"]), taken)
    return sections


def make_section(source: Source, budget: int) -> dict[str, Any]:
    """Raises UserError where the source is not what the program writes, whatever is wrong with it."""
    path = source.path
    try:
        match source.kind:
            case "run":
                return run_section(read_run(path, budget))
            case "quickstart":
                path = path / "result.json"
                return before_and_after(read_json(path))
            case "comparison":
                return comparison_section(read_json(path))
            case _:
                return {"kind": "Analysis", **read_analysis(path)}
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: not as vineppo writes it ({type(error).__name__}: {error})") from error


def free_name(name: str, taken: set[str]) -> str:
    free = next(candidate for candidate in (name, *(f"{name}-{n}" for n in range(2, 10_000))) if candidate not in taken)
    taken.add(free)
    return free


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"


def save_figures(sections: Sequence[Mapping[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for section in sections:
        for name, spec in section.get("charts", {}).items():
            stem = free_name(f"{section['id']}-{slug(name)}", taken)
            for suffix in (".svg", ".pdf"):
                path = folder / f"{stem}{suffix}"
                try:
                    save_figure(spec, path)
                except ValueError as error:
                    reason = " ".join(str(error).split())[:200]
                    raise UserError(f"{path}: the chart {name!r} cannot be drawn: {reason}") from None
