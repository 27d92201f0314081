"""Engines sample continuations. ENGINES maps the recipe's `engine.name` to a part (vineppo.parts)."""

from vineppo.engine.config import HFEngineConfig, TorchEngineConfig, VLLMEngineConfig
from vineppo.parts import Deferred

ENGINES = {
    "torch": Deferred(TorchEngineConfig, "vineppo.engine.llama.engine:TorchEngine"),
    "hf": Deferred(HFEngineConfig, "vineppo.engine.hf:HFEngine"),
    "vllm": Deferred(VLLMEngineConfig, "vineppo.engine.vllm.engine:VLLMEngine"),
}
