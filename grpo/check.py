"""`grpo check`: what a config resolves to and what it would do, before anything costly starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

from rich.console import Console

from grpo.config import RunConfig, flatten
from rollout.tasks import TaskSet, load_tasks
from verifiers.service import VerifierService


def check(config: RunConfig, path: Path, console: Console) -> int:
    """Print the resolved config, the batch arithmetic, and how many references their own verifiers accept."""
    print_config(config, path, console)
    task_set = load_tasks(config.tasks)
    console.print("\n" + arithmetic(config, task_set), highlight=False)
    asyncio.run(check_references(config, task_set))
    total = len(task_set.train) + len(task_set.held_out)
    console.print(f"\nreferences: all {total} were understood by the verifiers of their mix", highlight=False)
    return 0


def print_config(config: RunConfig, path: Path, console: Console) -> None:
    """Every value; those that differ from the defaults are bold."""
    tasks = config.tasks.model_copy()
    defaults = flatten(RunConfig(tasks=tasks))
    console.print(f"{path}: resolved, with what differs from the defaults in bold; hash {config.fingerprint}\n", highlight=False)
    for name, value in flatten(config).items():
        style = "bold" if name.startswith("tasks.source") or defaults.get(name, ...) != value else "dim"
        console.print(f"  {name} = {value!r}", style=style, highlight=False, markup=False, soft_wrap=True)


def arithmetic(config: RunConfig, task_set: TaskSet) -> str:
    """From prompts to optimizer steps, in numbers."""
    size = config.group_size if config.is_live else 1
    rows = config.groups_per_step * size
    per_optimizer_step = -(-rows // config.learner.mini_batches)
    longest = config.sampling.max_tokens
    fit = max(1, config.learner.tokens_per_micro_batch // longest)
    epochs = config.steps * config.groups_per_step / len(task_set.train)
    return "\n".join(
        [
            "batch arithmetic",
            f"  {config.groups_per_step} prompts a step x {size} completions = {rows} rows, at most {rows * longest:,} completion tokens",
            f"  {rows} rows / {config.learner.mini_batches} mini-batches = {config.learner.mini_batches} optimizer steps of "
            f"{per_optimizer_step} rows",
            f"  a micro-batch holds {config.learner.tokens_per_micro_batch:,} tokens, prompts and padding included: at least "
            f"{min(fit, per_optimizer_step)} rows of {longest} completion tokens",
            f"  {config.steps} steps = {config.steps * config.learner.mini_batches} optimizer steps, {config.steps * rows:,} completions, "
            f"{epochs:.2f} passes over {len(task_set.train)} training tasks ({task_set.num_duplicates} duplicates left out)",
            f"  evaluation: {min(len(task_set.held_out), config.evaluation.num_tasks)} held-out tasks, sampled and greedy, "
            + (f"every {config.evaluation.every} steps" if config.evaluation.every else "at the start and the end"),
        ]
    )


async def check_references(config: RunConfig, task_set: TaskSet) -> None:
    """Raises with the task's id when a verifier does not understand a reference."""
    service = VerifierService(config.rewards, plugins=config.plugins)
    try:
        await service.prepare((*task_set.train, *task_set.held_out))
    finally:
        await service.close()
