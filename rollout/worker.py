"""A rollout worker: one engine with the tokenizer it speaks. A plain class; grpo/cluster.py makes an actor of it."""

from __future__ import annotations

from dataclasses import dataclass

from rollout.engine import Engine, EngineConfig
from rollout.prompting import Prompting, load_tokenizer, stop_token_ids
from rollout.sampling import Sampling
from rollout.types import Completion, Snapshot
from verifiers.types import Task


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

    async def sample(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> tuple[Completion, ...]:
        """n completions of a task, in order of their index; completion i has the seed `seed + i`."""
        prompt_ids = self._prompting.prompt_ids(task)
        generations = await self._engine.generate(prompt_ids, sampling, n=n, seed=seed)
        return tuple(
            Completion(
                index=index,
                prompt_ids=prompt_ids,
                token_ids=generation.token_ids,
                text=self._prompting.text(generation.token_ids),
                finish_reason=generation.finish_reason,
                behavior_logprobs=generation.logprobs,
                policy_version=generation.policy_version,
                seed=seed + index,
            )
            for index, generation in enumerate(generations)
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
