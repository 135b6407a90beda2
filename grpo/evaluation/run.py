"""An evaluation from its plan to its results: what is missing is sampled and judged, and all of it is told."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from grpo.evaluation.journal import Journal
from grpo.evaluation.plan import Plan
from grpo.evaluation.policies import EndpointSampler, Opened, open_endpoint, open_engine
from grpo.evaluation.results import results
from grpo.prepare import check_references
from rollout.tasks import TaskSet
from rollout.waiting import all_of
from verifiers.service import Text
from verifiers.types import Task

Advance = Callable[[int], None]


class Evaluated(NamedTuple):
    """What came of a plan, and what is missing of it, by cause."""

    found: dict[str, Any]
    missing: Counter[str]


async def run_evaluation(plan: Plan, console: Console) -> Evaluated:
    """Sample, judge and store what is not there yet; then results.json and completions.parquet. Raises what ends it early."""
    started = time.perf_counter()
    await check_references(plan.config, TaskSet((), plan.tasks, {}, 0))
    async with _opened(plan) as opened:
        journal = Journal(plan.output, {**plan.settings, "weights": opened.weights})
        try:
            await judge_unscored(opened, journal, plan.num_samples)
            with _bar(console, len(opened.tasks) * plan.num_samples) as advance:
                await sample_missing(opened, journal, plan.num_samples, advance)
            rows = journal.rows(opened.tasks, plan.num_samples)
            found = results(rows, ks=plan.ks, num_tasks=len(opened.tasks), num_samples=plan.num_samples)
            found = {**found, "seconds": time.perf_counter() - started, "settings": dict(plan.settings)}
            journal.write_parquet(rows)
            journal.write_results(found)
            return Evaluated(found, opened.sampler.missing if isinstance(opened.sampler, EndpointSampler) else Counter())
        finally:
            journal.close()


@asynccontextmanager
async def _opened(plan: Plan) -> AsyncIterator[Opened]:
    async with open_engine(plan) if plan.endpoint is None else open_endpoint(plan, plan.endpoint) as opened:
        yield opened


async def judge_unscored(opened: Opened, journal: Journal, num_samples: int) -> None:
    """Completions that could not be judged when they came are judged now: they need not be sampled again."""

    async def again(task: Task, index: int) -> None:
        row = journal.row(task, index)
        if row is not None and row["reward"] is None:
            (verdict,) = await opened.judge(task, [Text(row["text"], row["num_tokens"])])
            journal.judge_again(row, verdict, task)

    await all_of(again(task, index) for task in opened.tasks for index in range(num_samples))


async def sample_missing(opened: Opened, journal: Journal, num_samples: int, advance: Advance) -> None:
    """Every completion that the journal lacks, at most `units` requests at a time, but one until one was answered."""
    waiting = missing_units(opened, journal, num_samples, advance)

    async def work(units: Iterator[tuple[Task, Sequence[int]]]) -> None:
        for task, indices in units:
            async with aclosing(opened.sampler.sample(task, indices)) as finished:
                async for samples in finished:
                    texts = [Text(sample.completion.text, sample.num_tokens) for sample in samples]
                    journal.add(task, samples, await opened.judge(task, texts))
                    advance(len(samples))

    for unit in waiting:
        await work(iter([unit]))
        if opened.sampler.has_answered:
            break
    await all_of(work(waiting) for _ in range(opened.units))


def missing_units(opened: Opened, journal: Journal, num_samples: int, advance: Advance) -> Iterator[tuple[Task, Sequence[int]]]:
    """What to ask for: an endpoint for one completion at a time, engines for all that a task lacks."""
    for task in opened.tasks:
        missing = [index for index in range(num_samples) if journal.row(task, index) is None]
        advance(num_samples - len(missing))
        if isinstance(opened.sampler, EndpointSampler):
            yield from ((task, [index]) for index in missing)
        elif missing:
            yield task, missing


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Advance]:
    columns = (TextColumn("completions"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("completions", total=total)
        yield lambda count: bar.advance(shown, count)


def evaluate_plan(plan: Plan, console: Console) -> Evaluated:
    return asyncio.run(run_evaluation(plan, console))
