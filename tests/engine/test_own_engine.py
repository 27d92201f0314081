"""An engine that lies in somebody's own file, named by a recipe as path/to/file.py:Class."""

import json
from collections import Counter
from pathlib import Path

import pytest
from survive import RECIPE

from vineppo.methods.train import TrainRecipe
from vineppo.parts import load_part
from vineppo.rollouts import sample_groups
from vineppo.runs.recipe import make_part, make_recipe
from vineppo.runs.setup import set_up
from vineppo.types import UserError

GOLD = '''
"""Writes what a file holds for each prompt."""

import json
from collections import Counter
from pathlib import Path

from vineppo.config import Named
from vineppo.types import Completion


class GoldConfig(Named):
    name: str
    answers: str


class Gold:
    Config = GoldConfig

    def __init__(self, config, architecture, weights, tokenizer, eos_ids):
        assert architecture.vocab_size == len(weights["lm_head.weight"]) == len(tokenizer)
        self.answers, self.tokenizer = json.loads(Path(config.answers).read_text()), tokenizer
        self.eos_id = min(eos_ids)
        self.usage, self.version = Counter(), 0

    def generate(self, requests, params, *, purpose, keep, on_complete=None):
        completions = []
        for request in requests:
            prompt = self.tokenizer.decode(request.prefix_ids, skip_special_tokens=True)
            ids = (*self.tokenizer.encode(self.answers[prompt]), self.eos_id)
            completions.append(Completion(ids, (0.0,) * len(ids), "eos", self.version))
            self.usage[purpose] += len(ids)
        return completions

    def check(self, requests, params):
        pass

    def load_weights(self, weights, *, version):
        self.version = version
'''


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "gold.py").write_text(GOLD)
    engine = {"name": f"{tmp_path / 'gold.py'}:Gold", "answers": str(tmp_path / "answers.json")}
    load_part(engine["name"], "engine.name")  # as for a recipe of the user's own
    return make_recipe(RECIPE | {"engine": engine}, kind=TrainRecipe, source="recipe.toml")


def write_answers(recipe, split, *, wrong):
    """The gold solutions; of the first `wrong` problems something else."""
    problems = make_part("task", recipe.task).split(split)
    answers = {problem.prompt: "1" if i < wrong else problem.solution for i, problem in enumerate(problems)}
    Path(recipe.engine.answers).write_text(json.dumps(answers))
    return len(problems)


@pytest.mark.parametrize("wrong", [0, 3])
def test_it_is_evaluated_as_built_in_ones_are(wrong, recipe):
    num_problems = write_answers(recipe, recipe.evaluation.split, wrong=wrong)
    with set_up(recipe) as setup:
        engine = setup.make_engine()
        metrics = setup.evaluate(engine).metrics()
    assert metrics["eval/pass@1"] == pytest.approx(1 - wrong / num_problems)
    assert engine.usage["eval"] > 0


def test_its_rollouts_carry_the_version_it_was_given(recipe):
    write_answers(recipe, "test", wrong=0)
    with set_up(recipe) as setup:
        engine = setup.make_engine()
        engine.load_weights(setup.policy.state_dict(), version=5)
        environment = setup.make_environment(engine, recipe.sampling)
        groups = sample_groups(environment, setup.task.split("test")[:4], recipe.sampling, seed=0)
    found = Counter((r.verdict, r.completion.policy_version) for group in groups for r in group)
    assert found == {("correct", 5): 4 * recipe.sampling.group_size}


def test_its_own_knobs_are_checked(recipe):
    engine = {"name": recipe.engine.name, "answer": "typo"}
    with pytest.raises(UserError, match=r"engine\.answer"):
        make_recipe(RECIPE | {"engine": engine}, kind=TrainRecipe, source="recipe.toml")
