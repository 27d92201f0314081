"""Checkpoints that a kill at any moment, a full disk or a flipped bit cannot turn into a wrong run.

A checkpoint is a folder `iteration-000010` that transformers opens as a model, plus `trainer.pt` (optimizer),
`trainer.json` (iteration, seed) and what the credit estimator keeps (`critic/`). It is written beside its place,
checksummed, fsynced and renamed into place, so a folder with that name is complete. Seeds are paths of content that
start at (seed, iteration): these two are the whole state of randomness and of the data order.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vineppo.config import Config
from vineppo.machine.files import DISK_FULL, read_json, sync, write_json
from vineppo.machine.tensor_files import load_tensors
from vineppo.types import UserError

CHECKSUMS, PROGRESS, STATE = "checksums.json", "trainer.json", "trainer.pt"
UNFINISHED = re.compile(r"\.(unfinished|damaged)-iteration-[0-9]{6,}")
"""Folders on their way to a checkpoint's name or away from it."""


class CheckpointConfig(Config):
    every: int = Field(default=1, ge=0)
    """Iterations (epochs, for SFT and DPO+) between checkpoints; 0 keeps only the one at the end."""
    keep_last: int = Field(default=2, ge=1)
    keep_every: int = Field(default=0, ge=0)
    """Besides the last ones, keep every checkpoint whose iteration this divides; 0 keeps none."""


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    iteration: int
    progress: dict[str, Any]  # trainer.json


def save_checkpoint(
    root: Path,
    *,
    save_parts: Callable[[Path], None],
    progress: dict[str, Any],
    config: CheckpointConfig,
    expected_bytes: int = 0,
) -> Path:
    """Writes iteration `progress["iteration"]`, then deletes what `config` does not keep.

    `save_parts` puts the model and trainer.pt into the folder it is given. Raises UserError when the disk is full, with
    how much room is needed, at least `expected_bytes`; earlier checkpoints are untouched then.
    """
    final = root / folder_name(progress["iteration"])
    if final.exists() and find_damage(final) is None:
        return final  # the run was stopped right after it; its state has not moved since
    unfinished = root / f".unfinished-{final.name}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        save_parts(unfinished)
        write_json(unfinished / PROGRESS, progress)
        write_checksums(unfinished)
        even_out_modes(unfinished)
        sync_all(unfinished)
    except Exception as error:  # safetensors wraps the write error in a class of its own
        shutil.rmtree(unfinished, ignore_errors=True)
        if not is_disk_full(error, root):
            raise
        raise UserError(disk_full_message(root, expected_bytes)) from None
    if final.exists():  # a damaged one, which a resumed run has come back to
        damaged = root / f".damaged-{final.name}"
        final.rename(damaged)
        unfinished.rename(final)
        shutil.rmtree(damaged)
    else:
        unfinished.rename(final)
    sync(root)
    prune(root, config, newest=progress["iteration"])
    return final


def load_checkpoint(root: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint; `warn` is told of every damaged one that was passed over.

    None where there never was one; raises UserError where there are some and all are damaged.
    """
    folders = checkpoint_folders(root)
    for folder in reversed(folders):
        damage = find_damage(folder)
        if damage is None:
            try:
                return open_checkpoint(folder)
            except UserError as error:
                damage = str(error)
        if folder == folders[0]:
            raise UserError(f"{damage}, and no other checkpoint is left; restore it, or choose another --out")
        warn(f"{damage}; using the checkpoint before it")
    return None


def open_checkpoint(folder: Path) -> Checkpoint:
    """Raises UserError where its files, whole as they are, are not what a checkpoint has."""
    progress, state = read_json(folder / PROGRESS), load_tensors(folder / STATE, mmap=True)
    for key, kind in {"iteration": int, "seed": int}.items():
        if type(progress.get(key)) is not kind:
            raise UserError(f"{folder / PROGRESS}: {key} is missing or no number")
    if progress["iteration"] != iteration_of(folder):
        raise UserError(f"{folder / PROGRESS}: iteration is {progress['iteration']}, which is not the folder's")
    if not isinstance(state, dict):
        raise UserError(f"{folder / STATE}: not the state of a run")
    return Checkpoint(folder, progress["iteration"], progress)


def checkpoint_folders(root: Path) -> list[Path]:
    """By iteration. A copy of another name, or a file, is none."""
    return sorted(
        (path for path in root.glob("iteration-*") if is_checkpoint_name(path.name) and path.is_dir()), key=iteration_of
    )


def folder_name(iteration: int) -> str:
    return f"iteration-{iteration:06d}"


def is_checkpoint_name(name: str) -> bool:
    return bool(re.fullmatch(r"iteration-[0-9]{6,}", name)) and name == folder_name(
        int(name.removeprefix("iteration-"))
    )


def iteration_of(folder: Path) -> int:
    return int(folder.name.removeprefix("iteration-"))


def prune(root: Path, config: CheckpointConfig, *, newest: int) -> None:
    """What is numbered above `newest` is damaged, or the run would not be here, and counts for none."""
    folders = [folder for folder in checkpoint_folders(root) if iteration_of(folder) <= newest]
    for folder in folders[: -config.keep_last]:
        kept = config.keep_every and iteration_of(folder) % config.keep_every == 0
        if not kept and not folder.is_symlink():
            # renamed first: a kill while deleting must not leave a folder that looks complete
            doomed = root / f".unfinished-{folder.name}"
            shutil.rmtree(doomed, ignore_errors=True)
            folder.rename(doomed)
            shutil.rmtree(doomed)


def write_checksums(folder: Path) -> None:
    checksums = {str(file.relative_to(folder)): checksum(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    write_json(folder / CHECKSUMS, checksums)


def checksum(file: Path) -> str:
    with file.open("rb") as stream:
        digest = hashlib.blake2b(digest_size=16)
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def find_damage(folder: Path) -> str | None:
    """What is wrong with the checkpoint, naming the file, or None."""
    path = folder / CHECKSUMS
    try:
        expected = read_json(path)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    except UserError as error:
        return str(error)
    if not {PROGRESS, STATE} <= expected.keys() or not any(
        name.endswith((".safetensors", ".bin")) for name in expected
    ):
        return f"{path} does not list all that a checkpoint has"
    for name, digest in expected.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if checksum(folder / name) != digest:
            return f"{folder / name} is corrupt (its checksum does not match)"
    return None


def even_out_modes(folder: Path) -> None:
    """safetensors keeps its files from everybody else; here all files are as readable as any new one."""
    mode = (folder / PROGRESS).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def sync_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


def is_disk_full(error: BaseException | None, root: Path) -> bool:
    """Looks through the whole chain: torch and safetensors report a failed write in errors of their own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        if any(os.strerror(code) in str(error) for code in DISK_FULL):
            return True
        error = error.__context__
    return shutil.disk_usage(root).free < 1 << 20


def disk_full_message(root: Path, expected_bytes: int) -> str:
    previous = checkpoint_folders(root)
    last_size = sum(file.stat().st_size for file in previous[-1].rglob("*")) if previous else 0
    needed = max(last_size, expected_bytes)
    free = shutil.disk_usage(root).free
    return (
        f"{root}: disk full while saving a checkpoint; it needs about {needed >> 20 or 1} MiB, {free >> 20} MiB are "
        f"free. Make room and continue with --resume" + (f" (from {previous[-1].name})" if previous else "")
    )


def is_due(every: int, iteration: int, last: int) -> bool:
    """Every so many iterations, and at the end."""
    return iteration == last or (every > 0 and iteration % every == 0)
