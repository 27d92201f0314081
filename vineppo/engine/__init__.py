"""Engines sample continuations. ENGINES maps the recipe's `engine.name` to a class with a `Config`."""

from vineppo.engine.hf_engine import HFEngine
from vineppo.engine.torch_engine import TorchEngine

ENGINES = {"torch": TorchEngine, "hf": HFEngine}
