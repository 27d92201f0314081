"""Which environments of textarena the task `textarena` takes, as the table of docs/textarena.md; no network is needed.

    pip install "vineppo[textarena]"
    python scripts/textarena_games.py > table.md

Each is tried in a process of its own, which may take a minute.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import re
import sys

from vineppo.tasks.arena import import_textarena
from vineppo.tasks.textarena import TextArena, TextArenaConfig
from vineppo.types import UserError

MAX_SECONDS = 60
NUM_PROBLEMS = 10
WRAPPED = ("-raw", "-train")
"""Endings of the ids that are a game once more, with other wrappers."""
REASONS = {
    r"is no game for one player|players|two-player": "for several players",
    r"^does not replay": "does not replay: the same seed and actions give two games",
    r"SyntaxError": f"not in the syntax of Python {sys.version_info.major}.{sys.version_info.minor}",
    r"nltk\.download": "needs data that nltk downloads: words, averaged_perceptron_tagger_eng",
    r"OPENROUTER_API_KEY": "asks another model over the network",
    r"FileNotFoundError|ImportError": "lacks a file or a package",
    r"could not convert string to float": "gives a text where the reward should be",
}
"""What an error comes to, the first that fits."""


def verdict(env_id: str) -> str:
    try:
        task = TextArena(TextArenaConfig(env=env_id))
    except UserError as error:
        said = re.sub(r"^task\.env = \S+ ", "", str(error))
        return next((reason for pattern, reason in REASONS.items() if re.search(pattern, said)), said)
    try:
        task.sample(NUM_PROBLEMS, seed=0)
    except UserError:
        return f"replays, but has less than {NUM_PROBLEMS} training problems"
    return "replays"


def answer(env_id: str, pipe: multiprocessing.connection.Connection) -> None:
    pipe.send(verdict(env_id))


def in_its_own_process(env_id: str) -> str:
    context = multiprocessing.get_context("fork")  # textarena has been imported, which takes longest
    here, there = context.Pipe()
    process = context.Process(target=answer, args=(env_id, there), daemon=True)
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(MAX_SECONDS) else f"takes more than {MAX_SECONDS} s"
    except EOFError:
        return "ends the process"
    finally:
        process.kill()
        process.join()


def main() -> None:
    registry = import_textarena().envs.registration.ENV_REGISTRY
    by_verdict: dict[str, list[str]] = {}
    for name in registry:
        if not name.endswith(WRAPPED):
            by_verdict.setdefault(in_its_own_process(name), []).append(name)
    print("| what became of it | how many | environments |\n|---|---|---|")
    for said, names in sorted(by_verdict.items(), key=lambda row: -len(row[1])):
        named = f"{names[0]} to {names[-1]}" if said == REASONS[next(iter(REASONS))] else ", ".join(names)
        print(f"| {said} | {len(names)} | {named} |")


if __name__ == "__main__":
    main()
