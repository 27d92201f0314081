from pathlib import Path

import pytest

from vineppo.config import diff, flatten, write_toml
from vineppo.quickstart import SFT, VINEPPO
from vineppo.recipe import DPORecipe, RestEMRecipe, SFTRecipe, TrainRecipe, load_any_recipe, load_recipe, make_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.toml"))
COMPARE = Path(__file__).parent.parent / "recipes" / "compare"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_survive_being_written(path, tmp_path):
    recipe = load_any_recipe(path)
    write_toml(recipe, tmp_path / "again.toml")
    assert diff(recipe, load_any_recipe(tmp_path / "again.toml")) == {}


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo"])
def test_methods_of_the_loop_differ_in_credit_alone(method):
    ours, theirs = (load_recipe(COMPARE / f"{name}.toml") for name in ("vineppo", method))
    changed = diff(ours, theirs)
    assert changed["credit.name"] == ("vineppo", method)
    assert {key.split(".")[0] for key in changed} == {"name", "credit"}


def test_all_six_methods_start_alike_and_sample_as_many_rollouts():
    recipes = {path.stem: load_any_recipe(path) for path in COMPARE.glob("*.toml") if path.stem != "sft"}
    assert set(recipes) == {"vineppo", "ppo", "grpo", "rloo", "restem", "dpo"}
    ours = recipes["vineppo"]
    for recipe in recipes.values():
        assert isinstance(recipe, TrainRecipe | RestEMRecipe | DPORecipe)
        iterations = (
            recipe.train.num_iterations
            if isinstance(recipe, TrainRecipe)
            else recipe.restem.num_iterations
            if isinstance(recipe, RestEMRecipe)
            else 1
        )
        assert iterations * recipe.sampling.prompts_per_iteration * recipe.sampling.group_size == 640
        assert recipe.sampling.group_size == 8
        for section in ("task", "model", "engine", "learner", "checkpoint", "seed"):
            assert getattr(recipe, section) == getattr(ours, section)
        assert recipe.evaluation.model_copy(update={"every": 0}) == ours.evaluation.model_copy(update={"every": 0})


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
        "learner.clip_eps_low": 0.2,
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
