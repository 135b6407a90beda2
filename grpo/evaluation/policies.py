"""Who answers in an evaluation: the engines of a Ray cluster with a policy's weights, or an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from grpo.evaluation.journal import Sample
from grpo.evaluation.plan import Endpoint, Plan
from rollout.errors import ModelError
from rollout.fleet import Fleet
from rollout.sampling import Sampling, group_seed
from rollout.types import Completion, Snapshot
from rollout.waiting import all_of
from sandbox.errors import SystemFault, UserError
from verifiers.judge_client import MAX_WAIT_S, Budget, ChatClient, NoAnswer
from verifiers.service import Text, VerifierService
from verifiers.types import Message, Task, Verdict

Judge = Callable[[Task, Sequence[Text]], Coroutine[Any, Any, tuple[Verdict, ...]]]
MAX_ENDPOINT_SEED = 2**31 - 1
MAX_REFUSALS = 3


class Sampler(Protocol):
    """Gives completions of a task by their indices, as they finish. Until it has answered it is asked for one thing at a time."""

    has_answered: bool

    def sample(self, task: Task, indices: Sequence[int]) -> AsyncGenerator[tuple[Sample, ...]]: ...


class Opened(NamedTuple):
    """An evaluation's parts, alive. `units` is how many requests for samples to keep under way."""

    sampler: Sampler
    judge: Judge
    tasks: tuple[Task, ...]
    weights: str
    units: int


def eval_seed(run_seed: int, task: Task) -> int:
    """That of the held-out evaluations during training: with one completion each it is the same completion."""
    return group_seed(run_seed, 0, f"evaluation/{task.id}")


class EngineSampler:
    """Samples from a fleet. What is missing of a task comes in as few requests as its indices allow."""

    def __init__(self, fleet: Fleet, sampling: Sampling, run_seed: int) -> None:
        self._fleet, self._sampling, self._run_seed = fleet, sampling, run_seed
        self.has_answered = True

    async def sample(self, task: Task, indices: Sequence[int]) -> AsyncGenerator[tuple[Sample, ...]]:
        for first, count in stretches(indices):
            seed = eval_seed(self._run_seed, task) + first
            async with aclosing(self._fleet.stream(task, n=count, sampling=self._sampling, seed=seed)) as finished:
                async for some in finished:
                    moved = (dataclasses.replace(one, index=one.index + first) for one in some)
                    yield tuple(Sample(one, len(one.token_ids)) for one in moved)


