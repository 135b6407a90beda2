"""A rollout worker: one engine with the tokenizer it speaks. A plain class; grpo/cluster.py makes an actor of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from rollout.admission import Turns
from rollout.engine import Engine, EngineConfig
from rollout.errors import PromptTooLong
from rollout.prompting import Prompting, load_tokenizer, stop_token_ids
from rollout.sampling import Sampling, turn_seed
from rollout.types import Completion, Generation, Snapshot, VersionSpan
from verifiers.types import Task

GATHER_S = 0.1
LONG = 512  # tokens


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that is needed to make a worker on any machine that sees the model. `device` is "cpu" or "cuda".

    With an `adapter_rank` its snapshots are LoRA adapters up to that rank, beside the model's own weights (vLLM only).
    `can_sleep`: it will be put to sleep, for which vLLM must be prepared.
    """

    model_path: str
    engine: EngineConfig
    device: str
    system: str | None = None
    chat: bool | None = None
    adapter_rank: int = 0
    can_sleep: bool = False


class RolloutWorker:
    """Samples completions of tasks with the weights of the last snapshot it loaded.

    A load changes the weights under completions that are on their way, unless `hold` was awaited before: it lets each finish its
    turn. Turns are whole completions, or `sampling.tokens_per_turn` tokens of them.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        tokenizer = load_tokenizer(spec.model_path)
        stop_ids = stop_token_ids(spec.model_path, tokenizer)
        self._prompting = Prompting(tokenizer, stop_ids, system=spec.system, chat=spec.chat)
        self._engine = make_engine(spec, stop_ids)
        self._turns = Turns()

    async def stream(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> AsyncGenerator[tuple[Completion, ...]]:
        """n completions of a task as they finish; completion i has the seed `seed + i`.

        Those that finish within `GATHER_S` come together, and short ones all at once: they finish soon after one another, and as
        one request they cost less (a tenth to a quarter of the time with 64 tokens, a fifth with 16 to 256). Greedy ones are all
        the same.
        """
        prompt_ids = self._prompting.prompt_ids(task)
        if sampling.is_one_turn and (sampling.temperature == 0 or sampling.max_tokens < LONG):
            async with self._turns.one():
                generations = await self._engine.generate(prompt_ids, sampling, n=n, seed=seed)
            yield tuple(self._completion(prompt_ids, i, generation, seed) for i, generation in enumerate(generations))
            return
        indices = {asyncio.create_task(self._in_turns(prompt_ids, sampling, seed + index)): index for index in range(n)}
        running = set(indices)
        try:
            while running:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                done, running = await asyncio.wait(running, timeout=GATHER_S)
                ordered = sorted(done, key=indices.__getitem__)
                yield tuple(self._completion(prompt_ids, indices[one], one.result(), seed) for one in ordered)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*indices, return_exceptions=True)

    async def _in_turns(self, prompt_ids: tuple[int, ...], sampling: Sampling, seed: int) -> Generation:
        """One continuation. Each turn goes on from all tokens so far, as a request of its own."""
        parts: list[Generation] = []
        context, num_left = prompt_ids, sampling.max_tokens
        while True:
            turn = sampling.turn(num_left)
            try:
                async with self._turns.one():
                    part = (await self._engine.generate(context, turn, n=1, seed=turn_seed(seed, len(parts))))[0]
            except PromptTooLong:
                if not parts:
                    raise
                return joined(parts)  # the turn before has filled the model
            parts.append(part)
            num_left -= len(part.token_ids)
            if part.finish_reason == "stop" or len(part.token_ids) < turn.max_tokens or not num_left:
                return joined(parts)
            context += part.token_ids

    def _completion(self, prompt_ids: tuple[int, ...], index: int, generation: Generation, seed: int) -> Completion:
        return Completion(
            index=index,
            prompt_ids=prompt_ids,
            token_ids=generation.token_ids,
            text=self._prompting.text(generation.token_ids),
            finish_reason=generation.finish_reason,
            behavior_logprobs=generation.logprobs,
            version_spans=generation.version_spans,
            seed=seed + index,
        )

    async def hold(self) -> None:
        """Let no turn begin before the next load, and return when those under way have ended."""
        await self._turns.hold()

    async def load(self, snapshot: Snapshot) -> None:
        try:
            await self._engine.load(snapshot)
        finally:
            self._turns.release()

    async def sleep(self) -> bool:
        """Give the engine's memory up until the next load. False where it cannot."""
        return await self._engine.sleep()

    async def ping(self) -> None:
        await self._engine.ping()

    async def revive(self) -> bool:
        """Start an engine whose own process died again; false where a new worker must be started instead."""
        return await self._engine.restart()

    async def close(self) -> None:
        await self._engine.close()


def joined(parts: Sequence[Generation]) -> Generation:
    """The turns of one continuation as one."""
    if len(parts) == 1:
        return parts[0]
    spans: list[VersionSpan] = []
    for span in (span for part in parts for span in part.version_spans):
        if spans and spans[-1].version == span.version:
            spans[-1] = VersionSpan(span.version, spans[-1].num_tokens + span.num_tokens)
        else:
            spans.append(span)
    return Generation(
        token_ids=tuple(token for part in parts for token in part.token_ids),
        logprobs=tuple(logprob for part in parts for logprob in part.logprobs),
        finish_reason=parts[-1].finish_reason,
        version_spans=tuple(spans),
    )


def make_engine(spec: WorkerSpec, stop_ids: tuple[int, ...]) -> Engine:
    """The engine that the config names; its heavy imports happen here."""
    if spec.engine.kind == "vllm":
        from rollout.vllm_engine import VllmEngine

        return VllmEngine(
            spec.model_path,
            spec.engine,
            stop_token_ids=stop_ids,
            device=spec.device,
            adapter_rank=spec.adapter_rank,
            can_sleep=spec.can_sleep,
        )
    from rollout.hf_engine import HfEngine

    return HfEngine(spec.model_path, spec.engine, stop_token_ids=stop_ids, device=spec.device)
