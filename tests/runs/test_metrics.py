import json
import math
import sqlite3
import sys
from types import SimpleNamespace

import pytest

from vineppo.runs.metrics import MetricsConfig, MetricsLog, mend_logs
from vineppo.types import UserError


def lines(path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


@pytest.fixture
def log(tmp_path):
    with MetricsLog(tmp_path, MetricsConfig()) as log:
        yield log


def test_the_key_says_how_the_numbers_of_many_steps_become_one(log, tmp_path):
    for loss, ratio, skipped, tokens in ((1.0, 1.5, 1.0, 10), (2.0, 0.5, 0.0, 20), (6.0, 1.0, 1.0, 30)):
        log.add({"policy/loss": loss, "policy/ratio_max": ratio, "policy/num_skipped_steps": skipped})
        log.add({"tokens/policy": tokens})
    log.write(1)
    assert lines(tmp_path / "metrics.jsonl") == [
        {
            "iteration": 1,
            "policy/loss": 3.0,
            "policy/ratio_max": 1.5,
            "policy/num_skipped_steps": 2,
            "tokens/policy": 60,
        }
    ]


def test_every_iteration_starts_from_nothing(log, tmp_path):
    log.add({"reward/mean": 0.5})
    log.write(1)
    log.add({"reward/mean": 0.25})
    log.write(2)
    assert [line["reward/mean"] for line in lines(tmp_path / "metrics.jsonl")] == [0.5, 0.25]


def test_numbers_come_back_as_they_were(log, tmp_path):
    numbers = [0.1 + 0.2, 1e-300, 2.0**53 + 2, -math.pi, 12345678901234567]
    log.add({f"n/{i}": number for i, number in enumerate(numbers)})
    log.write(1)
    assert list(lines(tmp_path / "metrics.jsonl")[0].values())[1:] == numbers


@pytest.mark.parametrize("values", [[math.nan], [math.inf], [1.0, math.nan], [math.inf, -math.inf]])
@pytest.mark.parametrize("key", ["policy/loss", "policy/ratio_max", "policy/num_odd"])
def test_what_is_not_finite_is_null_and_counted(log, tmp_path, key, values):
    for value in values:
        log.add({key: value})
    log.write(1)
    assert lines(tmp_path / "metrics.jsonl") == [{"iteration": 1, key: None, "metrics/num_not_finite": 1}]


def test_what_the_clock_decides_is_kept_apart(log, tmp_path):
    log.add({"reward/mean": 0.5})
    for _ in range(2):
        with log.phase("credit"):
            sum(range(1000))
    log.write(1, {"memory/peak_mb": 100.0})
    assert lines(tmp_path / "metrics.jsonl") == [{"iteration": 1, "reward/mean": 0.5}]
    (timings,) = lines(tmp_path / "timings.jsonl")
    assert timings.keys() == {"iteration", "seconds/credit", "memory/peak_mb"}
    assert timings["seconds/credit"] > 0


def test_a_resumed_run_writes_the_same_bytes(tmp_path):
    """Killed after iteration 4 while the line of iteration 5 was written; the checkpoint is of iteration 3."""

    def play(folder, first, last):
        mend_logs(folder, first - 1, may_owe=False, echo=pytest.fail)
        with MetricsLog(folder, MetricsConfig()) as log:
            for iteration in range(first, last + 1):
                log.add({"reward/mean": iteration / 7})
                log.write(iteration)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    play(whole, 1, 6)
    play(killed, 1, 4)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 5, "rewa')
    play(killed, 4, 6)
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert [line["iteration"] for line in lines(killed / "timings.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_sink_sees_both_kinds(tmp_path):
    seen = []

    class Memory:
        def write(self, iteration, metrics):
            seen.append((iteration, dict(metrics)))

        def close(self):
            seen.append("closed")

    with MetricsLog(tmp_path, MetricsConfig(), [Memory()]) as log:
        log.add({"reward/mean": 0.5})
        log.write(1, {"memory/peak_mb": 3.0})
    assert seen == [(1, {"reward/mean": 0.5, "memory/peak_mb": 3.0}), "closed"]


def test_tensorboard_holds_the_numbers(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path, MetricsConfig(tensorboard=True)) as log:
        for iteration in (1, 2):
            log.add({"reward/mean": iteration / 4})
            log.write(iteration)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5)]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_trackers_get_every_iteration(tmp_path, monkeypatch, package):
    calls = []
    monkeypatch.setitem(
        sys.modules,
        package,
        SimpleNamespace(
            init=lambda **options: calls.append(("init", options["project"], options["name"])),
            log=lambda metrics, step: calls.append((step, metrics)),
            finish=lambda: calls.append("finish"),
        ),
    )
    with MetricsLog(tmp_path, MetricsConfig.model_validate({package: "walks"})) as log:
        log.add({"reward/mean": 0.5})
        log.write(1)
    assert calls == [("init", "walks", tmp_path.name), (1, {"reward/mean": 0.5}), "finish"]


def write_two_iterations(folder, config: MetricsConfig) -> None:
    with MetricsLog(folder, config) as log:
        for iteration in (1, 2):
            log.add({"reward/mean": iteration / 4})
            log.write(iteration)


def test_weights_and_biases_takes_a_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_two_iterations(tmp_path, MetricsConfig(wandb="walks"))
    (stored,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"reward/mean" in stored.read_bytes()


def test_trackio_stores_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))  # read when the package is imported
    pytest.importorskip("trackio", reason="trackio is not installed")
    write_two_iterations(tmp_path, MetricsConfig(trackio="walks"))
    with sqlite3.connect(tmp_path / "store" / "walks.db") as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(metrics)["reward/mean"]) for step, metrics in rows] == [(1, 0.25), (2, 0.5)]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_missing_tracker_says_what_to_install(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        MetricsLog(tmp_path, MetricsConfig.model_validate({package: "walks"}))


def test_a_missing_tensorboard_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"vineppo\[tensorboard\]"):
        MetricsLog(tmp_path, MetricsConfig(tensorboard=True))
