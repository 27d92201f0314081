"""Engines sample continuations. ENGINES maps the recipe's `engine.name` to a part (vineppo.parts).

An engine is made as `Engine(config, architecture, weights, tokenizer, eos_ids)`. These are values and no live module,
so an engine may be made in another process than the one that trains.

    architecture  transformers' config of the model
    weights       name -> tensor, as in the model's state_dict; copied, and they say on which device to run
    tokenizer     decodes tokens into the text that stop strings are looked for in
    eos_ids       every token id that ends a text
"""

from collections.abc import Mapping
from typing import Any

from vineppo.engine.config import HFEngineConfig, TorchEngineConfig, VLLMEngineConfig
from vineppo.engine.stopping import find_eos_ids
from vineppo.parts import Deferred

ENGINES = {
    "torch": Deferred(TorchEngineConfig, "vineppo.engine.llama.engine:TorchEngine"),
    "hf": Deferred(HFEngineConfig, "vineppo.engine.hf:HFEngine"),
    "vllm": Deferred(VLLMEngineConfig, "vineppo.engine.vllm.engine:VLLMEngine"),
}


def engine_inputs(model: Any, tokenizer: Any) -> tuple[Any, Mapping[str, Any], Any, frozenset[int]]:
    """What an engine that samples from this model is made from: `Engine(config, *engine_inputs(model, tokenizer))`."""
    return model.config, model.state_dict(), tokenizer, find_eos_ids(model, tokenizer)
