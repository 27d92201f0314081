from pathlib import Path

import pytest
import tomli_w
from tiny import RECIPE

from vineppo.cli.quickstart import SFT, VINEPPO
from vineppo.config import diff, flatten, write_toml
from vineppo.credit.ppo import PPOConfig
from vineppo.learner.config import OptimizerStepConfig
from vineppo.methods import load_recipe
from vineppo.methods.dpo import DPORecipe
from vineppo.methods.restem import RestEMRecipe
from vineppo.methods.sft import SFTRecipe
from vineppo.methods.train import TrainRecipe
from vineppo.runs.recipe import make_recipe
from vineppo.types import UserError

RECIPES = sorted((Path(__file__).parent.parent.parent / "recipes").rglob("*.toml"))
COMPARE = Path(__file__).parent.parent.parent / "recipes" / "compare"
PAPER = Path(__file__).parent.parent.parent / "recipes" / "paper"
LOOP = ("vineppo", "ppo", "grpo", "rloo")
EXPERIMENTS = [f"{model}-{dataset}" for model in ("rho-math-1b", "deepseek-math-7b") for dataset in ("math", "gsm8k")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_survive_being_written(path, tmp_path):
    recipe = load_recipe(path)
    write_toml(recipe, tmp_path / "again.toml")
    assert diff(recipe, load_recipe(tmp_path / "again.toml")) == {}


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo"])
def test_methods_of_the_loop_differ_in_credit_alone(method):
    ours, theirs = (load_recipe(COMPARE / f"{name}.toml") for name in ("vineppo", method))
    changed = diff(ours, theirs)
    assert changed["credit.name"] == ("vineppo", method)
    assert {key.split(".")[0] for key in changed} == {"name", "credit"}


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["sampling.group_size=1"], "nothing to compare"),
        (["train.minibatch_size=1", 'train.advantage_norm="minibatch"'], "whitens a response by itself"),
        (["sampling.group_size=1", "sampling.max_resamples=3"], "groups of size 1"),
    ],
)
def test_settings_from_which_nothing_can_be_learnt_are_refused(method, overrides, reason):
    with pytest.raises(UserError, match=reason):
        load_recipe(COMPARE / f"{method}.toml", overrides)
    if "max_resamples" not in overrides[-1]:
        load_recipe(COMPARE / "ppo.toml", overrides)  # a critic tells tokens apart


def test_all_six_methods_start_alike_and_sample_as_many_rollouts():
    recipes = {path.stem: load_recipe(path) for path in COMPARE.glob("*.toml") if path.stem != "sft"}
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


ALIKE = {
    "sampling.temperature": 0.6,
    "sampling.top_p": 0.9,
    "sampling.max_new_tokens": 1024,
    "learner.optim.lr": 1e-6,
    "learner.optim.schedule": "linear",
    "learner.optim.warmup_ratio": 0.03,
    "learner.optim.weight_decay": 0.0,
    "learner.optim.max_grad_norm": 1.0,
    "evaluation.split": "test",
    "evaluation.num_samples": 16,
    "evaluation.temperature": 0.35,
    "evaluation.top_p": 0.9,
}
LOOP_ALIKE = {
    "sampling.prompts_per_iteration": 64,
    "sampling.group_size": 8,
    "train.num_epochs": 2,
    "train.minibatch_size": 64,
    "train.advantage_norm": "minibatch",
    "learner.clip_eps_low": 0.2,
    "learner.clip_eps_high": 0.2,
    "learner.kl_coef": 1e-4,
    "learner.kl_estimator": "k3",
    "learner.kl_clamp": 10.0,
    "learner.loss_aggregation": "token",
    "evaluation.every": 10,
    "checkpoint.every": 10,
}


