"""Models from outside: whole, finite and without surprises, or one line that says what is wrong with them.

Nothing that comes with a model is executed: no code of a repository, and no pickle but of plain tensors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from vineppo.batch import Batch
from vineppo.models.logprobs import token_logprobs
from vineppo.models.make import drop_sampling_defaults, remove_dropout
from vineppo.models.sizes import check_model_fits
from vineppo.types import UserError

SAFE = {"trust_remote_code": False}  # None would ask on a terminal
LFS_POINTER = b"version https://git-lfs"
LONGEST_REASON = 300  # characters
CLASSIFIERS = {
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForSequenceClassification": AutoModelForSequenceClassification,
}
"""By how the name of an architecture ends."""


def load_policy_model(name: str, *, device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """(tokenizer, model) that belong together: every ordinary token has an embedding."""
    tokenizer, model = load_tokenizer(name), load_model(name, device=device)
    check_vocabulary(tokenizer, model, name)
    return tokenizer, model


def load_tokenizer(name: str) -> Any:
    """From a hub name, a folder, or a GGUF file (or a folder that holds one). Raises UserError if it has no eos."""
    tokenizer = _from_pretrained(AutoTokenizer, name)
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: the tokenizer has no eos token, so no response could end; set one and save it")
    tokenizer.clean_up_tokenization_spaces = False  # a text is what its tokens wrote, wherever it is read
    return tokenizer


def load_model(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """From a hub name, a folder, or a GGUF file (dequantised); without dropout, so that scores repeat exactly."""
    options: dict[str, Any] = {}
    if gguf_file(name) is not None:
        _require_gguf()
        from transformers import GgufConfig

        options["quantization_config"] = GgufConfig(dequantize=True)
    model = _load_whole(AutoModelForCausalLM, name, dtype=dtype, **options)
    drop_sampling_defaults(model)
    model = model.to(device).eval()
    with _one_line(name):
        check_logprobs(model, name)
    return model


def load_critic_model(folder: Path | str, *, device: torch.device | str = "cpu") -> Any:
    return _load_whole(AutoModelForTokenClassification, str(folder), dtype=torch.float32).to(device).eval()


def load_classifier(name: str, *, device: torch.device | str = "cpu") -> Any:
    """A sequence or token classifier, whichever its config.json says; from safetensors alone."""
    architectures = getattr(_from_pretrained(AutoConfig, name), "architectures", None) or []
    said = [str(architecture) for architecture in architectures]
    auto = next((auto for ending, auto in CLASSIFIERS.items() if any(a.endswith(ending) for a in said)), None)
    if auto is None:
        raise UserError(
            f"model {name}: a reward model is a sequence or token classifier, and config.json names "
            f"{', '.join(said) or 'no architecture'}; `vineppo prm` trains one"
        )
    return _load_whole(auto, name, dtype=torch.float32, use_safetensors=True).to(device).eval()


@torch.no_grad()
def check_logprobs(model: Any, name: str) -> None:
    """Raises UserError for an architecture whose logits are more than its head's output (Granite, Cohere, ...)."""
    ids_BT = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    ones_BT = torch.ones_like(ids_BT)
    ours_N = token_logprobs(model, Batch(ids_BT, ids_BT, ones_BT, ones_BT.bool()), temperature=1.0)
    theirs_BTV = model(input_ids=ids_BT, attention_mask=ones_BT, use_cache=False).logits.float().log_softmax(-1)
    if not theirs_BTV.isfinite().all():
        raise UserError(f"model {name}: its weights are finite, but its logits are not; they are too large or damaged")
    if not torch.allclose(ours_N.float(), theirs_BTV.gather(2, ids_BT[..., None]).flatten(), atol=1e-2):
        raise UserError(
            f"model {name}: {model.config.model_type} does something to its logits after the head that training here "
            "does not know; choose another architecture"
        )


