"""Files of tensors and plain values: optimizer states, pairs. Nothing in them is ever executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vineppo.machine.files import naming
from vineppo.types import UserError


def save_tensors(tree: Any, path: Path) -> None:
    import torch

    with naming(path), path.open("wb") as file:  # torch's own writer does not say why it failed
        torch.save(tree, file)


def load_tensors(path: Path, *, mmap: bool = False) -> Any:
    """On the CPU; with `mmap` the numbers stay on the disk until they are used.

    Raises UserError where the file is not one of these.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # torch has a class of its own for every kind of damage
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a file of tensors ({reason})") from None
