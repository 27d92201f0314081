"""Engines sample continuations. ENGINES maps the recipe's `engine.name` to a class with a `Config`."""

from vineppo.engine.hf_engine import HFEngine
from vineppo.engine.torch_engine import TorchEngine
from vineppo.engine.vllm_engine import VLLMEngine

ENGINES = {"torch": TorchEngine, "hf": HFEngine, "vllm": VLLMEngine}