NUMBERS = {
    "vineppo": {"credit.num_vines": 9, "credit.vine_budget": "full"},
    "ppo": {
        "credit.gamma": 1.0,
        "credit.gae_lambda": 1.0,
        "credit.warmup_iterations": 0,
        "credit.bootstrap_truncated": False,
        "credit.critic.value_clip_eps": 0.2,
        "credit.critic.optim.lr": 1e-6,
        "credit.critic.optim.schedule": "linear",
        "credit.critic.optim.warmup_ratio": 0.03,
        "credit.critic.optim.weight_decay": 0.0,
        "credit.critic.optim.max_grad_norm": 1.0,
    },
    "grpo": {"credit.divide_by_std": True},
    "rloo": {},
    "restem": {
        "sampling.group_size": 8,
        "restem.num_iterations": 10,
        "restem.max_responses_per_problem": 10,
        "restem.reward_threshold": 1.0,
        "restem.num_epochs": 8,
        "restem.minibatch_size": 64,
        "restem.candidates_every": 500,
        "restem.select": "first_dip",
        "restem.stop_without_gain": False,
        "restem.validation.split": "validation",
        "restem.validation.num_problems": None,
        "restem.validation.num_samples": 16,
        "restem.validation.temperature": 0.35,
        "restem.validation.top_p": 0.9,
        "learner.loss_aggregation": "sequence",
    },
    "dpo": {
        "sampling.group_size": 64,
        "dpo.positive_lambda": 50.0,
        "dpo.label_smoothing": 0.0,
        "dpo.reward_threshold": 0.5,
        "dpo.max_pairs_per_problem": 64,
        "dpo.num_epochs": 3,
        "dpo.minibatch_size": 64,
    },
}


def numbers_of(method, *, gsm8k):
    """What the method and the data set decide."""
    iterations = {"train.num_iterations": 650 if gsm8k else 1000}
    whole_split = {"sampling.prompts_per_iteration": 7100 if gsm8k else 11500}
    of_data = {
        "vineppo": {"credit.max_states_per_rollout": 25 if gsm8k else None},
        "dpo": {"dpo.beta": 0.3 if gsm8k else 0.1},
    }
    return NUMBERS[method] | (iterations if method in LOOP else whole_split) | of_data.get(method, {})


