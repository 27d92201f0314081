"""A run that is killed and resumed is the run that was not killed, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from survive import differences
from tiny import RECIPE, StopAt

from vineppo.methods.run import run_recipe
from vineppo.methods.sft import SFTRecipe
from vineppo.runs.recipe import make_recipe
from vineppo.runs.shutdown import Stopped

HERE = Path(__file__).parent


def test_kill_9_at_ten_moments_changes_nothing(tmp_path):
    """A part of the whole campaign; every file of the run is compared, and that nothing else is left."""
    cases = ["arithmetic/vineppo", "gsm8k/sft"]
    survive = [sys.executable, str(HERE / "survive.py"), str(tmp_path), "--kills", "10", "--kills-per-run", "5"]
    said = subprocess.run([*survive, "--cases", *cases], capture_output=True, text=True, check=False, timeout=300)
    assert said.returncode == 0, said.stderr[-2000:]
    report = json.loads(said.stdout)
    assert report["total"]["kills"] >= 10, report
    assert report["total"]["kills_while_saving"] >= 1, report
    assert report["total"]["identical"] == report["total"]["runs"] >= 2, report
    for case, lines in zip(cases, (6, 64), strict=True):
        assert num_lines(tmp_path / "whole" / case / "metrics.jsonl") == lines


def test_a_run_that_differs_is_noticed(tmp_path):
    for folder in ("whole", "killed"):
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
        (tmp_path / folder / "metrics.jsonl").write_text("1\n")
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    (tmp_path / "killed" / "metrics.jsonl").write_text("2\n")
    (tmp_path / "killed" / "checkpoints" / ".unfinished-iteration-000001").mkdir()
    assert differences(tmp_path / "whole", tmp_path / "killed") == [
        "checkpoints/.unfinished-iteration-000001",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_stop_leaves_a_checkpoint_to_go_on_from(tmp_path, signum, exit_code):
    """The command itself, as a user stops it: checkpoint, exit code, and the numbers of a run that was not stopped."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tomli_w.dumps(RECIPE | {"checkpoint": {"every": 0}}))
    command = [sys.executable, "-m", "vineppo.cli", "train", str(recipe), "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    stopped = tmp_path / "stopped"
    process = subprocess.Popen([*command, str(stopped)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while num_lines(stopped / "metrics.jsonl") < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signum)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == exit_code, said
    assert "Traceback" not in said
    assert 2 <= num_lines(stopped / "metrics.jsonl") < RECIPE["train"]["num_iterations"]
    assert len(list((stopped / "checkpoints").glob("iteration-*"))) == 1
    subprocess.run([*command, str(stopped), "--resume"], check=True, capture_output=True)
    for name in ("metrics.jsonl", "result.json"):
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_fine_tuning_stops_and_goes_on_at_any_optimizer_step(tmp_path):
    sft = {key: RECIPE[key] for key in ("name", "task", "model", "engine", "learner", "evaluation")}
    tree = sft | {"sft": {"num_problems": 60, "num_epochs": 3, "minibatch_size": 8}, "checkpoint": {"every": 0}}
    recipe = make_recipe(tree, kind=SFTRecipe, source="test")
    run_recipe(recipe, tmp_path / "whole")

    for resume, step in ((False, 3), (True, 13), (True, 16)):
        with pytest.raises(Stopped):
            run_recipe(recipe, tmp_path / "stopped", resume=resume, sinks=[StopAt(step)], echo=lambda _: None)
        assert num_lines(tmp_path / "stopped" / "metrics.jsonl") == step
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert (
        run_recipe(recipe, stopped, resume=True).name
        == run_recipe(recipe, whole, resume=True).name
        == "iteration-000024"
    )
    for name in ("metrics.jsonl", "result.json", "checkpoints/iteration-000024/model.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
