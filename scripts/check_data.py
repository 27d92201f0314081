"""Whether a folder of GSM8K or MATH has what the paper's recipes expect: python scripts/check_data.py FOLDER

GSM8K is train.jsonl and test.jsonl of https://github.com/openai/grade-school-math, as they are. MATH is the 12,000
problems for training and the 500 for testing of https://github.com/openai/prm800k (math_splits), the split of Lightman
et al. 2023, "Let's Verify Step by Step". The recipes hold 500 of the 12,000 out for validation by themselves.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vineppo.machine.files import read_lines
from vineppo.machine.terminal import printable
from vineppo.types import UserError

DATA = {  # fields -> name, how many problems there are in train.jsonl and test.jsonl
    ("question", "answer"): ("GSM8K", {"train": 7473, "test": 1319}),
    ("problem", "solution"): ("MATH", {"train": 12_000, "test": 500}),
}


def main(folder: Path) -> int:
    try:
        problems = list(find_problems(folder))
    except (UserError, OSError) as error:
        problems = [str(error)]
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    return 1 if problems else 0


def find_problems(folder: Path):
    texts: dict[str, set[str]] = {}
    for split in ("train", "test"):
        path = folder / f"{split}.jsonl"
        records = read_lines(path)
        found = [(fields, known) for fields, known in DATA.items() if records and all(f in records[0] for f in fields)]
        if not found:
            yield f"{path}: its first line has neither the fields of GSM8K nor those of MATH"
            return
        ((fields, (name, counts)),) = found
        for number, record in enumerate(records, 1):
            if not all(isinstance(record.get(field), str) for field in fields):
                yield f"{path}:{number}: {' or '.join(fields)} is missing or not a text"
                return
        if len(records) != counts[split]:
            yield f"{path}: {len(records)} problems of {name}, not {counts[split]}"
        texts[split] = {record[fields[0]] for record in records}
    if both := len(texts["train"] & texts["test"]):
        yield f"{folder}: {both} problems are in train.jsonl and in test.jsonl"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
