"""The doctor says what really is."""

import re
from importlib.metadata import metadata

import torch

from vineppo.cli import main
from vineppo.cli.doctor import EXTRAS, findings, how_often
from vineppo.engine.llama.kernels import native
from vineppo.machine import threads


def test_every_path_is_named(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "device", "threads", "sampling", "kernels", *(f"extra {name}" for name in EXTRAS)):
        assert re.search(rf"^{word} +\S", out, re.MULTILINE)
    assert torch.__version__ in out
    assert f"{torch.get_num_threads()}, on " in out
    assert threads.waiting() in out
    for name, (package, _) in EXTRAS.items():
        assert re.search(rf"^extra {name} +({package}(-cpu)? \d|not there;.*vineppo\[{name}\])", out, re.MULTILINE)


def test_every_extra_is_looked_for():
    assert set(EXTRAS) == set(metadata("vineppo").get_all("Provides-Extra", [])) - {"dev"}


def test_it_says_why_the_kernels_are_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "at every start" not in how_often("native")
    (tmp_path / "vineppo").chmod(0o777)
    assert re.search(r"at every start, because others may write to .*chmod go-w", how_often("native"))
    assert how_often("torch") == ""


def test_it_says_why_the_kernels_are_pytorchs(monkeypatch):
    if torch.cuda.is_available():
        assert "on cuda" in findings()["kernels"]
        return
    monkeypatch.setattr(native, "COMPILERS", ())
    native.load_library.cache_clear()
    try:
        kernels = findings()["kernels"]
    finally:
        native.load_library.cache_clear()
    assert kernels.startswith("PyTorch, because")
