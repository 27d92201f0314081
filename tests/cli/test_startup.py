"""What is asked often is answered at once: none of it waits for the libraries that compute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parent.parent.parent / "recipes" / "compare"
VINEPPO = str(RECIPES / "vineppo.toml")
CODE = """
import sys
from vineppo.cli import main
try:
    main(sys.argv[1:])
except SystemExit:  # argparse's, after the help or a mistake
    pass
finally:
    print("loaded:", *{"torch", "transformers", "numpy", "rich"} & sys.modules.keys())
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["train", "--help"],
        *(["config", "show", str(path)] for path in sorted(RECIPES.glob("*.toml"))),
        ["config", "diff", VINEPPO, str(RECIPES / "grpo.toml")],
        ["trian", VINEPPO],
        ["train", "nowhere.toml"],
        ["train", VINEPPO, "credit.num_vine=3"],
        ["sft", VINEPPO],
        ["eval", VINEPPO, "task.name=chess"],
    ],
    ids=lambda argv: " ".join(Path(word).name for word in argv),
)
def test_no_tensor_library_is_loaded(argv):
    done = subprocess.run([sys.executable, "-c", CODE, *argv], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"
