"""scripts/check_data.py, on folders that were assembled by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

PATH = Path(__file__).parent.parent / "scripts" / "check_data.py"


def check(folder: Path, capsys) -> list[str]:
    spec = importlib.util.spec_from_file_location("check_data", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = module.main(folder)
    said = capsys.readouterr().err.splitlines()
    assert code == (1 if said else 0)
    return said


def write(folder: Path, split: str, count: int, **more) -> None:
    lines = [json.dumps({"question": f"{split} {i}", "answer": "#### 1", **more}) + "\n" for i in range(count)]
    (folder / f"{split}.jsonl").write_text("".join(lines))


def test_a_whole_folder_is_in_order_and_a_part_is_not(tmp_path, capsys):
    write(tmp_path, "train", 7473)
    write(tmp_path, "test", 1319)
    assert check(tmp_path, capsys) == []
    write(tmp_path, "test", 1318)
    assert check(tmp_path, capsys) == [f"{tmp_path}/test.jsonl: 1318 problems of GSM8K, not 1319"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}\n", "has neither the fields"),
        ("[]\n", "train.jsonl:1: expected a JSON object"),
        ('{"question": "q", "answer": "a"}\n{"question": 1, "answer": "a"}\n', "train.jsonl:2: question or answer"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, text, said):
    (tmp_path / "train.jsonl").write_text(text)
    (complaint,) = check(tmp_path, capsys)
    assert said in complaint


def test_what_is_learnt_from_is_not_tested_on(tmp_path, capsys):
    for split in ("train", "test"):
        write(tmp_path, split, 2, question="the same")
    assert check(tmp_path, capsys)[-1] == f"{tmp_path}: 1 problems are in train.jsonl and in test.jsonl"
