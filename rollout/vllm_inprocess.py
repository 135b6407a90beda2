"""vLLM in this process, for CPUs: one thread owns vLLM's LLMEngine, behind the methods of AsyncLLM that we use.

It starts in a third of the time that AsyncLLM takes, needs no second process, and wastes nothing on talking to one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from vllm import EngineArgs, RequestOutput, SamplingParams, TokensPrompt
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.lora.request import LoRARequest
from vllm.v1.engine.llm_engine import LLMEngine

from rollout.engine_thread import EngineThread


class InProcessLLM:
    """The part of AsyncLLM that an engine needs. Needs VLLM_ENABLE_V1_MULTIPROCESSING=0 before vLLM is imported."""

    def __init__(self, arguments: EngineArgs) -> None:
        self._thread = EngineThread(lambda: _SteppedLLM(arguments), name="vllm-engine")
        self.model_config = self._thread.engine.llm.model_config

    async def generate(
        self, prompt: TokensPrompt, params: SamplingParams, request_id: str, *, lora_request: LoRARequest | None
    ) -> AsyncIterator[RequestOutput]:
        """The finished request, once."""
        yield await self._thread.request(
            request_id, lambda engine: engine.llm.add_request(request_id, prompt, params, lora_request=lora_request)
        )

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        assert mode == "keep", "requests are kept over a pause; the other modes are not used"
        await self._thread.call(lambda engine: engine.pause(clear_cache))

    async def resume_generation(self) -> None:
        await self._thread.call(lambda engine: engine.resume())

    async def start_weight_update(self) -> None:
        await self.collective_rpc("start_weight_update")

    async def update_weights(self, request: WeightTransferUpdateRequest) -> None:
        await self.collective_rpc("update_weights", kwargs={"update_info": request.update_info})

    async def finish_weight_update(self, weight_version: str) -> None:
        await self.collective_rpc("finish_weight_update")
        await self.update_weight_version(weight_version)

    async def update_weight_version(self, new_version: str) -> None:
        await self._thread.call(lambda engine: engine.llm.set_weight_version(new_version))

    async def add_lora(self, lora_request: LoRARequest) -> bool:
        return await self._thread.call(lambda engine: engine.llm.add_lora(lora_request))

    async def collective_rpc(self, method: str, kwargs: dict[str, Any] | None = None) -> list[Any]:
        return await self._thread.call(lambda engine: engine.llm.collective_rpc(method, kwargs=kwargs))

    async def is_sleeping(self) -> bool:
        return await self._thread.call(lambda engine: engine.is_paused)

    @property
    def errored(self) -> bool:
        return self._thread.lost is not None

    @property
    def dead_error(self) -> BaseException | None:
        """Why it is `errored`."""
        return self._thread.lost

    def shutdown(self) -> None:
        self._thread.stop()


class _SteppedLLM:
    """vLLM's LLMEngine as a SteppedEngine that can stand still."""

    def __init__(self, arguments: EngineArgs) -> None:
        self.llm = LLMEngine.from_engine_args(arguments)
        self.is_paused = False

    def has_unfinished(self) -> bool:
        return not self.is_paused and self.llm.has_unfinished_requests()

    def step(self) -> list[tuple[str, Any]]:
        return [(output.request_id, output) for output in self.llm.step() if output.finished]

    def abort(self, request_id: str) -> None:
        self.llm.abort_request([request_id])

    def pause(self, clear_cache: bool) -> None:
        self.is_paused = True
        self._label_held()
        if clear_cache:
            # Running requests are put back into the queue, and compute their context anew when they resume.
            is_clear = self.llm.reset_prefix_cache(reset_running_requests=True)
            assert is_clear, "vLLM kept blocks of the cache although no request holds any"

    def resume(self) -> None:
        self.is_paused = False

    def _label_held(self) -> None:
        """Hand on what the scheduler holds, so that it is counted to the weights that have sampled it."""
        core: Any = self.llm.engine_core
        held = core.engine_core.scheduler.release()
        self.llm.output_processor.process_outputs(held, weight_version=self.llm.get_weight_version())

    def close(self) -> None:
        self.llm.engine_core.shutdown()
