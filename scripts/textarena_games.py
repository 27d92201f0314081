"""Which environments of textarena the task `textarena` takes, as the table of docs/textarena.md; no network is needed.

    pip install "vineppo[textarena]"
    python scripts/textarena_games.py > table.md

Each is tried in a process of its own, which may take a minute.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import re

from vineppo.tasks.arena import import_textarena
from vineppo.tasks.textarena import TextArena, TextArenaConfig
from vineppo.types import UserError

MAX_SECONDS = 60
NUM_PROBLEMS = 10
WRAPPED = ("-raw", "-train")
"""Endings of the ids that are a game once more, with other wrappers."""
PLAYERS = "is no game for one player"


def verdict(env_id: str) -> str:
    try:
        task = TextArena(TextArenaConfig(env=env_id))
    except UserError as error:
        return re.sub(r"^task\.env = \S+ |; docs/textarena\.md.*", "", str(error))
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
    names = [name for name in registry if not name.endswith(WRAPPED)]
    by_verdict: dict[str, list[str]] = {}
    for name in names:
        by_verdict.setdefault(in_its_own_process(name), []).append(name)
    others = [name for said, found in by_verdict.items() if PLAYERS in said for name in found]
    print("| what became of it | environments |\n|---|---|")
    for said, found in sorted(by_verdict.items(), key=lambda row: (not row[0].startswith("replays"), row[0])):
        if PLAYERS not in said:
            print(f"| {said.replace('|', ' ')} | {', '.join(f'`{name}`' for name in found)} |")
    print(f"\n{len(others)} more of the {len(names)} are for several players.")


if __name__ == "__main__":
    main()
