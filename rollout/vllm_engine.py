"""The vLLM engine: in this process on a CPU (`vllm_inprocess.py`), AsyncLLM on a GPU; one class above both.

Importing this module is light; vLLM is imported by the constructor. It reads its environment when it is imported, so
`engine_environment` must be in place before: an actor gets it through its runtime environment.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rollout.admission import SyncGate, check_prompt
from rollout.engine import EngineConfig
from rollout.errors import ModelError, SyncFailed, WorkerLost
from rollout.sampling import Sampling
from rollout.snapshot import verify
from rollout.types import Generation, Snapshot
from rollout.weights import check_fit, weights_of_folder

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput

T = TypeVar("T")

HEALTH_EVERY_S = 1.0


def engine_environment(kind: str, device: str, *, num_threads: int = 1) -> dict[str, str]:
    """The environment variables that a process with an engine must have before it imports torch or vLLM.

    `num_threads` is for a CPU. More than one rarely pays there for small models, and unbound threads of several processes on the
    same cores slow each other down tenfold.
    """
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = str(num_threads)
    if kind == "vllm":
        environment |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if kind == "vllm" and device == "cpu":
        environment |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # "auto" puts the engines of all processes on the first core
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCH_COMPILE_DISABLE": "1",  # two small functions of the sampler would take 15 s to compile
        }
    return environment


class VllmEngine:
    """An Engine (see engine.py) over vLLM. At temperature 0 the log-probabilities are those of temperature 1.

    A load does not wait for requests in flight: they are paused, compute their context anew and go on with the new weights; their
    `policy_version` is the oldest version that sampled one of their tokens. A load that fails ends them with SyncFailed.
    """

    def __init__(
        self,
        model_path: str,
        config: EngineConfig,
        *,
        stop_token_ids: Sequence[int],
        device: str,
        in_process: bool | None = None,
    ) -> None:
        """`in_process` None: on a CPU yes, on a GPU no."""
        self._gate = SyncGate()
        self._stop_token_ids = list(stop_token_ids)
        self._weights = weights_of_folder(model_path)
        self._llm: Any = _make_llm(model_path, config, device, in_process=device == "cpu" if in_process is None else in_process)
        self._max_model_len: int = self._llm.model_config.max_model_len
        self._vocab_size: int = self._llm.model_config.get_vocab_size()
        self._running: set[asyncio.Task[RequestOutput]] = set()
        self._ended_by_load: dict[asyncio.Task[RequestOutput], SyncFailed] = {}
        self._is_half_updated = False
        self._is_closed = False

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, n: int, seed: int) -> list[Generation]:
        """See Engine. A completion that reaches the model's length ends there with finish reason length.

        Raises PromptTooLong or PromptError for a prompt that cannot be continued, WorkerLost when the engine has died.
        """
        self._raise_if_lost()
        check_prompt(prompt_ids, max_model_len=self._max_model_len, vocab_size=self._vocab_size)
        version = await self._gate.enter()
        # All greedy continuations are one, and vLLM refuses to make more.
        num_sampled = 1 if sampling.temperature == 0 else n
        running = asyncio.create_task(self._finished(prompt_ids, sampling, num_sampled, seed, version))
        self._running.add(running)
        try:
            output = await running
        except asyncio.CancelledError:
            if running in self._ended_by_load:
                raise self._ended_by_load.pop(running) from None
            raise
        finally:
            self._running.discard(running)
        assert len(output.outputs) == num_sampled, f"vLLM returned {len(output.outputs)} of {num_sampled} completions"
        generations = [_generation(completion) for completion in sorted(output.outputs, key=lambda completion: completion.index)]
        return generations * (n // num_sampled)

    async def load(self, snapshot: Snapshot) -> None:
        """See Engine."""
        self._raise_if_lost()
        async with self._gate.loading(snapshot):
            try:
                await asyncio.to_thread(self._check, snapshot)
                await self._while_alive(self._update(snapshot))
            except SyncFailed as error:
                for running in self._running:
                    self._ended_by_load[running] = error
                    running.cancel()
                raise

    async def close(self) -> None:
        """See Engine."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._llm.shutdown)
            self._llm = None

    def _check(self, snapshot: Snapshot) -> None:
        verify(snapshot)
        check_fit(snapshot, self._weights)

    async def _finished(self, prompt_ids: Sequence[int], sampling: Sampling, n: int, seed: int, version: int) -> RequestOutput:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        params = SamplingParams(
            n=n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=seed,
            stop_token_ids=self._stop_token_ids,
            ignore_eos=True,  # the stop ids are the only ones, also where the model's config names others
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        # The salt keeps what other weights computed out of reach, even if a reset of the prefix cache were missed.
        prompt = TokensPrompt(prompt_token_ids=list(prompt_ids), cache_salt=str(version))
        try:
            async for output in self._llm.generate(prompt, params, uuid.uuid4().hex):
                if output.finished:
                    return output
        except EngineDeadError as error:
            raise WorkerLost(f"vLLM's engine process died: {error}. Replace the worker.") from error
        raise WorkerLost("vLLM ended a request without a result. Replace the worker.")

    async def _update(self, snapshot: Snapshot) -> None:
        """vLLM's weight-update protocol. Sampling resumes only when every step of it has succeeded."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
        from vllm.v1.engine.exceptions import EngineDeadError

        llm = self._llm
        try:
            await llm.pause_generation(mode="keep", clear_cache=True)
            if self._is_half_updated:
                await llm.collective_rpc("abandon_weight_update")
            self._is_half_updated = True
            await llm.start_weight_update()
            await llm.update_weights(WeightTransferUpdateRequest(update_info={"path": snapshot.path}))
            await llm.finish_weight_update(weight_version=str(snapshot.version))
            await llm.resume_generation()
            self._is_half_updated = False
        except (EngineDeadError, WorkerLost) as error:
            raise WorkerLost(f"vLLM's engine died in a weight update: {error}. Replace the worker.") from error
        except Exception as error:  # a failure in a vLLM worker arrives here as a bare Exception
            raise SyncFailed(f"vLLM did not take version {snapshot.version}: {error!r}. Load it again.") from error

    async def _while_alive(self, update: Awaitable[T]) -> T:
        """Wait for a call to vLLM, but not for one that died: it answers nothing, and the call would never end."""
        task = asyncio.ensure_future(update)
        try:
            while not (await asyncio.wait({task}, timeout=HEALTH_EVERY_S))[0]:
                self._raise_if_lost()
            return task.result()
        finally:
            task.cancel()

    def _raise_if_lost(self) -> None:
        if self._is_closed:
            raise WorkerLost("the engine was closed.")
        if self._llm.errored:
            raise WorkerLost(f"vLLM has died: {self._llm.dead_error} Replace the worker.") from self._llm.dead_error


def _generation(completion: CompletionOutput) -> Generation:
    spans, logprobs, reason = completion.weight_versions, completion.logprobs, completion.finish_reason
    if reason not in ("stop", "length"):
        raise WorkerLost(f"vLLM ended a completion with {reason!r} instead of stop or length. Replace the worker.")
    assert spans, "vLLM did not say which weights sampled a completion"
    assert logprobs is not None
    return Generation(
        token_ids=tuple(completion.token_ids),
        logprobs=tuple(logprobs.logprobs),  # type: ignore[attr-defined]  # FlatLogprobs: one per token, as logprobs=0 asks for
        finish_reason="stop" if reason == "stop" else "length",
        policy_version=min(int(span.version) for span in spans),
    )


def _engine_arguments(model_path: str, config: EngineConfig, device: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": model_path,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # nothing from the model folder's generation_config.json, whose penalties the learner ignores
        "dtype": {"cpu": "float32"}.get(device, "bfloat16") if config.dtype == "auto" else config.dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": True,
        # A prompt cut in two rewinds its request's seeded generator, which raises on a CPU: prompts are taken whole.
        "enable_chunked_prefill": device != "cpu",
        "logprobs_mode": "processed_logprobs",  # the default ones are taken before temperature
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "weight_transfer_config": {"backend": "shm"},
        "worker_extension_cls": "rollout.vllm_extension.WorkerExtension",
    }
    if device == "cpu":
        # A block of the default 128 tokens is never full, hence never shared, in a short prompt.
        return arguments | {"enforce_eager": True, "kv_cache_memory_bytes": config.kv_cache_mb << 20, "block_size": 32}
    return arguments | {"gpu_memory_utilization": config.gpu_memory_utilization}


def _make_llm(model_path: str, config: EngineConfig, device: str, *, in_process: bool) -> Any:
    """Start vLLM. Raises ModelError when it cannot run this model with these settings."""
    from vllm import AsyncEngineArgs, EngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from rollout.vllm_inprocess import InProcessLLM

    arguments = _engine_arguments(model_path, config, device)
    try:
        llm = InProcessLLM(EngineArgs(**arguments)) if in_process else AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    except ValueError as error:
        raise ModelError(f"vLLM cannot run the model {model_path}: {error}") from error
    if device == "cpu":
        _check_head_size(model_path, llm)
    return llm


def _check_head_size(model_path: str, llm: Any) -> None:
    # vLLM starts with any size, and dies in the first step with one that its CPU kernels lack.
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size, supported = llm.model_config.get_head_size(), CPUAttentionBackend.get_supported_head_sizes()
    if size not in supported:
        llm.shutdown()
        raise ModelError(
            f"vLLM on a CPU cannot run the model {model_path}: its attention heads have size {size}, and vLLM has kernels for "
            f'{", ".join(map(str, supported))}. Use engine.kind = "hf".'
        )
