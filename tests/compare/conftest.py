"""Two methods with two seeds each, of which one starts at half the other's accuracy."""

from __future__ import annotations

from typing import Any

import pytest
from run_folder import write_run

from vineppo.compare.comparison import compare_runs


@pytest.fixture
def comparison(tmp_path) -> dict[str, Any]:
    start = write_run(tmp_path, "sft", 5, [0.2])
    folders = [
        write_run(tmp_path, "vineppo", 0, [0.3, 0.5, 0.6], vines=900, model=str(start)),
        write_run(tmp_path, "vineppo", 1, [0.4, 0.6, 0.5], vines=900, model=str(start)),
        write_run(tmp_path, "ppo", 0, [0.3, 0.4, 0.4], model=str(start)),
        write_run(tmp_path, "ppo", 1, [0.3, 0.3, 0.5], model=str(start)),
    ]
    return compare_runs(folders, start=start)
