"""What a run's folder holds, and the proof that a folder is one: nothing else is ever written into or removed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vineppo.machine.files import PART, read_json
from vineppo.runs.checkpoint import CHECKSUMS, UNFINISHED, checkpoint_folders
from vineppo.runs.lock import LOCK
from vineppo.runs.metrics import METRICS, TIMINGS
from vineppo.types import UserError

RECIPE, ENVIRONMENT, RESULT, REPORT = "recipe.toml", "environment.json", "result.json", "report.html"
CHECKPOINTS, ROLLOUTS = "checkpoints", "rollouts"

REWRITTEN = (RECIPE, ENVIRONMENT, METRICS, TIMINGS, RESULT)
NUMBERED = r"iteration-[0-9]{6,}"
OWN = re.compile(
    rf"({'|'.join(map(re.escape, (*REWRITTEN, REPORT)))})(\{PART})?|{re.escape(LOCK)}"
    rf"|{ROLLOUTS}(/{NUMBERED}\.jsonl\.gz(\{PART})?)?"
    rf"|{CHECKPOINTS}(/(\.(unfinished|damaged)-)?{NUMBERED}(/critic)?(/[\w-]+\.(json|safetensors|pt|jinja|txt|model))?)?"
)
"""Every path that a run writes, relative to its folder."""


def refuse_foreign(folder: Path) -> None:
    """Raises UserError where there is anything but a run, or an empty folder, before it is touched.

    A run begins with its lock and ends with its environment.json, so a recipe.toml beside neither is somebody's own.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    names = {path.name for path in folder.iterdir()}
    if RECIPE in names and names & {ENVIRONMENT, LOCK, METRICS}:
        return
    if names - ({LOCK, RECIPE + PART} if LOCK in names else set()):
        raise UserError(f"{folder} is not empty and not a run; choose another --out")


def holds_a_run(folder: Path) -> bool:
    """Whether anything came of the run that began here."""
    begun = any((folder / name).exists() for name in (METRICS, TIMINGS, ROLLOUTS))
    return begun or bool(checkpoint_folders(folder / CHECKPOINTS))


def finished_iteration(folder: Path) -> int | None:
    """The iteration at whose end the run in this folder was complete; None where it is not, or does not say."""
    result = read_result(folder)
    return result.get("iteration") if result.get("finished") is True else None


def read_result(folder: Path) -> dict[str, Any]:
    """result.json; nothing where it is missing or damaged, since the evaluation can be made again."""
    try:
        return read_json(folder / RESULT)
    except (FileNotFoundError, UserError):
        return {}


def remove_leftovers(folder: Path) -> None:
    """What a kill has left half written or half deleted. Under the run's lock only."""
    for path in list((folder / CHECKPOINTS).glob(".*")):
        if UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
    parts = [folder / f"{name}{PART}" for name in REWRITTEN]
    rollouts = [path for path in (folder / ROLLOUTS).glob(f"*{PART}") if OWN.fullmatch(f"{ROLLOUTS}/{path.name}")]
    for path in (*parts, *rollouts):
        path.unlink(missing_ok=True)


def find_foreign(run: Path) -> Path | None:
    """The first path below the folder that a run does not write; symbolic links are never its own."""
    found = (path for path in sorted(run.rglob("*")) if path.is_symlink() or not is_own(run, path))
    return next(found, None) or next(unlisted_files(run), None)


def is_own(run: Path, path: Path) -> bool:
    if not OWN.fullmatch(path.relative_to(run).as_posix()):
        return False
    if not path.is_file():
        return path.is_dir() and not path.suffix
    if not path.suffix:
        return False
    return path.name != REPORT or is_report(path)


def is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return b" - vineppo</title>" in file.read(1 << 16)


def unlisted_files(run: Path) -> Iterator[Path]:
    """What lies in complete checkpoints and is not listed there."""
    for folder in checkpoint_folders(run / CHECKPOINTS):
        try:
            listed = {CHECKSUMS, *read_json(folder / CHECKSUMS)}
        except (OSError, UserError):
            listed = set()
        yield from (p for p in folder.rglob("*") if p.is_file() and str(p.relative_to(folder)) not in listed)


def remove_run(run: Path) -> None:
    """Deletes a folder in which nothing is foreign, path by path: what comes into it meanwhile stays."""
    paths = sorted(run.rglob("*"), reverse=True)
    foreign = find_foreign(run)
    if foreign:
        raise UserError(f"{foreign} is no part of a run; nothing was removed")
    for path in paths:
        path.rmdir() if path.is_dir() else path.unlink()
    run.rmdir()
