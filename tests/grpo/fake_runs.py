"""Whole runs on fakes, or on real parts without Ray, for the tests of the loop."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

from rich.console import Console

from grpo.checkpoint import Checkpoints
from grpo.config import CheckpointConfig, EvaluationConfig, RunConfig
from grpo.folder import RunFolder
from grpo.learner import Learner
from grpo.learner_config import LearnerConfig
from grpo.parts import learner_spec
from grpo.run import Run
from grpo.state import RunState
from grpo.tracking import RolloutStore, read_metrics
from grpo.train import train
from rollout.fields import Recorded
from rollout.fleet import Fleet
from rollout.sampling import Sampling
from rollout.snapshot import discard
from rollout.tasks import TasksConfig, TaskSet, TaskStream
from rollout.transports import WeightPlacement
from tests.fakes import FakeVerifiers, FakeWorker, is_right, make_tasks

TASKS = make_tasks(24)
DEMONSTRATIONS = {task.id: (Recorded(f"\\boxed{{{task.reference}}}", 1.0),) for task in TASKS[4:]}
TASK_SET = TaskSet(TASKS[4:], TASKS[:4], DEMONSTRATIONS, 0)


def config(**changes: Any) -> RunConfig:
    """Six short steps of three groups of four."""
    values = {
        "steps": 6,
        "groups_per_step": 3,
        "group_size": 4,
        "tasks": TasksConfig(source="unused.jsonl"),
        "sampling": Sampling(max_tokens=12),
        "learner": LearnerConfig(learning_rate=1e-2),
        "evaluation": EvaluationConfig(every=3),
        "checkpoints": CheckpointConfig(every=2, keep=9),
    }
    return RunConfig(**values | changes)


def make_run(
    folder: Path, learner: Any, settings: RunConfig, *, worker: Any = FakeWorker, model_path: str = "", **parts: Any
) -> Run:
    async def start_worker(index: int) -> Any:
        return worker()

    place = RunFolder(folder)
    place.path.mkdir(exist_ok=True)
    return Run(
        config=settings,
        folder=place,
        task_set=TASK_SET,
        tasks=TaskStream(TASK_SET.train, seed=settings.seed),
        learner=learner,
        checkpoints=Checkpoints(place.checkpoints, keep=settings.checkpoints.keep),
        rollouts=RolloutStore(place.rollouts, every=1),
        model_path=model_path,
        console=Console(file=io.StringIO()),
        title="test",
        **{
            "fleet": Fleet(
                start_worker,
                num_workers=settings.engine.num_workers,
                sampling=settings.sampling,
                run_seed=settings.seed,
                discard=discard,
                publish=settings.publish,
            ),
            "verifiers": FakeVerifiers(is_right),
        }
        | parts,
    )


async def trained(run: Run) -> RunState:
    await run.fleet.start()
    try:
        return await train(run)
    finally:
        run.tracker.close()
        await run.fleet.close()


def curve(folder: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl without what a clock says."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(("time/", "speed/"))} for line in lines]


def steps_with(folder: Path, name: str) -> list[int]:
    return [line["step"] for line in curve(folder) if name in line]


class Crash(Exception):
    """What kills the process in the middle of a step."""


def real_learner(folder: Path, settings: RunConfig, model_path: str, *, crash_at: int | None = None, **changes: Any) -> Any:
    """A tiny model with AdamW. `crash_at` is the update that does not come back."""

    class Crashing(Learner):
        num_updates = 0

        async def update(self, examples: Any) -> Any:
            self.num_updates += 1
            if self.num_updates == crash_at:
                raise Crash
            return await super().update(examples)

    spec = learner_spec(settings, model_path, WeightPlacement("cpu"), snapshots=folder / "snapshots")
    return Crashing(dataclasses.replace(spec, **changes))


async def fingerprint(learner: Any) -> str:
    return (await learner.publish(99)).fingerprint
