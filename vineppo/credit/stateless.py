"""What estimators have in common that learn nothing between iterations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vineppo.types import Sample


class Stateless:
    ready = True

    def update(self, minibatch: Sequence[Sample]) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        pass

    def load(self, folder: Path) -> None:
        pass
