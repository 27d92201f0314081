"""What cannot fit is refused from the recipe alone, and what the recipes of the package ask for is not."""

from pathlib import Path

import pytest

from vineppo.cli.quickstart import SFT, VINEPPO
from vineppo.credit.vineppo import VinePPOConfig
from vineppo.methods import load_recipe
from vineppo.methods.sft import SFTRecipe
from vineppo.methods.train import TrainRecipe
from vineppo.models import TinyModelConfig
from vineppo.models.make import make_symbol_tokenizer, make_tiny_model
from vineppo.models.sizes import count_tiny_parameters
from vineppo.runs.estimate import announce_days, check_sizes
from vineppo.runs.recipe import make_recipe
from vineppo.types import UserError

RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.toml")), ids=lambda path: path.stem)
def test_the_package_s_own_recipes_are_let_through(path):
    check_sizes(load_recipe(path))


@pytest.mark.parametrize(
    "override",
    [
        "credit.num_vines=1000000000",
        "sampling.prompts_per_iteration=10000000000",
        "sampling.group_size=10000000000",
        "evaluation.num_samples=1000000000000",
    ],
)
def test_what_cannot_fit_is_refused_with_the_estimate_and_the_key(override):
    with pytest.raises(UserError, match=rf"need at least .* may hold .*{override.split('=')[0].split('.')[1]}"):
        check_sizes(load_recipe(RECIPES / "compare" / "vineppo.toml", [override], kind=TrainRecipe))


@pytest.mark.parametrize("size", [{"hidden_size": 4_000_000}, {"num_layers": 10**9}, {"ffn_size": 10**12}], ids=str)
def test_models_that_cannot_fit_are_refused(size):
    tree = {"name": "x", **SFT, "model": {"from_scratch": {**SFT["model"]["from_scratch"], **size}}}
    with pytest.raises(UserError, match=r"the model.* need at least .*model\.from_scratch"):
        check_sizes(make_recipe(tree, kind=SFTRecipe, source="x"))


def test_the_quickstart_fits():
    check_sizes(make_recipe({"name": "x", **VINEPPO, "model": {"name": "m"}}, kind=TrainRecipe, source="x"))


def test_parameters_are_counted_as_they_are():
    tiny = TinyModelConfig(num_layers=3, hidden_size=16, num_heads=2, ffn_size=24)
    model = make_tiny_model(make_symbol_tokenizer("ab"), tiny, 0)
    counted = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "head" not in name)
    assert count_tiny_parameters(tiny) == counted


@pytest.mark.parametrize(
    "override", ["train.num_iterations=1000000000", "sampling.max_new_tokens=1000000000", "credit.num_vines=1000000"]
)
def test_what_takes_days_is_announced_with_the_estimate(override):
    recipe = load_recipe(RECIPES / "compare" / "vineppo.toml", kind=TrainRecipe)
    assert announce_days(recipe) is None
    long = load_recipe(RECIPES / "compare" / "vineppo.toml", [override], kind=TrainRecipe)
    assert isinstance(long.credit, VinePPOConfig)
    tokens = long.train.num_iterations * long.sampling.prompts_per_iteration * long.sampling.group_size
    tokens *= (1 + long.credit.num_vines) * long.sampling.max_new_tokens
    assert f"{tokens:,} tokens or more" in str(announce_days(long))