def check_finite(model: Any, name: str) -> None:
    """Raises UserError that names the first tensor that holds NaN or infinity."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise UserError(f"model {name}: {key} holds numbers that are not finite; the file is damaged or diverged")


def check_vocabulary(tokenizer: Any, model: Any, name: str) -> None:
    """Raises UserError where text can become ids that the model has no embedding for.

    Special tokens besides bos and eos may lie beyond it, as that of images does in text models of Gemma 3.
    """
    size = model.get_input_embeddings().num_embeddings
    unused = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id, tokenizer.bos_token_id}
    beyond = sorted(i for i in set(tokenizer.get_vocab().values()) - unused if i >= size)
    if beyond:
        raise UserError(
            f"model {name}: the tokenizer has {len(beyond)} tokens that the model has no embedding for (ids "
            f"{beyond[0]} to {beyond[-1]}, embeddings {size}); tokenizer and model do not belong together"
        )


def gguf_file(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        return path
    files = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").exists() else []
    return files[0] if files else None


def _weight_bytes(name: str) -> int | None:
    """Of the files that may hold weights; None where they are not on this machine."""
    path = gguf_file(name) or Path(name).expanduser()
    if not path.exists():
        return None
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.suffix in (".safetensors", ".bin", ".gguf", ".pt", ".pth"))


def _load_whole(auto: Any, name: str, **options: Any) -> Any:
    """Every parameter from the file and every tensor of the file in the model, all of them finite."""
    with _one_line(name), _quiet():
        check_model_fits(_from_pretrained(AutoConfig, name), name, _weight_bytes(name))
    # Mismatches are let through to be named below: transformers' own error only points to a table on the terminal.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "weights_only": True}
    model, info = _from_pretrained(auto, name, **options)
    shapes = [f"{key} has {tuple(found)} and not {tuple(wanted)}" for key, found, wanted in info["mismatched_keys"]]
    for problem, keys in (
        ("tensors of another shape", shapes),
        ("weights that are missing", info["missing_keys"]),
        ("tensors that the model has no place for", info["unexpected_keys"]),
    ):
        if keys:
            raise UserError(
                f"model {name}: {len(keys)} {problem}, such as {min(keys)}; config.json and the weights do not belong "
                "together, or a part of them is lost"
            )
    check_finite(model, name)
    remove_dropout(model)
    return model


def _from_pretrained(auto: Any, name: str, **options: Any) -> Any:
    gguf = gguf_file(name)
    looks_local = name.startswith((".", "/", "~")) or gguf is not None or name.count("/") > 1
    name = str(Path(name).expanduser()) if name.startswith("~") else name
    if looks_local and not Path(name).exists():
        raise UserError(f"model {name}: no such file or folder")
    if Path(name).is_dir() and gguf is None and not (Path(name) / "config.json").exists():
        raise UserError(f"model {name}: the folder has neither a config.json nor a .gguf file")
    if gguf is not None:
        _require_gguf()
    with _one_line(name), _quiet():
        if gguf is not None:
            return auto.from_pretrained(gguf.parent, gguf_file=gguf.name, **options, **SAFE)
        return auto.from_pretrained(name, **options, **SAFE)


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is the model's fault, and becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # tokenizers' panics are no Exceptions
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"model {name}: cannot be loaded from a folder or the hub: {_reason(name, error)}") from None


def _reason(name: str, error: BaseException) -> str:
    pointers = [path for path in sorted(Path(name).glob("*")) if path.is_file() and _is_lfs_pointer(path)]
    if pointers:
        return f"{pointers[0].name} is a Git LFS pointer; fetch the file itself (git lfs pull)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    reason = " ".join(lines) if lines[0].endswith(":") else lines[0]
    kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
    return kind + reason[:LONGEST_REASON]


def _is_lfs_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(LFS_POINTER)) == LFS_POINTER


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' tables and warnings: what matters of them is an error here."""
    before, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()


def _require_gguf() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError('GGUF files need an extra: pip install "vineppo[gguf]"') from None
