"""Damaged data files, drawn at random, and the law for each: it loads and can be used, or one line says what is wrong.

python tests/tasks/bad_data.py NUM_CASES
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
from collections import Counter
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from vineppo.seeding import derive_seed
from vineppo.tasks.gsm8k import GSM8K, GSM8KConfig
from vineppo.tasks.math import MATH, MATHConfig
from vineppo.types import UserError

ROWS = {
    "gsm8k": [{"question": f"What is {n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(8)],
    "math": [{"problem": f"What is ${n}+1$?", "solution": f"It is $\\boxed{{{n + 1}}}$."} for n in range(8)],
}
TEXTS = [
    "", " ", "\t\n", "\ufeff", "\u200b", "\ud800", "a\udfffb", "\x00", "\x1b[2J", "a\r\nb", "a\u2028b", "\U0001f600",
    "x" * 100_000, "####", "#### ", "#### \ud800", "#### 1/0", "#### 1e9", f"#### {'9' * 5000}",
    "\\boxed{", "\\boxed{}", "\\boxed{ }", "\\boxed{\ud800}", "\\boxed 1", "{" * 3000,
]  # fmt: skip
VALUES = [None, True, 0, -1.5, float("nan"), float("inf"), [], ["a"], {}, {"a": {"b": 1}}, *TEXTS]
COLUMNS = [None, True, 0, -1.5, float("nan"), b"a", b"\xff", ["a"], {"a": 1}, date.min, datetime.max, timedelta(1)]
RAW = [
    b"", b" ", b"{", b"}", b"{}", b"[]", b"[", b"null", b"1", b'"a"', b"'a'", b"\x00", b"\r", b"//", b"{} {}", b"NaN",
    b"\xff\xfe", b"\xef\xbb\xbf{}", b"\xc3", b"\xed\xa0\x80", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000,
    b'{"question": ' + b"1" * 5000 + b"}", b'{"answer": "\\ud800"}', b'{"question": "\\ud800", "answer": "\\udc00"}',
    b'{"question": "a', b'{"a": 1,}',
]  # fmt: skip


def damaged_jsonl(rng: random.Random, rows: list[dict[str, Any]]) -> tuple[bytes, set[int]]:
    """A file, and the numbers of its lines that are not as they were."""
    lines = [json.dumps(row).encode() for row in rows]
    touched = set(rng.sample(range(len(rows)), rng.choice([1, 1, 1, 2, 4])))
    for i in touched:
        damage = rng.choice([change_field, change_field, change_bytes, change_line])
        lines[i] = damage(rng, rows[i], lines[i])
    end = rng.choice([b"\n", b"\n", b"\r\n", b"\n\n", b"\n \n"])
    apart = end.count(b"\n")
    content = rng.choice([b"", b"\xef\xbb\xbf"]) + end.join(lines) + rng.choice([b"", b"\n"])
    return content, {1 + i * apart for i in touched}


def change_field(rng: random.Random, row: dict[str, Any], line: bytes) -> bytes:
    row = dict(row)
    name = rng.choice([*row, "answer", "solution"])
    match rng.randrange(4):
        case 0:
            row.pop(name, None)
        case 1:
            row[rng.choice(["Answer", "", "a\nb", "\ud800"])] = row.pop(name, None)
        case _:
            row[name] = rng.choice(VALUES)
    return json.dumps(row, ensure_ascii=rng.random() < 0.5).encode(errors=rng.choice(["surrogatepass", "replace"]))


def change_bytes(rng: random.Random, row: dict[str, Any], line: bytes) -> bytes:
    found = bytearray(line)
    for _ in range(rng.choice([1, 1, 3, 20])):
        i = rng.randrange(len(found) + 1)
        found[i : i + rng.choice([0, 1, 1, 10])] = bytes(rng.choices(range(256), k=rng.choice([0, 1, 1, 4])))
    return bytes(found).replace(b"\n", b" ")


def change_line(rng: random.Random, row: dict[str, Any], line: bytes) -> bytes:
    piece = rng.choice(RAW)
    return rng.choice([piece, piece + line, line + piece, line[: rng.randrange(len(line))], line + line])


def damaged_parquet(rng: random.Random, rows: list[dict[str, Any]]) -> bytes:
    rows = [dict(row) for row in rows]
    name = rng.choice(list(rows[0]))
    column, text = rng.choice(COLUMNS), rng.choice([None, *(text for text in TEXTS if not is_broken(text))])
    match rng.randrange(3):
        case 0:
            rows = [row | {name: column} for row in rows]
        case 1:
            rng.choice(rows)[name] = text
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink, compression=rng.choice(["none", "snappy"]))
    content = bytearray(sink.getvalue().to_pybytes())
    match rng.randrange(4):
        case 0:
            del content[rng.randrange(len(content)) :]
        case 1 | 2:
            for _ in range(rng.choice([1, 4, 30])):
                content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def make_task(name: str, path: Path) -> GSM8K | MATH:
    options = {"path": str(path), "num_validation": 1}
    return GSM8K(GSM8KConfig.model_validate(options)) if name == "gsm8k" else MATH(MATHConfig.model_validate(options))


def outcome(name: str, path: Path, touched: set[int] | None) -> str:
    """ "loaded" or "refused"; an AssertionError where the law is broken. None: anything may be damaged."""
    task = make_task(name, path)
    try:
        problems = [*task.split("train"), *task.split("validation")]
    except UserError as error:
        message = str(error)
        assert len(message.splitlines()) == 1, message
        message.encode()
        named = {int(line) for line in re.findall(rf"{re.escape(str(path))}:(\d+)", message)}
        assert named or (touched is None and str(path) in message), message
        assert touched is None or named <= touched, (message, touched)
        return "refused"
    for problem in problems:
        for text in (problem.prompt, problem.answer, problem.solution):
            assert text.strip()
            derive_seed(text)
        task.segment(problem.solution)
        assert task.answer(problem.solution)
    if touched is not None:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        assert len(problems) == sum(bool(line.decode().strip()) for line in lines)
    return "loaded"


def run_case(folder: Path, seed: int) -> str:
    rng = random.Random(seed)
    name = rng.choice(list(ROWS))
    if rng.random() < 0.7:
        path, (content, touched) = folder / "train.jsonl", damaged_jsonl(rng, ROWS[name])
    else:
        path, content, touched = folder / "train.parquet", damaged_parquet(rng, ROWS[name]), None
    path.write_bytes(content)
    try:
        return f"{path.suffix} {outcome(name, path, touched)}"
    except Exception as error:
        raise AssertionError(f"case {seed} breaks the law: {name} {path.suffix} {content[:2000]!r}") from error
    finally:
        path.unlink()


def run(folder: Path, num_cases: int, *, seed: int = 0) -> Counter[str]:
    """How many of the cases came to which end. The first that breaks the law is raised, with its seed."""
    return Counter(run_case(folder, seed + i) for i in range(num_cases))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(dict(run(Path(place), int(sys.argv[1]))))
