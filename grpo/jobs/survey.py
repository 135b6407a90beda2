"""`python -m grpo.jobs.survey`: a job of a moment that asks every node of its cluster what it has, before a run comes."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.cluster import Cluster
from grpo.config import RunConfig
from grpo.jobs.node_facts import NodeFacts, NodeQuestions, fresh_token, look_around
from grpo.jobs.preflight import ClusterFacts
from grpo.plan import plan
from grpo.trackers.wandb_tracker import wandb_modes
from rollout.tasks import TasksConfig, load_tasks
from sandbox.errors import SystemFault, UserError

FACTS = "GRPO-FACTS "  # begins the line of the job's log that holds them
PROBE_TIMEOUT_S = 120.0


async def gather(config: RunConfig, task_configs: Sequence[TasksConfig], *, run_dir: str, packages: Sequence[str]) -> ClusterFacts:
    """Ask every node of the cluster this process is in."""
    tasks_problem = ""
    for tasks in task_configs:
        try:
            load_tasks(tasks)
        except (UserError, SystemFault) as error:
            tasks_problem = str(error)
            break
    cluster = Cluster("auto", logs=Path(run_dir) / "logs")
    try:
        with fresh_token(Path(run_dir)) as token:
            questions = NodeQuestions(run_dir, token, tuple(packages), config.model_dump_json())
            answers = await cluster.nodes.ask_each(look_around, questions, timeout_s=PROBE_TIMEOUT_S)
        resources, free = cluster.nodes.resources(), cluster.nodes.free_resources()
    finally:
        cluster.shutdown()
    return ClusterFacts(
        cpus=resources.get("CPU", 0.0),
        gpus=resources.get("GPU", 0.0),
        free_gpus=free.get("GPU", 0.0),
        nodes=tuple(answer for answer in answers.values() if isinstance(answer, NodeFacts)),
        tasks_problem=tasks_problem,
        wandb_has_key=config.tracking.wandb_project is not None and wandb_modes()[0] == "online",
        wandb_mode=os.environ.get("WANDB_MODE", ""),
        lost_nodes={name: _last_line(answer) for name, answer in answers.items() if isinstance(answer, Exception)},
    )


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--package", action="append", default=[])
    args = parser.parse_args()
    try:
        args.run_dir.mkdir(parents=True, exist_ok=True)
        stages = plan(args.config, args.overrides, args.run_dir)
        # The last stage with the model that the first starts from: the ones between make theirs.
        config = stages[-1].config.model_copy(update={"model": stages[0].config.model})
        tasks = [stage.config.tasks for stage in stages]
        facts = asyncio.run(gather(config, tasks, run_dir=str(args.run_dir), packages=args.package))
    except OSError as error:
        sys.exit(
            f"--run-dir {args.run_dir} cannot be used on the head node: {error}. Give one on a file system that all nodes share."
        )
    except (UserError, SystemFault) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write(f"{FACTS}{facts.to_json()}\n")


if __name__ == "__main__":
    main()
