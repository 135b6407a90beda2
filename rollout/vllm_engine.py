"""The vLLM engine: in this process on a CPU (`vllm_inprocess.py`), AsyncLLM on a GPU; one class above both.

Importing this module is light; vLLM is imported by the constructor. It reads its environment when it is imported, so
`engine_environment` must be in place before: an actor gets it through its runtime environment.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import shutil
import uuid
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rollout.admission import SyncGate, check_prompt
from rollout.engine import EngineConfig
from rollout.errors import SyncFailed, WorkerLost
from rollout.sampling import Sampling
from rollout.snapshot import verify
from rollout.types import Generation, Snapshot, VersionSpan
from rollout.vllm_sleep import SleepMode
from rollout.vllm_start import make_llm, socket_folder
from rollout.weights import check_adapter, check_fit, weights_of_folder

if TYPE_CHECKING:
    from vllm import CompletionOutput, RequestOutput
    from vllm.lora.request import LoRARequest

T = TypeVar("T")

HEALTH_EVERY_S = 1.0


def engine_environment(kind: str, device: str, *, num_threads: int = 1) -> dict[str, str]:
    """The environment variables that a process with an engine must have before it imports torch or vLLM.

    `num_threads` is for a CPU. Unbound threads of several processes that work on the same cores at the same time slow each other
    down tenfold; they wait without spinning, so that those of a process that waits for another cost nothing.
    """
    environment = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if device == "cpu":
        environment |= {"OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "PASSIVE"}
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
    `version_spans` say where they crossed. A load that fails ends them with SyncFailed. A load of an adapter waits: a request keeps
    the one that it began with.
    """

    def __init__(
        self,
        model_path: str,
        config: EngineConfig,
        *,
        stop_token_ids: Sequence[int],
        device: str,
        in_process: bool | None = None,
        adapter_rank: int = 0,
        can_sleep: bool = False,
    ) -> None:
        """`in_process` None: on a CPU yes, on a GPU no. With an `adapter_rank` snapshots are LoRA adapters up to that rank.

        `can_sleep` is for a GPU: vLLM has no sleep mode on a CPU, where the engine stays awake.
        """
        self._gate = SyncGate()
        self._stop_token_ids = list(stop_token_ids)
        self._weights = weights_of_folder(model_path)
        self._is_in_process = device == "cpu" if in_process is None else in_process
        self._can_sleep = can_sleep and device != "cpu"
        options = {"in_process": self._is_in_process, "adapter_rank": adapter_rank, "can_sleep": self._can_sleep}
        self._make_llm = functools.partial(make_llm, model_path, config, device, **options)
        self._adapter_rank = adapter_rank
        self._adapter: LoRARequest | None = None
        self._num_adapters = 0
        self._llm: Any = self._make_llm()
        self._max_model_len: int = self._llm.model_config.max_model_len
        self._vocab_size: int = self._llm.model_config.get_vocab_size()
        self._running: set[asyncio.Task[RequestOutput]] = set()
        self._ended_by_load: dict[asyncio.Task[RequestOutput], SyncFailed] = {}
        self._is_half_updated = False
        self._sleep_mode = SleepMode(keeps_weights=adapter_rank > 0)
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
                await self._while_alive(self._put_on(snapshot) if self._adapter_rank else self._update(snapshot))
            except SyncFailed as error:
                for running in self._running:
                    self._ended_by_load[running] = error
                    running.cancel()
                if snapshot.is_sent:  # the learner and the other engines would wait for this one
                    await self._while_alive(self._llm.collective_rpc("leave_broadcast"))
                raise

    async def sleep(self) -> bool:
        """See Engine, and vllm_sleep.py."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._raise_if_lost()
        if not self._can_sleep:
            return False
        async with self._gate.falling_asleep():
            try:
                await self._while_alive(self._sleep_mode.begin(self._llm))
            except EngineDeadError as error:
                raise WorkerLost(f"vLLM's engine died when it fell asleep: {error}. Replace the worker.") from error
        return True

    async def ping(self) -> None:
        """See Engine."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._raise_if_lost()
        try:
            await self._while_alive(self._llm.is_sleeping())  # the cheapest question that the engine itself answers
        except EngineDeadError as error:
            raise WorkerLost(f"vLLM's engine process died: {error}. Replace the worker.") from error

    async def restart(self) -> bool:
        """See Engine."""
        if self._is_in_process or self._is_closed:
            return False
        await asyncio.to_thread(self._llm.shutdown)
        self._gate = SyncGate()
        self._sleep_mode = SleepMode(keeps_weights=self._adapter_rank > 0)
        self._is_half_updated = False
        self._llm = await asyncio.to_thread(self._make_llm)
        return True

    async def close(self) -> None:
        """See Engine."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.to_thread(self._llm.shutdown)
            self._llm = None
            if not self._is_in_process:
                shutil.rmtree(socket_folder(), ignore_errors=True)

    def _check(self, snapshot: Snapshot) -> None:
        verify(snapshot)
        if self._adapter_rank:
            check_adapter(snapshot, self._weights, rank=self._adapter_rank)
        else:
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
            async for output in self._llm.generate(prompt, params, uuid.uuid4().hex, lora_request=self._adapter):
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
            await self._sleep_mode.wake_weights(llm)
            if self._is_half_updated:
                await llm.collective_rpc("abandon_weight_update")
            self._is_half_updated = True
            await llm.start_weight_update()
            await llm.update_weights(WeightTransferUpdateRequest(update_info=dataclasses.asdict(snapshot)))
            await llm.finish_weight_update(weight_version=str(snapshot.version))
            await self._sleep_mode.end(llm)
            await llm.resume_generation()
            self._is_half_updated = False
        except (EngineDeadError, WorkerLost) as error:
            raise WorkerLost(f"vLLM's engine died in a weight update: {error}. Replace the worker.") from error
        except Exception as error:  # a failure in a vLLM worker arrives here as a bare Exception
            raise SyncFailed(f"vLLM did not take version {snapshot.version}: {error!r}. Load it again.") from error

    async def _put_on(self, snapshot: Snapshot) -> None:
        """Sample with this adapter from now on. Its name is a new one each time: vLLM's caches keep what belongs to a name."""
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        while self._running:
            await asyncio.wait(self._running)
        self._num_adapters += 1
        name = f"version-{snapshot.version}-{self._num_adapters}"
        adapter = LoRARequest(name, self._num_adapters, str(Path(snapshot.path).parent))
        try:
            await self._sleep_mode.wake_weights(self._llm)
            await self._llm.add_lora(adapter)
            await self._llm.update_weight_version(str(snapshot.version))
            await self._sleep_mode.end(self._llm)
        except EngineDeadError as error:
            raise WorkerLost(f"vLLM's engine died in the load of an adapter: {error}. Replace the worker.") from error
        except Exception as error:  # a failure in a vLLM worker arrives here as a bare Exception
            raise SyncFailed(f"vLLM did not take the adapter of version {snapshot.version}: {error!r}. Load it again.") from error
        self._adapter = adapter

    async def _while_alive(self, update: Awaitable[T]) -> T:
        """Wait for a call to vLLM, but not for one that died: it answers nothing, and the call would never end."""
        llm, task = self._llm, asyncio.ensure_future(update)
        try:
            while not (await asyncio.wait({task}, timeout=HEALTH_EVERY_S))[0]:
                self._raise_if_lost()
                if llm is not self._llm:
                    raise WorkerLost("vLLM's engine process died and was started again.")
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
        version_spans=tuple(VersionSpan(int(span.version), span.end - span.start) for span in spans),
    )
