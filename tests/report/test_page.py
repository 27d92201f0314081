"""The file itself: one, small, and deaf to what a model has written in it. test_browser.py opens it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time

import pytest
from run_folder import HOSTILE, rollout, two_groups

import vineppo.report as report
from vineppo.cli import main
from vineppo.report import try_report, watch_report, write_report
from vineppo.types import UserError


def test_it_is_one_file_that_names_no_other(write_run):
    page = write_report([write_run()])
    text = page.read_text()
    assert page.name == "report.html"
    assert "default-src 'none'" in text
    head = text.split('id="data"')[0]
    assert not re.search(r"(src|href)=|url\(|@import|http:", head)
    assert 'http-equiv="refresh"' not in text
    assert list(page.parent.glob("*.part")) == []


def test_what_a_model_wrote_closes_no_tag(write_run):
    folder = write_run(rollouts=lambda i: two_groups(i, extra=HOSTILE))
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("some/model", HOSTILE.replace('"', "'")))
    text = write_report([folder]).read_text()
    assert text.count("</script>") == 3
    assert "document.title='x'" not in text


def test_a_quickstart_stays_below_five_megabytes(write_run):
    """10 iterations of 128 rollouts with 10 segments and 3 vines of each, whose text does not repeat itself."""
    rng = random.Random(0)

    def random_text(_):
        return " ".join(
            f"{rng.randrange(10)} {rng.choice('abcdefghij')}{rng.choice('+-*')}{rng.randrange(10)}=" for _ in range(6)
        )

    def full(iteration):
        found = []
        for p in range(16):
            for g in range(8):
                line = rollout(f"{iteration}+{p}", float(g % 2), [rng.random() for _ in range(10)])
                line["segments"] = [random_text(0)[:8] for _ in range(10)]
                line["vines"] = [[{"text": random_text(0), "reward": 1.0} for _ in range(3)] for _ in range(10)]
                found.append(line)
        return found

    page = write_report([write_run(num_iterations=10, rollouts=full)])
    assert page.stat().st_size < 5e6


def test_it_needs_no_torch(write_run):
    code = (
        "import sys; from pathlib import Path; from vineppo.report import write_report; "
        "write_report([Path(sys.argv[1])]); assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(write_run())], check=True)


def test_several_sources_and_figures(write_run, comparison, tmp_path, capsys):
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    argv = [
        "report",
        write_run(),
        tmp_path / "comparison.json",
        "--out",
        tmp_path / "all.html",
        "--figures",
        tmp_path / "figures",
    ]
    assert main([str(arg) for arg in argv]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'all.html'}\n"
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"run-reward.svg", "run-reward.pdf", "comparison-peak-accuracy.svg"} <= names
    sections = report.make_sections([source for path in argv[1:3] for source in report.find_sources(path)])
    charts = {f"{section['id']}-{report.slug(name)}" for section in sections for name in section["charts"]}
    assert names == {f"{chart}{suffix}" for chart in charts for suffix in (".svg", ".pdf")}


def test_a_wrong_source_is_one_line_and_code_2(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"vineppo: {tmp_path / 'none'}: no such file or folder")


def test_a_run_is_never_failed_by_its_report(write_run, monkeypatch):
    folder = write_run()
    assert try_report(folder) == f"report: {folder / 'report.html'}"

    def full_disk(*args, **more):
        raise OSError("no space\nleft")

    monkeypatch.setattr(report, "write_page", full_disk)
    said = try_report(folder)
    assert said == f"report: not written (OSError: no space left); try `vineppo report {folder}`"


def test_a_run_is_followed_until_it_is_finished(write_run, monkeypatch):
    monkeypatch.setattr(report, "POLL_S", 0.05)
    folder = write_run()
    (folder / "result.json").unlink()
    page = folder / "report.html"
    watching = threading.Thread(target=watch_report, args=([folder],), daemon=True)
    watching.start()

    def wait_for(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    wait_for(page.exists)
    assert 'http-equiv="refresh"' in page.read_text()
    before = page.stat().st_mtime_ns
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "reward/mean": 1.0}\n')
    wait_for(lambda: page.stat().st_mtime_ns > before)
    (folder / "result.json").write_text('{"finished": true}')
    watching.join(60)
    assert not watching.is_alive()
    assert 'http-equiv="refresh"' not in page.read_text()


def test_only_runs_can_be_followed(comparison, tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    with pytest.raises(UserError, match="--watch follows runs"):
        watch_report([tmp_path])
