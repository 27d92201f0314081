"""What a user mistypes: one line that says what to do, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import tomli_w
import torch
from tiny import RECIPE

from vineppo.analysis import ANALYSES, OF_FILES
from vineppo.cli import KINDS, main, parse


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(RECIPE))
    return path


def complaint(capsys, *argv: object) -> str:
    assert main([str(arg) for arg in argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vineppo: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("credit.num_vine=3", "unknown key 'credit.num_vine'; did you mean 'num_vines'?"),
        ("credits.num_vines=3", "unknown key 'credits'; did you mean 'credit'?"),
        ("learner.optim.lrr=1", "unknown key 'learner.optim.lrr'; did you mean 'lr'?"),
        ("credit.num_vines=0", "credit.num_vines = 0"),
        ("credit.num_vines=many", "credit.num_vines = 'many'"),
        ("sampling.top_p=1.5", "sampling.top_p = 1.5"),
        ("train.num_iterations=-1", "train.num_iterations = -1"),
        ("credit.name=vine", "credit.name = 'vine': must be one of 'vineppo'"),
        ("task.name=chess", "task.name = 'chess': must be one of 'arithmetic', 'code', 'game', 'gsm8k'"),
        ("task.operations=['*5']", "loses information modulo 10"),
        ("model.name=./nowhere", "give either name"),
        ("evaluation.split=dev", "no split 'dev'"),
    ],
)
def test_a_wrong_value_is_named(recipe, tmp_path, capsys, override, said):
    out = tmp_path / "run"
    command = ["eval", recipe, override] if "split" in override else ["train", recipe, override, "--out", out]
    assert said in complaint(capsys, *command)
    assert not out.exists()


def test_windows_is_told_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["doctor"]) == 2
    assert "WSL" in capsys.readouterr().err


def test_missing_recipe_model_and_data(recipe, tmp_path, capsys):
    assert "no such recipe" in complaint(capsys, "train", tmp_path / "none.toml")
    assert "no such file or folder" in complaint(capsys, "eval", recipe, "--model", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "config.json" in complaint(capsys, "eval", recipe, "--model", tmp_path / "empty")
    tree = RECIPE | {"task": {"name": "gsm8k", "path": str(tmp_path / "none.jsonl")}}
    recipe.write_text(tomli_w.dumps(tree | {"model": {"name": "./x"}}))
    said = complaint(capsys, "train", recipe, "--out", tmp_path / "run")
    assert "none.jsonl" in said or "./x" in said


def test_the_wrong_kind_of_recipe(recipe, capsys):
    assert "is a recipe for `vineppo train`" in complaint(capsys, "sft", recipe)


def test_cuda_asked_for_and_absent(recipe, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert "no CUDA device" in complaint(capsys, "train", recipe, "device=cuda", "--out", tmp_path / "run")


def test_all_prompts_too_long(recipe, tmp_path, capsys):
    said = complaint(capsys, "train", recipe, "sampling.max_prompt_tokens=2", "--out", tmp_path / "run")
    assert "longer than 2 tokens" in said


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """(recipe, run folder) of a run of two iterations."""
    root = tmp_path_factory.mktemp("finished")
    recipe = root / "recipe.toml"
    recipe.write_text(tomli_w.dumps(RECIPE | {"train": {"num_iterations": 2, "num_epochs": 1, "minibatch_size": 4}}))
    assert main(["train", str(recipe), "--out", str(root / "run")]) == 0
    return recipe, root / "run"


def test_a_run_folder_that_exists_is_refused(finished, capsys):
    recipe, run = finished
    assert "--resume" in complaint(capsys, "train", recipe, "--out", run)
    assert "is not empty and not a run" in complaint(capsys, "train", recipe, "--out", run / "rollouts")
    assert "no run to resume" in complaint(capsys, "train", recipe, "--resume", "--out", run / "other")


def test_resume_with_a_changed_recipe_shows_the_difference(finished, capsys):
    recipe, run = finished
    said = complaint(capsys, "train", recipe, "credit.num_vines=5", "--resume", "--out", run)
    assert "credit.num_vines: 2 -> 5" in said


def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(finished, capsys):
    recipe, run = finished
    weights = run / "checkpoints" / "iteration-000002" / "model.safetensors"
    good = weights.read_bytes()
    metrics = (run / "metrics.jsonl").read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert main(["train", str(recipe), "--resume", "--out", str(run)]) == 0
    assert str(weights) in capsys.readouterr().out
    assert weights.read_bytes() == good
    assert (run / "metrics.jsonl").read_bytes() == metrics


def test_a_finished_run_opens_in_transformers_and_can_be_evaluated(finished, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    recipe, run = finished
    model = run / "checkpoints" / "iteration-000002"
    assert AutoModelForCausalLM.from_pretrained(model).config.num_hidden_layers == 1
    capsys.readouterr()
    report = tmp_path / "eval.json"
    assert main(["eval", str(recipe), "--model", str(model), "--json", str(report)]) == 0
    assert json.loads(report.read_text()) == json.loads(capsys.readouterr().out)
    trained = json.loads((run / "result.json").read_text())
    assert json.loads(report.read_text())["pass@1"] == trained["pass@1"]


def test_a_finished_run_has_a_report(finished, tmp_path, capsys):
    _, run = finished
    written = (run / "report.html").read_bytes()
    assert main(["report", str(run), "--out", str(tmp_path / "again.html")]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'again.html'}\n"
    assert (tmp_path / "again.html").read_bytes() == written


def test_config_show_and_diff(recipe, tmp_path, capsys):
    assert main(["config", "show", str(recipe), "credit.num_vines=7"]) == 0
    other = tmp_path / "other.toml"
    other.write_text(capsys.readouterr().out)
    assert main(["config", "diff", str(recipe), str(other)]) == 0
    assert capsys.readouterr().out == "credit.num_vines: 2 -> 7\n"


@pytest.mark.parametrize(
    "command", [[], ["quickstart"], ["sft"], ["train"], ["eval"], ["report"], ["config", "show"], ["config", "diff"]]
)
def test_help_is_there(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_the_help_names_every_kind_of_analysis():
    assert (*ANALYSES, *OF_FILES) == KINDS


def test_a_folder_may_have_an_equals_sign(finished, tmp_path, capsys):
    _, run = finished
    copy = tmp_path / "lr=2e-6"
    shutil.copytree(run, copy)
    assert main(["compare", str(copy), "--out", str(tmp_path / "out")]) == 0
    assert "lr=2e-6" in (tmp_path / "out" / "comparison.json").read_text()


def test_overrides_may_stand_anywhere_and_strangers_are_named(recipe, tmp_path, capsys):
    for argv in (["--out", "x", "seed=7"], ["seed=7", "--out", "x"], ["--out", "x", "seed=6", "--resume", "seed=7"]):
        args = parse(["train", str(recipe), *argv])
        assert (str(args.out), args.overrides[-1]) == ("x", "seed=7")
    for argv in (
        ["train", str(recipe), "--sed=7"],
        ["train", str(recipe), "--out", "x", "seed"],
        ["quickstart", "a=1"],
    ):
        with pytest.raises(SystemExit) as stopped:
            parse(argv)
        assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.from_scratch.num_layer=3", "did you mean 'num_layers'?"),
        ("model.from_scratch.hidden_size=18", "must be a multiple of"),
        ("task.operations=[]", "task.operations = []"),
        ("learner.optim.betas=[0.9, 1.0]", "learner.optim.betas.1 = 1.0"),
        ("task.name=[1]", "task.name = [1]"),
        ("task.num_test=100000", "distinct test problems exist"),
    ],
)
def test_a_mistake_is_found_before_anything_is_run(recipe, tmp_path, capsys, override, said):
    assert said in complaint(capsys, "train", recipe, override, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_failed_at_its_start_can_be_mended(recipe, tmp_path, capsys):
    """No model, prompts too long, ...: nothing was learnt, so the same folder takes the mended recipe."""
    out = tmp_path / "run"
    complaint(capsys, "train", recipe, "sampling.max_prompt_tokens=2", "--out", out)
    assert (out / "recipe.toml").exists()
    assert main(["train", str(recipe), "train.num_iterations=1", "--out", str(out)]) == 0


def test_when_all_checkpoints_are_damaged_nothing_is_run_over_them(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", str(recipe), "train.num_iterations=2", "--out", str(out)]) == 0
    capsys.readouterr()
    metrics = (out / "metrics.jsonl").read_bytes()
    for folder in (out / "checkpoints").iterdir():
        (folder / "trainer.json").write_text("{}")
    argv = ["train", str(recipe), "train.num_iterations=2", "--out", str(out), "--resume"]
    assert main(argv) == 2
    assert "no other checkpoint is left" in capsys.readouterr().err
    assert (out / "metrics.jsonl").read_bytes() == metrics


def test_only_the_embedded_task_has_symbols_for_a_model_from_scratch(recipe, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    recipe.write_text(tomli_w.dumps(RECIPE | {"task": {"name": "gsm8k", "path": str(tmp_path / "data")}}))
    assert "does not list its symbols" in complaint(capsys, "train", recipe, "--out", tmp_path / "run")


def test_a_result_that_could_not_be_written_is_refused_before_it_is_computed(recipe, tmp_path, capsys):
    assert "there is no folder" in complaint(capsys, "eval", recipe, "--json", tmp_path / "no" / "x.json")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "r.toml", "--out", ""], "--out: '' is empty"),
        (["train", "r.toml", "--out", "a\0b"], "NUL"),
        (["train", "r.toml", "--out", "a\udce9"], "not UTF-8"),
        (["train", ""], "recipe: '' is empty"),
        (["sft", "  "], "recipe: '  ' is empty"),
        (["eval", "r.toml", "--model", ""], "--model: '' is empty"),
        (["eval", "r.toml", "--json", ""], "--json: '' is empty"),
        (["report", ""], "'' is empty"),
        (["compare", ""], "'' is empty"),
        (["analyze", "", "--kind", "kl"], "'' is empty"),
        (["compare", "r.toml", "--seeds", ""], "is not a list of numbers"),
        (["compare", "r.toml", "--seeds", "0,,1"], "is not a list of numbers"),
        (["compare", "r.toml", "--seeds", "9" * 5000], "is not a list of numbers"),
        (["compare", "r.toml", "--seeds", "0,1,0"], "a seed twice"),
        (["compare", "r.toml", "--seeds", f"{2**63}"], "does not fit in 64 bits"),
        (["compare", "r.toml", "--jobs", "two"], "invalid int value"),
        (["exact", "--seed", f"{-(2**63) - 1}"], "does not fit in 64 bits"),
        (["quickstart", "--seed", "1.5"], "invalid seed value: '1.5'"),
    ],
)
def test_arguments_that_no_command_can_use(argv, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
