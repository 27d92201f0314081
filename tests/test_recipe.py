from pathlib import Path

import pytest

from vineppo.config import diff, flatten, read_toml, write_toml
from vineppo.quickstart import SFT, VINEPPO
from vineppo.recipe import SFTRecipe, TrainRecipe, load_recipe, make_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_survive_being_written(path, tmp_path):
    kind = SFTRecipe if "sft" in read_toml(path) else TrainRecipe
    recipe = load_recipe(path, kind=kind)
    write_toml(recipe, tmp_path / "again.toml")
    assert diff(recipe, load_recipe(tmp_path / "again.toml", kind=kind)) == {}


@pytest.mark.parametrize("path", [p for p in RECIPES if p.parent.name == "paper"], ids=lambda path: path.stem)
def test_paper_recipes_have_the_paper_code_s_numbers(path):
    recipe = flatten(load_recipe(path).model_dump(mode="json"))
    numbers = {
        "sampling.prompts_per_iteration": 64,
        "sampling.group_size": 8,
        "sampling.temperature": 0.6,
        "sampling.top_p": 0.9,
        "sampling.max_new_tokens": 1024,
        "credit.num_vines": 9,
        "train.num_epochs": 2,
        "train.minibatch_size": 64,
        "train.num_iterations": 650 if "gsm8k" in path.stem else 1000,
        "learner.clip_eps": 0.2,
        "learner.kl_coef": 1e-4,
        "learner.kl_estimator": "k3",
        "learner.optim.lr": 1e-6,
        "learner.optim.warmup_ratio": 0.03,
        "learner.optim.max_grad_norm": 1.0,
        "evaluation.num_samples": 16,
        "evaluation.temperature": 0.35,
    }
    assert {key: recipe[key] for key in numbers} == numbers


def test_quickstart_recipes_are_valid():
    common = {"seed": 0, "device": "cpu"}
    make_recipe({"name": "a", **common, **SFT}, kind=SFTRecipe, source="quickstart")
    make_recipe({"name": "b", **common, **VINEPPO, "model": {"name": "x"}}, kind=TrainRecipe, source="quickstart")
