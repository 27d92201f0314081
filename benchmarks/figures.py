"""No number without a source: every digit of these pages is checked against a committed file.

    python benchmarks/figures.py [--write]

README.md, docs/results.md and docs/quickstart.md are documents. A document has claims and settings. A claim is a piece
of its text whose numbers are computed from the files in benchmarks/results when it is checked (figures_results.py,
figures_analyses.py, figures_readme.py). A setting is a piece of text whose numbers were chosen, not measured. All of
them must stand in the document word for word, and no digit may stand outside of claims, settings, `code`, the targets
of links and names such as GSM8K.

A table between two comments with its name (BLOCKS) is made from files as a whole; --write makes it anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vineppo.intervals import interval

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NOT_PROSE = re.compile(r"`[^`]*`|\]\([^)]*\)|<[^>]*>|\b[A-Za-z]+\d+[A-Za-z]*\b")  # code, links, names as GSM8K


@dataclass(frozen=True)
class Document:
    """Texts are compared with each run of white space as one space, so that lines may be broken anywhere."""

    path: Path
    claims: Sequence[str]
    settings: Sequence[str]


def problems(document: Document, text: str) -> list[str]:
    """What is wrong with this text of the document: claims that it does not make, digits that nothing stands behind."""
    text = squeezed(text)
    covered = [match.span() for match in NOT_PROSE.finditer(text)]
    found = []
    for kind, pieces in (("claim", document.claims), ("setting", document.settings)):
        for piece in map(squeezed, pieces):
            places = [match.span() for match in re.finditer(re.escape(piece), text)]
            if not places:
                found.append(f"{document.path.name}: this {kind} is not there: {piece}")
            covered += places
    open_digits = [
        match.start()
        for match in re.finditer(r"\d", text)
        if not any(start <= match.start() < end for start, end in covered)
    ]
    seen_until = -1
    for place in open_digits:
        if place > seen_until:
            found.append(f"{document.path.name}: no source for: {text[max(0, place - 40) : place + 40]}")
            seen_until = place + 40
    return found


def squeezed(text: str) -> str:
    return " ".join(text.split())


@lru_cache
def load(name: str) -> Any:
    """A file below benchmarks/results."""
    return json.loads((RESULTS / name).read_text())


def over_runs(name: str, table: str, column: str = "estimate", **where: Any) -> dict[str, Any]:
    """Mean and Student's interval over the runs of an analysis, of the rows in which these columns have these values.

    Rows of the last checkpoint, unless `iteration` is among them.
    """
    rows = load(name)["tables"][table]
    last = {} if "iteration" in where else {"iteration": max(row["iteration"] for row in rows)}
    chosen = [row for row in rows if all(row[key] == value for key, value in {**where, **last}.items())]
    return interval([row[column] for row in chosen if row[column] is not None])


def short(value: float, digits: int = 3) -> str:
    """.623 and -.070, as tables here are written."""
    text = f"{value:.{digits}f}"
    return re.sub(r"^(-?)0\.", r"\1.", text)


def ci(value: Mapping[str, Any], digits: int = 3) -> str:
    low, high = value["ci95"]
    return f"{short(value['mean'], digits)} {between(low, high, digits)}"


def between(low: float, high: float, digits: int = 3) -> str:
    return f"[{short(low, digits)}, {short(high, digits)}]"


def documents() -> list[Document]:
    from figures_analyses import results
    from figures_readme import quickstart_page, readme

    return [results(), readme(), quickstart_page()]


def blocks() -> list[tuple[Path, str, str]]:
    """(document, name, text) of what is made as a whole."""
    import figures_credit
    import figures_engine
    import figures_exact
    import figures_readme as readme

    return [
        (ROOT / "docs" / "engine.md", "vines", figures_engine.vines()),
        (ROOT / "docs" / "credit.md", "which credit", figures_credit.by_world()),
        (ROOT / "docs" / "credit.md", "what credit costs", figures_credit.by_cost()),
        (ROOT / "docs" / "methods.md", "exact worlds", figures_exact.by_world()),
        (ROOT / "docs" / "methods.md", "exact costs", figures_exact.by_cost()),
        (readme.README, "results", readme.results_table()),
        (readme.README, "quickstart", readme.fenced(readme.last_table())),
        (readme.QUICKSTART, "transcript", readme.fenced(readme.transcript())),
    ]


def with_block(text: str, name: str, content: str) -> str:
    before, _, after = re.split(rf"(?<=<!-- {name} -->)\n|\n(?=<!-- end of {name} -->)", text)
    return f"{before}\n{content}\n{after}"


def main() -> int:
    found = [problem for document in documents() for problem in problems(document, document.path.read_text())]
    for path, name, content in blocks():
        text = path.read_text()
        fresh = with_block(text, name, content)
        if "--write" in sys.argv:
            path.write_text(fresh)
        elif fresh != text:
            found.append(f"{path.name}: the table {name!r} is not that of the files; --write makes it anew")
    print("\n".join(found) or "every number has a source")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
