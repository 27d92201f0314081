"""Problems from files: JSONL or Parquet, a folder of them, or a Hugging Face hub name.

Files come from anywhere. What is wrong with one is said in a line that names the file, the row and what to do.
"""

from __future__ import annotations

import codecs
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vineppo.machine.files import parse_object
from vineppo.machine.limits import available_memory_bytes
from vineppo.types import UserError

Record = tuple[str, dict[str, Any]]  # where it stands ("file:line"), and what it says
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
MAX_LINE = 1 << 24
"""Bytes of one record; a file without line breaks would be read as one line."""
ROW_BYTES = 500
"""Memory that a row takes at least once it is read."""


def load_records(path: str, split: str, fields: tuple[str, ...], *, subset: str | None = None) -> list[Record]:
    """The records of a split, each with `fields`. Raises UserError naming the file and line of the first bad one."""
    try:
        records = list(read_split(path, split, subset))
    except OSError as error:
        raise UserError(f"{error.filename or path}: not readable: {error.strerror or first_line(error)}") from None
    if not records:
        raise UserError(f"data {path}: the {split} split is empty")
    for place, record in records:
        for name in fields:
            check_text(place, record, name)
    return records


def check_text(place: str, record: dict[str, Any], name: str) -> None:
    text = record.get(name)
    if text is None:
        there = ", ".join(map(repr, record))[:200] or "none"
        raise UserError(f"{place}: the field {name!r} is missing; the fields here: {there}")
    if not isinstance(text, str):
        raise UserError(f"{place}: the field {name!r} is not a text but {type(text).__name__}; put it in quotes")
    if not text.strip():
        raise UserError(f"{place}: the field {name!r} is blank; fill it in or leave the record out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: the field {name!r} has half of a character, {text[error.start]!a}, at position {error.start}; "
            "mend the text or leave the record out"
        ) from None


def read_split(path: str, split: str, subset: str | None) -> Iterator[Record]:
    try:
        place = Path(path).expanduser()
        mode = place.stat().st_mode if path.strip() and place.exists() else 0
    except (ValueError, RuntimeError) as error:  # a NUL; the home of nobody
        raise UserError(f"data {path!r}: no such file or folder: {first_line(error)}") from None
    if stat.S_ISDIR(mode):
        return read_file(find_file(place, split))
    if mode:
        if (place.stem == "test") != (split == "test"):  # training problems must never pass for test problems
            raise UserError(f"data {path}: one file has no {split} split; give a folder with {split}.jsonl in it")
        return read_file(place)
    if path.endswith((".jsonl", ".json", ".parquet")) or not HUB_NAME.fullmatch(path):
        raise UserError(f"data {path!r}: no such file or folder")
    return read_hub(path, split, subset)


def find_file(folder: Path, split: str) -> Path:
    for suffix in (".jsonl", ".parquet"):
        if (folder / (split + suffix)).exists():
            return folder / (split + suffix)
    raise UserError(f"data {folder}: the folder has neither {split}.jsonl nor {split}.parquet")


def read_file(path: Path) -> Iterator[Record]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise UserError(f"{path}: not a regular file; copy the data into one")
    check_size(path, status.st_size)
    return read_parquet(path) if path.suffix == ".parquet" else read_lines(path)


def check_size(path: Path, num_bytes: int) -> None:
    if num_bytes > available_memory_bytes():
        raise UserError(f"{path}: {num_bytes >> 20} MiB of data are more than this process may hold; give it a part")


def read_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            place = f"{path}:{number}"
            if len(line) > MAX_LINE:
                raise UserError(f"{place}: longer than {MAX_LINE >> 20} MiB; write one record on each line")
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise UserError(f"{place}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
            if text.strip():
                yield place, parse_line(text, place)


def parse_line(text: str, place: str) -> dict[str, Any]:
    try:
        return parse_object(text, place)
    except UserError as error:
        raise UserError(f"{error}; every line must be one JSON object") from None


def read_parquet(path: Path) -> Iterator[Record]:
    library = require("pyarrow.parquet")
    number = 0
    try:
        with library.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            check_size(path, sum(group.total_byte_size + group.num_rows * ROW_BYTES for group in groups))
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", record
    except UserError:
        raise
    except Exception as error:  # damage shows as a dozen kinds, by what was damaged
        raise UserError(
            f"{path}: not a readable Parquet file, after row {number}: {first_line(error)}; get it again"
        ) from None


def read_hub(name: str, split: str, subset: str | None) -> Iterator[Record]:
    try:
        dataset = require("datasets").load_dataset(name, subset, split=split)
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen kinds, by what it tried last
        raise UserError(f"data {name}: neither a file nor a data set that the hub gives: {first_line(error)}") from None
    yield from ((f"{name}/{split}:{row}", dict(record)) for row, record in enumerate(dataset, 1))


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f'{module.split(".")[0]} is needed for this data: pip install "vineppo[data]"') from None
