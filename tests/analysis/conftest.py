"""Two tiny runs, of PPO and VinePPO from one SFT model, that keep two checkpoints each."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import ANALYSED, run


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("analysed")
    start = {"model": {"name": str(root / "sft")}}
    for name, tree in ANALYSED.items():
        run(tree if name == "sft" else tree | start, root / name)
    return {name: root / name for name in ANALYSED if name != "sft"}
