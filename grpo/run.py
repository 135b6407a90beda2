"""A run: the parts of the loop put together from a config, and when each of its duties is due."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from rich.console import Console

from grpo.checkpoint import Checkpoints
from grpo.cluster import Cluster
from grpo.colocated import LearnerInTurns
from grpo.config import RunConfig
from grpo.engine_api import EngineApi, engine_judges
from grpo.evaluate import evaluate
from grpo.folder import RunFolder, code_fingerprint
from grpo.notices import Notices
from grpo.parts import (
    learner_spec,
    make_delivery,
    make_fleet,
    make_placement,
    make_probe,
    make_verifiers,
    pick_device,
    start_learner,
)
from grpo.prepare import check_engine, fitting, prepare_model
from grpo.state import Evaluation, RunState
from grpo.trackers.chosen import open_trackers
from grpo.tracking import RolloutStore, Tracking
from grpo.watchdog import Watchdog, Watched
from rollout.collector import Collector, Rollout, Source
from rollout.fleet import Fleet
from rollout.prompting import make_prompting
from rollout.recorded import RecordedGroups, beside_demonstration
from rollout.snapshot import snapshot_folder, sweep_snapshots
from rollout.tasks import TaskSet, TaskStream
from rollout.transports import WeightPlacement
from rollout.types import Group
from rollout.waiting import all_of
from verifiers.service_pool import ServicePool

logger = logging.getLogger(__name__)

# A step's groups are millions of objects without cycles; by default the collector goes through all of them hundreds of times.
GC_THRESHOLDS = (100_000, 50, 100)


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
    watchdog: Watchdog = dataclasses.field(default_factory=Watchdog)
    _source: Any = None
    _lap_started: float = dataclasses.field(default_factory=time.perf_counter)

    @property
    def objective(self) -> Any:
        return self.config.objective

    def source(self, rollout: Rollout) -> Any:
        """Live groups, or the recorded ones of the tasks."""
        self._source = Watched(self._make_source(rollout), self.watchdog, take="sample")
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
            over_sample=config.over_sample,
            publish_every=config.publish_every,
            max_tries=config.max_tries,
            max_unscored=config.max_unscored,
            kept=self.checkpoints.collected,
        )

    async def begin(self, state: RunState) -> RunState:
        """Open the trackers where the state stands, and evaluate the policy a new run starts from."""
        self._elapsed_before = state.elapsed_s
        code = code_fingerprint()
        if state.step and state.code_hash not in (None, code):
            self.console.print(f"{self.title}: resumed with other code, {state.code_hash} -> {code}", highlight=False)
        state = state.model_copy(update={"config_hash": self.config.fingerprint, "code_hash": code})
        if self.config.tracking.wandb_project is not None:
            state = state.model_copy(update={"wandb_id": state.wandb_id or self.folder.wandb_id()})
        self.tracker = open_trackers(
            self.config, self.folder, from_step=state.step, wandb_id=state.wandb_id, console=self.console, title=self.title
        )
        if state.step:
            self.console.print(f"{self.title}: resuming from step {state.step} of {self.config.steps}", highlight=False)
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
        written = self.rollouts.write(state.step, groups) if self.config.is_live else None
        if written is not None:
            self.tracker.rollouts_written(state.step, written)

    async def save(self, state: RunState) -> None:
        """A checkpoint of this state."""
        with self.watchdog.waiting("checkpoint"):
            collected = {} if self._source is None else self._source.finished()
            path = await self.checkpoints.save(state, self.learner, collected=collected)
        self.tracker.checkpoint_written(state.step, path, {"config_hash": state.config_hash, "code_hash": state.code_hash})

    async def evaluate(self, step: int) -> Evaluation:
        config = self.config
        tasks = self.task_set.held_out[: config.evaluation.num_tasks]
        with self.watchdog.waiting("evaluate"):
            evaluation = await evaluate(
                tasks, fleet=self.fleet, verifiers=self.verifiers, sampling=config.sampling, step=step, run_seed=config.seed
            )
        self.tracker.log(step, evaluation.metrics())
        # The counts of the verifiers are those of a step's groups; a resumed run would not have the evaluation's.
        await self.verifiers.metrics()
        self._lap_started = time.perf_counter()
        return evaluation

    def tell(self, title: str, text: str) -> None:
        """Say something that a person should know at once, wherever that person looks. Called from any thread."""
        self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
        self.tracker.alert(title, text)

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


@functools.cache
def keep_imports() -> None:
    """What was imported until now stays: the collector shall not look through it again, nor at the end, which takes a second."""
    gc.freeze()


@contextlib.asynccontextmanager
async def open_run(config: RunConfig, folder: RunFolder, *, task_set: TaskSet, console: Console, title: str) -> AsyncIterator[Run]:
    """A run whose parts are alive; all of them are gone when the context ends, however it ends."""
    gc.set_threshold(*GC_THRESHOLDS)
    check_engine(config)
    model_path = prepare_model(config, folder)
    fitted = asyncio.get_running_loop().run_in_executor(None, fitting, task_set, config, model_path)  # while Ray starts
    sweep_snapshots()
    snapshots = snapshot_folder(folder.path.name)
    say = functools.partial(console.print, style="yellow", highlight=False, markup=False, soft_wrap=True)
    notices = Notices(folder.logs, say)
    watchdog = Watchdog(deadline_s=config.deadline_s, folder=folder.path / "stalls", tell=lambda title, text: say(text))
    cluster = Cluster(config.ray_address, logs=folder.logs, watchdog=watchdog)
    parts = contextlib.AsyncExitStack()
    try:
        async with parts:
            task_set = await fitted
            keep_imports()
            parts.enter_context(watchdog.guard())
            parts.callback(asyncio.create_task(notices.follow()).cancel)
            device = pick_device(config.device, cluster_gpus=cluster.num_gpus)
            placement = make_placement(config, cluster, device)
            weights = WeightPlacement(device, cluster.num_nodes, placement.is_colocated, placement.is_one_gpu)
            spec = learner_spec(config, model_path, weights, snapshots=snapshots, faults=folder.path / "faults")
            await cluster.nodes.reserve(placement.reservations)
            fleet = make_fleet(config, cluster, model_path, device=device, seats=placement.workers, learner=spec)
            engine = await parts.enter_async_context(EngineApi(fleet).serve(cluster.host)) if engine_judges(config.rewards) else {}
            verifiers = make_verifiers(config, cluster, seats=placement.verifiers, env=engine)
            starting: list[Awaitable[Any]] = [
                start_learner(spec, cluster, seats=placement.learner),
                verifiers.start(),
                fleet.start(),
            ]
            learner, *_ = await all_of(starting)
            for part in (learner, verifiers, fleet):
                parts.push_async_callback(part.close)
            fleet.delivery = make_delivery(config, spec.transport, learner)
            fleet.probe = make_probe(config, task_set, learner)
            run = Run(
                config=config,
                folder=folder,
                task_set=task_set,
                tasks=TaskStream(task_set.train, seed=config.seed),
                fleet=fleet,
                learner=LearnerInTurns(learner, fleet) if spec.engines_sleep else learner,
                verifiers=verifiers,
                checkpoints=Checkpoints(folder.checkpoints, keep=config.checkpoints.keep),
                rollouts=RolloutStore(folder.rollouts, every=config.tracking.rollouts_every),
                model_path=model_path,
                console=console,
                title=title,
                watchdog=watchdog,
            )
            watchdog.tell = run.tell
            parts.push_async_callback(run.close)
            yield run
    finally:
        cluster.shutdown()
        shutil.rmtree(snapshots, ignore_errors=True)  # a learner that was killed has left some there
