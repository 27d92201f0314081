"""Files that are read again: the old one or the new one, and damage by name."""

from __future__ import annotations

import os
import stat

import pytest

from vineppo.machine.files import append_line, check_file, parse_object, read_lines, write_file
from vineppo.types import UserError


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    write_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_file(path, "\ud800")
    assert path.read_text() == "old"


def test_a_file_is_replaced_whole_and_nothing_is_left_beside(tmp_path):
    path = tmp_path / "result.json"
    for content in ("one", b"\x00two"):
        write_file(path, content)
        assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_lines_come_back_and_a_torn_last_one_does_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_line(path, {"iteration": 1})
    append_line(path, {"iteration": 2})
    assert read_lines(path) == [{"iteration": 1}, {"iteration": 2}]
    path.write_bytes(path.read_bytes()[:-3])
    assert read_lines(path) == [{"iteration": 1}]


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"1", b"", b"\x00", b"[" * 100_000, b"1" * 5_000, b'{"a": ' + b"1" * 5_000 + b"}", b"\xff"]
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 1}\n' + line + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl") as raised:
        read_lines(path)
    assert "\n" not in str(raised.value)
    if line != b"\xff":
        assert "metrics.jsonl:2: " in str(raised.value)


def test_an_object_comes_back():
    assert parse_object('{"a": [1, "\u00e4"]}', "here") == {"a": [1, "\u00e4"]}


def test_a_pipe_or_a_device_is_neither_replaced_nor_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for act in (lambda path: write_file(path, "x"), read_lines, check_file):
        with pytest.raises(UserError, match="pipe or a device"):
            act(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
