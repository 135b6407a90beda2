"""vLLM in this process, for CPUs: one thread owns vLLM's LLMEngine, behind the methods of AsyncLLM that we use.

It starts in a third of the time that AsyncLLM takes, needs no second process, and wastes nothing on talking to one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from vllm import EngineArgs, RequestOutput, SamplingParams, TokensPrompt
from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest
from vllm.v1.engine.llm_engine import LLMEngine

from rollout.engine_thread import EngineThread


class InProcessLLM:
    """The part of AsyncLLM that an engine needs. Needs VLLM_ENABLE_V1_MULTIPROCESSING=0 before vLLM is imported."""

    def __init__(self, arguments: EngineArgs) -> None:
        self._thread = EngineThread(lambda: _SteppedLLM(arguments), name="vllm-engine")
        self.model_config = self._thread.engine.llm.model_config

    async def generate(self, prompt: TokensPrompt, params: SamplingParams, request_id: str) -> AsyncIterator[RequestOutput]:
        """The finished request, once."""
        yield await self._thread.request(request_id, lambda engine: engine.llm.add_request(request_id, prompt, params))

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
        await self._thread.call(lambda engine: engine.llm.set_weight_version(weight_version))

    async def collective_rpc(self, method: str, kwargs: dict[str, Any] | None = None) -> list[Any]:
        return await self._thread.call(lambda engine: engine.llm.collective_rpc(method, kwargs=kwargs))

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
        self._is_paused = False

    def has_unfinished(self) -> bool:
        return not self._is_paused and self.llm.has_unfinished_requests()

    def step(self) -> list[tuple[str, Any]]:
        return [(output.request_id, output) for output in self.llm.step() if output.finished]

    def abort(self, request_id: str) -> None:
        self.llm.abort_request([request_id])

    def pause(self, clear_cache: bool) -> None:
        self._is_paused = True
        if clear_cache:
            # Running requests are put back into the queue, and compute their context anew when they resume.
            is_clear = self.llm.reset_prefix_cache(reset_running_requests=True)
            assert is_clear, "vLLM kept blocks of the cache although no request holds any"

    def resume(self) -> None:
        self._is_paused = False

    def close(self) -> None:
        self.llm.engine_core.shutdown()