@pytest.mark.parametrize("method", [*LOOP, "restem", "dpo"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_paper_recipes_have_the_paper_code_s_numbers(experiment, method):
    recipe = load_recipe(PAPER / f"{experiment}-{method}.toml")
    assert recipe.name == f"{experiment}-{method}"
    values = flatten(recipe.model_dump(mode="json"))
    numbers = ALIKE | (LOOP_ALIKE if method in LOOP else {}) | numbers_of(method, gsm8k="gsm8k" in experiment)
    assert {key: values.get(key) for key in numbers} == numbers


def test_there_is_a_paper_recipe_for_every_method_and_experiment():
    names = {f"{experiment}-{method}" for experiment in EXPERIMENTS for method in (*LOOP, "restem", "dpo")}
    assert {path.stem for path in PAPER.iterdir()} == names
    assert len(names) == 24


@pytest.mark.parametrize("method", LOOP[1:])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_paper_recipes_of_the_loop_differ_in_credit_alone(experiment, method):
    ours, theirs = (load_recipe(PAPER / f"{experiment}-{name}.toml") for name in ("vineppo", method))
    changed = diff(ours, theirs)
    assert changed["credit.name"] == ("vineppo", method)
    assert {key.split(".")[0] for key in changed} == {"name", "credit"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_ppo_s_critic_learns_like_the_policy(experiment):
    recipe = load_recipe(PAPER / f"{experiment}-ppo.toml", kind=TrainRecipe)
    assert isinstance(recipe.credit, PPOConfig)
    shared = OptimizerStepConfig.model_fields
    assert {key: getattr(recipe.credit.critic, key) for key in shared} == {
        key: getattr(recipe.learner, key) for key in shared
    }


@pytest.mark.parametrize("method", ["restem", "dpo"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_paper_recipes_outside_the_loop_share_all_that_is_not_the_method(experiment, method):
    ours, theirs = (load_recipe(PAPER / f"{experiment}-{name}.toml") for name in ("vineppo", method))
    assert isinstance(theirs, RestEMRecipe | DPORecipe)
    for section in ("seed", "device", "task", "model", "engine", "grading", "metrics"):
        assert getattr(theirs, section) == getattr(ours, section)
    assert theirs.learner.optim == ours.learner.optim
    assert theirs.evaluation.model_copy(update={"every": 10}) == ours.evaluation
    assert theirs.evaluation.every == theirs.checkpoint.every == 1


def test_quickstart_recipes_are_valid():
    common = {"seed": 0, "device": "cpu"}
    make_recipe({"name": "a", **common, **SFT}, kind=SFTRecipe, source="quickstart")
    make_recipe({"name": "b", **common, **VINEPPO, "model": {"name": "x"}}, kind=TrainRecipe, source="quickstart")


def said_of(tree, tmp_path, *overrides) -> str:
    """The one line about a recipe that is refused, without the file's name."""
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(tree))
    with pytest.raises(UserError) as error:
        load_recipe(path, overrides)
    source, said = str(error.value).split(": ", 1)
    assert source == str(path)
    assert "\n" not in said
    return said


def without(*sections):
    return {key: value for key, value in RECIPE.items() if key not in sections}


def test_a_recipe_that_does_not_say_its_kind_is_told_which_there_are(tmp_path):
    for tree in ({}, without("train"), without("train", "credit", "sampling")):
        assert "one of [sft], [train], [restem], [dpo] and [prm]" in said_of(tree, tmp_path)
    assert "got [sft] and [train]" in said_of(RECIPE, tmp_path, "sft.num_epochs=1")
    assert "'sampling' is required; 'credit' is required" in said_of(without("sampling", "credit"), tmp_path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task=3", "task = 3: must be a section"),
        ("task=[{name='arithmetic'}]", "task = [{'name': 'arithmetic'}]: must be a section"),
        ("credit={}", "credit.name must be one of 'vineppo', 'ppo', 'grpo', 'rloo'"),
        ("engine.name={}", "engine.name = {}: must be one of"),
        ("train=3", "train = 3: must be a section"),
        ("learner=2020-01-01", "learner = datetime.date(2020, 1, 1): must be a section"),
        ("model.from_scratch=[]", "model.from_scratch = []: must be a section"),
        ("evaluation.stop=['']", "evaluation.stop.0 = '': must not be empty"),
        ("engine.kernels='fast'", "engine.kernels = 'fast': must be 'auto', 'triton', 'native' or 'torch'"),
        ("sampling.num_vine=1", "unknown key 'sampling.num_vine'"),
        ("model.from_scratch.num_layer=1", "did you mean 'num_layers'?"),
    ],
)  # fmt: skip
def test_sections_and_values_that_are_not_what_they_stand_for(override, said, tmp_path):
    assert said in said_of(RECIPE, tmp_path, override)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "...", ".hidden", "a/b", "/", "a\\b", "a\n", "a b", "\u00e9", "x" * 101]
)
def test_a_name_names_a_folder_in_runs(name, tmp_path):
    assert said_of(RECIPE | {"name": name}, tmp_path).startswith("name = ")


def test_methods_that_compare_responses_need_two_of_them(tmp_path):
    for method in ("grpo", "rloo"):
        tree = RECIPE | {"credit": {"name": method}}
        assert "sampling.group_size = 1" in said_of(tree, tmp_path, "sampling.group_size=1")
    dpo = without("train", "credit") | {"dpo": {}}
    assert "sampling.group_size = 1" in said_of(dpo, tmp_path, "sampling.group_size=1")


def test_seeds_fit_in_64_bits(tmp_path):
    for seed in (-(2**63) - 1, 2**63):
        with pytest.raises(UserError, match="seed"):
            make_recipe(RECIPE | {"seed": seed}, kind=TrainRecipe, source="test")
    for seed in (-(2**63), 2**63 - 1):
        make_recipe(RECIPE | {"seed": seed}, kind=TrainRecipe, source="test")
