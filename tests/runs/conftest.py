"""Runs that were left alone, for tests that disturb copies of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import LONG, SHORT, run


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short") / "run"
    run(SHORT, folder)
    return folder


@pytest.fixture(scope="session")
def long(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "run"
    run(LONG, folder)
    return folder


@pytest.fixture
def stopped(long, tmp_path) -> Path:
    """As a kill in iteration 4 leaves it."""
    folder = tmp_path / "run"
    shutil.copytree(long, folder)
    shutil.rmtree(folder / "checkpoints" / "iteration-000004")  # 2 and 3 are left
    (folder / "result.json").unlink()
    return folder
