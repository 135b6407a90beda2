"""A rollout worker: one engine with the tokenizer it speaks. A plain class; grpo/cluster.py makes an actor of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from rollout.engine import Engine, EngineConfig
from rollout.prompting import Prompting, load_tokenizer, stop_token_ids
from rollout.sampling import Sampling
from rollout.types import Completion, Generation, Snapshot
from verifiers.types import Task

GATHER_S = 0.1
LONG = 256  # tokens


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that is needed to make a worker on any machine that sees the model. `device` is "cpu" or "cuda"."""

    model_path: str
    engine: EngineConfig
    device: str
    system: str | None = None
    chat: bool | None = None


class RolloutWorker:
    """Samples completions of tasks with the weights of the last snapshot it loaded."""

    def __init__(self, spec: WorkerSpec) -> None:
        tokenizer = load_tokenizer(spec.model_path)
        stop_ids = stop_token_ids(spec.model_path, tokenizer)
        self._prompting = Prompting(tokenizer, stop_ids, system=spec.system, chat=spec.chat)
        self._engine = make_engine(spec, stop_ids)

    async def stream(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> AsyncGenerator[tuple[Completion, ...]]:
        """n completions of a task as they finish; completion i has the seed `seed + i`.

        Those that finish within `GATHER_S` come together, and short ones all at once: they finish nearly together, and as one
        request they cost the engine less (a tenth to a quarter of the time with 64 tokens). Greedy ones are all the same.
        """
        prompt_ids = self._prompting.prompt_ids(task)
        if sampling.temperature == 0 or sampling.max_tokens < LONG:
            generations = await self._engine.generate(prompt_ids, sampling, n=n, seed=seed)
            yield tuple(self._completion(prompt_ids, i, generation, seed) for i, generation in enumerate(generations))
            return
        indices = {
            asyncio.create_task(self._engine.generate(prompt_ids, sampling, n=1, seed=seed + index)): index for index in range(n)
        }
        running = set(indices)
        try:
            while running:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                done, running = await asyncio.wait(running, timeout=GATHER_S)
                ordered = sorted(done, key=indices.__getitem__)
                yield tuple(self._completion(prompt_ids, indices[one], one.result()[0], seed) for one in ordered)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*indices, return_exceptions=True)

    def _completion(self, prompt_ids: tuple[int, ...], index: int, generation: Generation, seed: int) -> Completion:
        return Completion(
            index=index,
            prompt_ids=prompt_ids,
            token_ids=generation.token_ids,
            text=self._prompting.text(generation.token_ids),
            finish_reason=generation.finish_reason,
            behavior_logprobs=generation.logprobs,
            policy_version=generation.policy_version,
            seed=seed + index,
        )

    async def load(self, snapshot: Snapshot) -> None:
        await self._engine.load(snapshot)

    async def close(self) -> None:
        await self._engine.close()


def make_engine(spec: WorkerSpec, stop_ids: tuple[int, ...]) -> Engine:
    """The engine that the config names; its heavy imports happen here."""
    if spec.engine.kind == "vllm":
        from rollout.vllm_engine import VllmEngine

        return VllmEngine(spec.model_path, spec.engine, stop_token_ids=stop_ids, device=spec.device)
    from rollout.hf_engine import HfEngine

    return HfEngine(spec.model_path, spec.engine, stop_token_ids=stop_ids, device=spec.device)
