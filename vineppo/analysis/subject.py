"""What is analysed: one checkpoint of one training run, with everything that sampling from its policy needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vineppo.credit.ppo import PPO, PPOConfig
from vineppo.environment import Environment
from vineppo.learner.critic import Critic
from vineppo.methods import load_recipe
from vineppo.methods.train import TrainRecipe
from vineppo.models.loading import load_critic_model
from vineppo.runs.checkpoint import checkpoint_folders, checksum
from vineppo.runs.setup import set_up
from vineppo.types import UserError


@dataclass(frozen=True)
class RunCheckpoint:
    """Where to find it, before anything is loaded."""

    run: Path
    recipe: TrainRecipe
    folder: Path

    @property
    def iteration(self) -> int:
        return int(self.folder.name.removeprefix("iteration-"))

    @property
    def header(self) -> dict[str, Any]:
        """The columns that every row about this checkpoint begins with."""
        return {"method": self.recipe.name, "seed": self.recipe.seed, "iteration": self.iteration}

    @property
    def fingerprint(self) -> str:
        """Of the weights, so that what was measured of other weights is never taken for these."""
        return "-".join(checksum(file) for file in sorted(self.folder.glob("*.safetensors")))


def last_checkpoints(rows: Sequence[Mapping[str, Any]], checkpoints: Sequence[RunCheckpoint]) -> list[dict[str, Any]]:
    """The rows about every run's last checkpoint: one policy per run, so that runs are what is averaged over."""
    last: dict[tuple[str, int], int] = {}
    for checkpoint in checkpoints:
        key = checkpoint.recipe.name, checkpoint.recipe.seed
        last[key] = max(last.get(key, 0), checkpoint.iteration)
    return [dict(row) for row in rows if row["iteration"] == last[row["method"], row["seed"]]]


@dataclass(frozen=True)
class Subject:
    checkpoint: RunCheckpoint
    environment: Environment  # sampling as in training
    model: Any
    ppo: PPO | None  # with the run's own critic, where it has one

    @property
    def recipe(self) -> TrainRecipe:
        return self.checkpoint.recipe


def find_checkpoints(runs: Sequence[Path], *, last_only: bool) -> list[RunCheckpoint]:
    found = []
    for run in runs:
        if not (run / "recipe.toml").is_file():
            raise UserError(f"{run}: not a run (recipe.toml is missing)")
        recipe = load_recipe(run / "recipe.toml")
        if not isinstance(recipe, TrainRecipe):
            raise UserError(f"{run}: this analysis is for runs of VinePPO, PPO, GRPO and RLOO")
        folders = checkpoint_folders(run / "checkpoints")
        if not folders:
            raise UserError(f"{run}: this run has no checkpoint")
        found += [RunCheckpoint(run, recipe, folder) for folder in (folders[-1:] if last_only else folders)]
    return found


@contextmanager
def open_subject(checkpoint: RunCheckpoint) -> Iterator[Subject]:
    with set_up(checkpoint.recipe, checkpoint.folder) as setup:
        environment = setup.make_environment(setup.make_engine(), checkpoint.recipe.sampling)
        yield Subject(checkpoint, environment, setup.policy, load_ppo(checkpoint, setup.policy.device))


def load_ppo(checkpoint: RunCheckpoint, device: Any) -> PPO | None:
    config = checkpoint.recipe.credit
    if not isinstance(config, PPOConfig):
        return None
    folder = checkpoint.folder / "critic"
    if not folder.is_dir():
        raise UserError(f"{folder}: this checkpoint of a PPO run has lost its critic")
    model = load_critic_model(folder, device=device)
    return PPO(config, critic=Critic(config.critic, model, total_steps=1))
