"""`grpo check`: what a config resolves to and what it would do, before anything costly starts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from grpo.config import RunConfig, flatten
from grpo.prepare import judged_tasks
from rollout.tasks import TaskSet, load_tasks
from verifiers.registry import StatesReference, Verifier
from verifiers.service import VerifierService
from verifiers.types import Outcome, Task

MAX_FAILURES_SHOWN = 5


def check(config: RunConfig, path: Path, console: Console) -> int:
    """Print the resolved config, the batch arithmetic, and what each task's reference scores in its own verifiers.

    Raises UserError when a source, a verifier or a reference is not understood.
    """
    print_config(config, path, console)
    task_set = load_tasks(config.tasks)
    _print(console, f"\n{arithmetic(config, task_set)}\n")
    for line in asyncio.run(judge_references(config, task_set)):
        _print(console, line)
    return 0


def print_config(config: RunConfig, path: Path, console: Console) -> None:
    """Every value; those that differ from the defaults are bold."""
    defaults = flatten(RunConfig(tasks=config.tasks))
    _print(console, f"{path}: resolved, with what differs from the defaults in bold; hash {config.fingerprint}\n")
    for name, value in flatten(config).items():
        style = "bold" if name == "tasks.source" or defaults.get(name, ...) != value else "dim"
        _print(console, f"  {name} = {value!r}", style=style)


def _print(console: Console, text: str, *, style: str | None = None) -> None:
    """As it is: long lines stay lines, and square brackets are no markup."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def arithmetic(config: RunConfig, task_set: TaskSet) -> str:
    """From prompts to optimizer steps, in numbers."""
    prompts, size = config.groups_per_step, config.recorded_size or config.group_size
    completions, longest = prompts * size, config.sampling.max_tokens
    objective, batches, budget = config.objective, config.learner.mini_batches, config.learner.tokens_per_micro_batch
    rows = prompts * objective.units_per_group(size) * objective.rows_per_unit
    rows_each = -(-rows // batches)
    epochs = config.steps * prompts / len(task_set.train)
    num_held_out = min(len(task_set.held_out), config.evaluation.num_tasks)
    every = config.evaluation.every
    return "\n".join(
        [
            "batch arithmetic",
            f"  {_count(prompts, 'prompt')} a step x {_count(size, 'completion')} = {_count(completions, 'completion')}, at most "
            f"{_count(completions * longest, 'completion token')}",
            f"  {_count(rows, 'row')} / {_count(batches, 'mini-batch')} = {_count(batches, 'optimizer step')} of {rows_each:,}",
            f"  a micro-batch holds {_count(budget, 'token')}, prompts and padding included: about "
            f"{_count(min(max(1, budget // longest), rows_each), 'row')} when completions are as long as they may be ({longest:,})",
            f"  {_count(config.steps, 'step')} = {_count(config.steps * batches, 'optimizer step')}, "
            f"{_count(config.steps * completions, 'completion')}, {epochs:.2f} passes over "
            f"{_count(len(task_set.train), 'training task')} ({_count(task_set.num_duplicates, 'duplicate')} left out)",
            f"  evaluation: {_count(num_held_out, 'held-out task')}, sampled and greedy, "
            + (f"every {_count(every, 'step')}" if every else "at the start and the end"),
        ]
    )


def _count(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"


class Failure(NamedTuple):
    """A task whose own reference does not get full marks."""

    task: Task
    reason: str


async def judge_references(config: RunConfig, task_set: TaskSet) -> list[str]:
    """Lines on how many references get full marks from the verifiers of their mix, and why the first others do not.

    A verifier that can write a completion from a reference judges it; one that looks at the form alone has nothing to say here.
    Raises UserError with the task's id when a verifier does not understand a reference.
    """
    tasks = judged_tasks(config, task_set)
    service = VerifierService(config.rewards, plugins=config.plugins, sandbox=config.sandbox)
    try:
        await service.prepare(tasks)
        lines = [f"references: the verifiers of the mix {config.tasks.rewards!r} understand all {len(tasks):,}"]
        for name, verifier in service.verifiers_of(config.tasks.rewards).items():
            lines.extend(await _judged(name, verifier, tasks))
        return lines
    finally:
        await service.close()


async def _judged(name: str, verifier: Verifier, tasks: Sequence[Task]) -> list[str]:
    """Lines on what one verifier makes of the references."""
    if not isinstance(verifier, StatesReference):
        return [f"  {name}: judges the form, not the answer"]
    stated = [(task, text) for task in tasks if (text := verifier.example(task.reference)) is not None]
    if not stated:
        return [f"  {name}: the references hold no solution to judge"]
    failures = await _failures(verifier, stated)
    lines = [f"  {name}: {len(stated) - len(failures):,} of {len(stated):,} get full marks when they are given as the answer"]
    if len(stated) < len(tasks):
        lines.append(f"    {len(tasks) - len(stated):,} hold no solution to judge")
    lines.extend(f"    task {task.id}: {reason}" for task, reason in failures[:MAX_FAILURES_SHOWN])
    if len(failures) > MAX_FAILURES_SHOWN:
        lines.append(f"    and {len(failures) - MAX_FAILURES_SHOWN:,} more")
    return lines


async def _failures(verifier: Any, stated: Sequence[tuple[Task, str]]) -> list[Failure]:
    """The tasks whose reference, stated as a completion, does not get full marks."""
    failures = []
    for task, text in stated:
        score = await verifier.score(task, text)
        if score.outcome is not Outcome.CORRECT:
            failures.append(Failure(task, f"{score.outcome.value}, {score.reason}"))
    return failures