class EndpointSampler:
    """Asks an endpoint for one completion at a time, with a seed of its own.

    An answer that does not come, however often it is asked for, is missing and not wrong. Raises UserError, or SystemFault, when
    none comes at all, or none any more.
    """

    def __init__(self, endpoint: Endpoint, sampling: Sampling, *, run_seed: int, system: str | None, concurrency: int) -> None:
        request = {"model": endpoint.model, "temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
        self._client = ChatClient(
            endpoint.base_url,
            endpoint.key,
            request,
            timeout_s=endpoint.timeout_s,
            max_retries=endpoint.max_retries,
            max_concurrent=concurrency,
            budget=Budget(),
        )
        self._patience_s = (endpoint.timeout_s + MAX_WAIT_S) * (endpoint.max_retries + 1)
        self._run_seed, self._system = run_seed, system
        self.has_answered = False
        self._in_a_row, self._most_in_a_row = 0, max(MAX_REFUSALS, concurrency)
        self.missing: Counter[str] = Counter()

    async def sample(self, task: Task, indices: Sequence[int]) -> AsyncGenerator[tuple[Sample, ...]]:
        for index in indices:
            seed = (eval_seed(self._run_seed, task) + index) % MAX_ENDPOINT_SEED
            try:
                reply = await self._client.ask(self._turns(task), give_up_at=time.monotonic() + self._patience_s, seed=seed)
            except NoAnswer as error:
                self._missed(error)
                continue
            self.has_answered, self._in_a_row = True, 0
            reason = "length" if reply.is_cut else "stop"
            yield (Sample(Completion(index, (), (), reply.text, reason, seed=seed), reply.num_tokens),)

    def _turns(self, task: Task) -> tuple[Message, ...]:
        turns = (Message("user", task.prompt),) if isinstance(task.prompt, str) else task.prompt
        return turns if self._system is None or turns[0].role == "system" else (Message("system", self._system), *turns)

    def _missed(self, error: NoAnswer) -> None:
        self.missing[str(error)] += 1
        self._in_a_row += 1
        # One question may be refused where others are not: too long for the model, say.
        most = self._most_in_a_row if self.has_answered else 1 if error.passes else MAX_REFUSALS
        if self._in_a_row < most:
            return
        kind = SystemFault if error.passes else UserError
        told = f"{self._in_a_row} requests in a row failed, the last so: {error}" if self._in_a_row > 1 else str(error)
        raise kind(f"{told.rstrip('.')}. What was answered before is kept: type the same command again to go on.")

    async def close(self) -> None:
        await self._client.close()


def stretches(indices: Sequence[int]) -> list[tuple[int, int]]:
    """`[0, 1, 2, 5]` as `[(0, 3), (5, 1)]`: where each stretch begins, and how long it is."""
    grouped = itertools.groupby(enumerate(sorted(indices)), key=lambda pair: pair[1] - pair[0])
    return [(members[0][1], len(members)) for members in (list(group) for _, group in grouped)]


@contextlib.asynccontextmanager
async def open_endpoint(plan: Plan, endpoint: Endpoint) -> AsyncIterator[Opened]:
    """Verifiers in this process, and a client of the endpoint."""
    config = plan.config
    service = VerifierService(config.rewards, plugins=config.plugins, workers=config.verifiers.workers, sandbox=config.sandbox)
    sampler = EndpointSampler(
        endpoint, plan.sampling, run_seed=config.seed, system=config.tasks.system, concurrency=plan.concurrency
    )
    try:
        yield Opened(sampler, service.judge, plan.tasks, "", plan.concurrency)
    finally:
        await sampler.close()
        await service.close()


@contextlib.asynccontextmanager
async def open_engine(plan: Plan) -> AsyncIterator[Opened]:
    """A fleet with the policy's weights, and verifiers, as actors of a Ray cluster; all are gone when the context ends."""
    from grpo.cluster import Cluster
    from grpo.engine_api import EngineApi, engine_judges
    from grpo.parts import make_fleet, make_placement, make_verifiers, pick_device
    from grpo.prepare import check_engine
    from rollout.snapshot import snapshot_folder, sweep_snapshots

    config = plan.config
    device = pick_device(config.device)
    check_engine(config)
    weights, model_path = await asyncio.to_thread(policy_weights, plan)
    tasks = await asyncio.to_thread(fitting_tasks, plan, model_path)
    sweep_snapshots()
    snapshots = snapshot_folder(f"eval-{plan.output.name}")
    cluster = None
    try:
        async with contextlib.AsyncExitStack() as parts:
            cluster = Cluster(config.ray_address, logs=plan.output / "logs")
            placement = make_placement(config, cluster, device, learns=False)
            await cluster.nodes.reserve(placement.reservations)
            fleet = make_fleet(config, cluster, model_path, device=device, seats=placement.workers)
            engine = await parts.enter_async_context(EngineApi(fleet).serve(cluster.host)) if engine_judges(config.rewards) else {}
            verifiers = make_verifiers(config, cluster, seats=placement.verifiers, env=engine)
            snapshot = await asyncio.to_thread(weights, snapshots, device)
            await all_of([verifiers.start(), fleet.start()])
            parts.push_async_callback(verifiers.close)
            parts.push_async_callback(fleet.close)
            await fleet.load(snapshot)

            async def judge(task: Task, texts: Sequence[Text]) -> tuple[Verdict, ...]:
                return await verifiers.verify(task, [_Judged(text.text, text.num_tokens or 0) for text in texts])

            # So many that every engine is full while others are judged.
            units = max(2, 2 * config.engine.num_workers * config.engine.max_num_seqs // plan.num_samples)
            yield Opened(EngineSampler(fleet, plan.sampling, config.seed), judge, tasks, snapshot.fingerprint, units)
    finally:
        if cluster is not None:
            cluster.shutdown()
        with contextlib.suppress(OSError):
            snapshots.rmdir()


class _Judged(NamedTuple):
    """A text as the pool of verifiers takes it: of the tokens only their number travels."""

    text: str
    num_completion_tokens: int


def policy_weights(plan: Plan) -> tuple[Callable[[Path, str], Snapshot], str]:
    """What publishes the weights of a checkpoint, or of a model, for a device; and the model to start engines with."""
    import torch

    from grpo.export import load_policy
    from grpo.folder import RunFolder
    from grpo.policy import Policy, compute_dtype
    from grpo.prepare import prepare_model
    from rollout.snapshot import write_snapshot

    config = plan.config
    if plan.run is not None and plan.checkpoint is not None:
        policy, base = load_policy(config, RunFolder(plan.run), plan.checkpoint)
    else:
        base = prepare_model(config, RunFolder(plan.output))
        policy = Policy(base, lora=config.model.lora, compute_dtype=torch.float32, device="cpu")

    def publish(folder: Path, device: str) -> Snapshot:
        return write_snapshot(policy.engine_weights(compute_dtype(config.engine.dtype, device)), version=0, folder=folder)

    return publish, base


def fitting_tasks(plan: Plan, model_path: str) -> tuple[Task, ...]:
    """The tasks whose prompts leave room for an answer."""
    from transformers import AutoConfig

    from grpo.prepare import overlong
    from rollout.prompting import make_prompting

    config = plan.config
    longest = config.engine.max_model_len or getattr(AutoConfig.from_pretrained(model_path), "max_position_embeddings", None)
    if longest is None:
        return plan.tasks
    prompting = make_prompting(model_path, system=config.tasks.system, chat=config.tasks.chat)
    too_long = overlong(plan.tasks, prompting, longest)
    tasks = tuple(task for task in plan.tasks if task.id not in too_long)
    if not tasks:
        raise ModelError(f"{model_path}: no task fits into {longest} tokens. Raise engine.max_model_len, or give shorter prompts.")
    return tasks
