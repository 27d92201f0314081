"""Problems from files: JSONL or Parquet, a folder of them, or a Hugging Face hub name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vineppo.types import UserError

Record = tuple[str, dict[str, Any]]  # where it stands ("file:line"), and what it says


def load_records(path: str, split: str, fields: tuple[str, ...], *, subset: str | None = None) -> list[Record]:
    """The records of a split, each with `fields`. Raises UserError naming the file and line of the first bad one."""
    place = Path(path).expanduser()
    if place.is_dir():
        records = list(read_file(find_file(place, split)))
    elif place.is_file():
        if (place.stem == "test") != (split == "test"):  # training problems must never pass for test problems
            raise UserError(f"data {path}: one file has no {split} split; give a folder with {split}.jsonl in it")
        records = list(read_file(place))
    elif path.startswith((".", "/", "~")) or path.endswith((".jsonl", ".json", ".parquet")) or path.count("/") > 1:
        raise UserError(f"data {path}: no such file or folder")
    else:
        records = list(read_hub(path, split, subset))
    if not records:
        raise UserError(f"data {path}: the {split} split is empty")
    for place, record in records:
        for name in fields:
            if not isinstance(record.get(name), str):
                raise UserError(f"{place}: the field {name!r} is missing or not a text")
    return records


def find_file(folder: Path, split: str) -> Path:
    for suffix in (".jsonl", ".parquet"):
        if (folder / (split + suffix)).is_file():
            return folder / (split + suffix)
    raise UserError(f"data {folder}: the folder has neither {split}.jsonl nor {split}.parquet")


def read_file(path: Path) -> Iterator[Record]:
    if path.suffix == ".parquet":
        library = require("pyarrow.parquet")
        try:
            table = library.read_table(path)
        except (ValueError, OSError) as error:  # pyarrow's own errors derive from these
            raise UserError(f"{path}: not a readable Parquet file: {first_line(error)}") from None
        yield from ((f"{path}:{row}", record) for row, record in enumerate(table.to_pylist(), 1))
        return
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as UTF-8 text: {first_line(error)}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}:{number}", parse_line(line, f"{path}:{number}")


def parse_line(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not valid JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(record, dict):
        raise UserError(f"{place}: expected a JSON object, got {type(record).__name__}")
    return record


def read_hub(name: str, split: str, subset: str | None) -> Iterator[Record]:
    try:
        dataset = require("datasets").load_dataset(name, subset, split=split)
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen kinds, by what it tried last
        raise UserError(f"data {name}: neither a file nor a data set that the hub gives: {first_line(error)}") from None
    yield from ((f"{name}/{split}:{row}", dict(record)) for row, record in enumerate(dataset, 1))


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f'{module.split(".")[0]} is needed for this data: pip install "vineppo[data]"') from None
