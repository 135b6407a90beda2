"""A run: the parts of the loop put together from a config, and when each of its duties is due."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from grpo.checkpoint import Checkpoints
from grpo.cluster import Cluster
from grpo.config import RunConfig
from grpo.engine_api import EngineApi, engine_judges
from grpo.evaluate import evaluate
from grpo.folder import RunFolder
from grpo.learner import Learner, LearnerSpec
from grpo.notices import Notices
from grpo.prepare import check_engine, fitting, prepare_model
from grpo.probe import ProbedFleet, SyncProbe
from grpo.progress import ProgressTracker
from grpo.state import Evaluation, RunState
from grpo.tracking import JsonlTracker, RolloutStore, Tracker, Tracking, WandbTracker
from rollout.collector import Collector, Rollout, Source
from rollout.errors import WorkerLost
from rollout.fleet import Fleet
from rollout.prompting import make_prompting
from rollout.recorded import RecordedGroups, beside_demonstration
from rollout.snapshot import discard, snapshot_folder, sweep_snapshots
from rollout.tasks import TaskSet, TaskStream
from rollout.types import Group
from rollout.waiting import all_of
from rollout.worker import RolloutWorker, WorkerSpec
from verifiers.service import VerifierService
from verifiers.service_pool import ServiceLost, ServicePool

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Run:
    """All parts of one run. `train` in grpo/train.py is what happens with them."""

    config: RunConfig
    folder: RunFolder
    task_set: TaskSet
    tasks: TaskStream
    fleet: Fleet
    learner: Any
    verifiers: ServicePool
    checkpoints: Checkpoints
    rollouts: RolloutStore
    model_path: str
    console: Console
    title: str
    tracker: Tracking = dataclasses.field(default_factory=lambda: Tracking([]))
    started: float = dataclasses.field(default_factory=time.perf_counter)
    stop_requested: bool = False
    _elapsed_before: float = 0.0
    _source: Source | None = None
    _lap_started: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def objective(self) -> Any:
        return self.config.objective

    def source(self, rollout: Rollout) -> Source:
        """Live groups, or the recorded ones of the tasks."""
        self._source = self._make_source(rollout)
        return self._source

    def _make_source(self, rollout: Rollout) -> Source:
        config = self.config
        if config.tasks.recorded_form is not None:
            prompting = make_prompting(self.model_path, system=config.tasks.system, chat=config.tasks.chat)
            if not config.is_live:
                return RecordedGroups(self.tasks, self.task_set.recorded, prompting)
            rollout = beside_demonstration(rollout, self.task_set.recorded, prompting)
        return Collector(
            rollout,
            self.tasks,
            max_lag=config.max_lag,
            publish_every=config.publish_every,
            max_tries=config.max_tries,
            max_unscored=config.max_unscored,
        )

    async def begin(self, state: RunState) -> RunState:
        """Open the trackers where the state stands, and evaluate the policy a new run starts from."""
        self._elapsed_before = state.elapsed_s
        trackers: list[Tracker] = [JsonlTracker(self.folder.metrics, from_step=state.step)]
        tracking = self.config.tracking
        if tracking.wandb_project is not None:
            wandb = WandbTracker(
                project=tracking.wandb_project,
                entity=tracking.wandb_entity,
                name=self.title,
                folder=self.folder.path,
                config=self.config.model_dump(mode="json"),
                run_id=state.wandb_id,
            )
            trackers.append(wandb)
            state = state.model_copy(update={"wandb_id": wandb.run_id})
        if state.step:
            self.console.print(f"{self.title}: resuming from step {state.step} of {self.config.steps}", highlight=False)
        trackers.append(ProgressTracker(self.console, title=self.title, total_steps=self.config.steps, from_step=state.step))
        self.tracker = Tracking(trackers)
        if not state.evaluations:
            state = state.evaluated(await self.evaluate(state.step))
        self._lap_started = time.perf_counter()
        return state

    def is_finished(self, state: RunState) -> bool:
        return self.stop_requested or is_complete(self.config, state)

    def advance(self, state: RunState) -> RunState:
        return state.advance(self.tasks.cursor, elapsed_s=self._elapsed_before + time.perf_counter() - self.started)

    def sync_is_due(self, state: RunState) -> bool:
        """Workers need new weights to sample the next groups, or to evaluate."""
        is_time = self.config.is_live and state.step % self.config.publish_every == 0
        return is_time or self.evaluation_is_due(state)

    def evaluation_is_due(self, state: RunState) -> bool:
        every = self.config.evaluation.every
        return state.step >= self.config.steps or (every > 0 and state.step % every == 0)

    def checkpoint_is_due(self, state: RunState) -> bool:
        return self.is_finished(state) or state.step % self.config.checkpoints.every == 0

    async def log_step(self, state: RunState, groups: Sequence[Group], metrics: dict[str, float]) -> None:
        """Tell the trackers what the step was, and store its rollouts."""
        now = time.perf_counter()
        seconds, self._lap_started = now - self._lap_started, now
        num_tokens = metrics["completion/tokens"]
        more = {"time/step_s": seconds, "speed/tokens_per_s": num_tokens / seconds} | self.fleet.metrics()
        self.tracker.log(state.step, metrics | more | await self.verifiers.metrics())
        if self.config.is_live:
            self.rollouts.write(state.step, groups)

    async def evaluate(self, step: int) -> Evaluation:
        config = self.config
        tasks = self.task_set.held_out[: config.evaluation.num_tasks]
        evaluation = await evaluate(
            tasks, fleet=self.fleet, verifiers=self.verifiers, sampling=config.sampling, step=step, run_seed=config.seed
        )
        self.tracker.log(step, evaluation.metrics())
        self._lap_started = time.perf_counter()
        return evaluation

    async def close(self) -> None:
        """Abandon the groups that are under way."""
        if self._source is not None:
            await self._source.close()

    def request_stop(self) -> None:
        """End after the step under way, with a checkpoint."""
        self.stop_requested = True


def is_complete(config: RunConfig, state: RunState) -> bool:
    """Whether the last step is done, or the accuracy to stop at is reached."""
    last, stop_at = state.last_evaluation, config.evaluation.stop_at
    return state.step >= config.steps or (stop_at is not None and last is not None and last.sampled_accuracy >= stop_at)


@contextlib.asynccontextmanager
async def open_run(config: RunConfig, folder: RunFolder, *, task_set: TaskSet, console: Console, title: str) -> AsyncIterator[Run]:
    """A run whose parts are alive; all of them are gone when the context ends, however it ends."""
    device = pick_device(config.device)
    check_engine(config)
    model_path = prepare_model(config, folder)
    task_set = fitting(task_set, config, model_path)
    sweep_snapshots()
    snapshots = snapshot_folder(folder.path.name)
    notices = Notices(folder.logs, lambda text: console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True))
    cluster = Cluster(config.ray_address, logs=folder.logs)
    parts = contextlib.AsyncExitStack()
    try:
        async with parts:
            parts.callback(asyncio.create_task(notices.follow()).cancel)
            share = gpu_share(config, cluster.num_gpus) if device == "cuda" else 0.0
            fleet = make_fleet(config, cluster, model_path, device=device, num_gpus=share)
            engine = await parts.enter_async_context(EngineApi(fleet).serve(cluster.host)) if engine_judges(config.rewards) else {}
            verifiers = make_verifiers(config, cluster, env=engine)
            spec = learner_spec(config, model_path, device=device, snapshots=snapshots, faults=folder.path / "faults")
            starting: list[Awaitable[Any]] = [
                # Threads that wait without spinning: on cores shared with the workers spinning makes a step ten times slower.
                cluster.start(Learner, spec, name="learner", num_gpus=share, env={"OMP_WAIT_POLICY": "PASSIVE"}),
                verifiers.start(),
                fleet.start(),
            ]
            learner, *_ = await all_of(starting)
            for part in (learner, verifiers, fleet):
                parts.push_async_callback(part.close)
            fleet.probe = make_probe(config, task_set, learner)
            run = Run(
                config=config,
                folder=folder,
                task_set=task_set,
                tasks=TaskStream(task_set.train, seed=config.seed),
                fleet=fleet,
                learner=learner,
                verifiers=verifiers,
                checkpoints=Checkpoints(folder.checkpoints, keep=config.checkpoints.keep),
                rollouts=RolloutStore(folder.rollouts, every=config.tracking.rollouts_every),
                model_path=model_path,
                console=console,
                title=title,
            )
            parts.push_async_callback(run.close)
            yield run
    finally:
        cluster.shutdown()
        with contextlib.suppress(OSError):
            snapshots.rmdir()


def make_verifiers(config: RunConfig, cluster: Cluster, *, env: dict[str, str]) -> ServicePool:
    """Verifier services that are actors of the cluster."""

    async def start_service(index: int) -> Any:
        return await cluster.start(make_service, config, name=f"verifiers-{index}", place=index, env=env, lost=ServiceLost)

    return ServicePool(start_service, num_services=config.verifiers.num_services or cluster.num_nodes)


def make_service(config: RunConfig) -> VerifierService:
    return VerifierService(config.rewards, plugins=config.plugins, workers=config.verifiers.workers, sandbox=config.sandbox)


def make_probe(config: RunConfig, task_set: TaskSet, learner: Any) -> SyncProbe | None:
    """None where every step compares engine and learner on its own groups, or nothing sampled is learnt from."""
    checks_itself = config.is_on_policy and config.group_source == "samples"
    if checks_itself or not config.is_live:
        return None
    return SyncProbe(
        task_set.held_out,
        learner,
        sampling=config.sampling,
        num_workers=config.engine.num_workers,
        limit=config.learner.max_mismatch,
        run_seed=config.seed,
    )


def make_fleet(config: RunConfig, cluster: Cluster, model_path: str, *, device: str, num_gpus: float) -> ProbedFleet:
    """A fleet whose workers are actors of the cluster."""
    spec = WorkerSpec(model_path, config.engine, device, system=config.tasks.system, chat=config.tasks.chat)

    environment: dict[str, str] = {}
    if config.engine.kind == "vllm":
        from rollout.vllm_engine import engine_environment

        environment = engine_environment("vllm", device)

    async def start_worker(index: int) -> Any:
        return await cluster.start(
            RolloutWorker,
            spec,
            name=f"worker-{index}",
            num_gpus=num_gpus if num_gpus < 1 else float(config.engine.tensor_parallel_size),
            env=environment,
            lost=WorkerLost,
        )

    return ProbedFleet(
        start_worker, num_workers=config.engine.num_workers, sampling=config.sampling, run_seed=config.seed, discard=discard
    )


def learner_spec(config: RunConfig, model_path: str, *, device: str, snapshots: Path, faults: Path | None = None) -> LearnerSpec:
    num_cpus = len(os.sched_getaffinity(0))
    engine_dtype = config.engine.dtype
    if engine_dtype == "auto":
        engine_dtype = "bfloat16" if device == "cuda" else "float32"
    return LearnerSpec(
        model_path=model_path,
        model=config.model,
        learner=config.learner,
        objective=config.objective,
        # Recorded text was drawn from no temperature of ours: its likelihood is the plain one.
        temperature=config.sampling.temperature if config.is_live else 1.0,
        max_tokens=config.sampling.max_tokens,
        max_mismatch=config.learner.max_mismatch if config.is_on_policy else None,
        total_steps=config.steps * config.learner.mini_batches,
        seed=config.seed,
        device=device,
        engine_dtype=engine_dtype,
        snapshot_folder=str(snapshots),
        reference_every=config.publish_every if config.objective.reference_is_last_iterate else config.learner.reference_every,
        reference_device="cpu" if config.learner.reference_on_cpu else None,
        fault_folder=None if faults is None else str(faults),
        # With lag the workers sample while the learner computes; on a CPU each then needs cores of its own.
        num_threads=max(1, num_cpus - (config.engine.num_workers if config.max_lag else 0)) if device == "cpu" else None,
    )


def pick_device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_share(config: RunConfig, num_gpus: float) -> float:
    """GPUs per actor: whole ones when there are enough for the learner and every worker, else equal shares of what there is."""
    wanted = 1 + config.engine.num_workers * config.engine.tensor_parallel_size
    return 1.0 if num_gpus >= wanted else math.floor(100 * num_gpus / wanted) / 100
