"""What the driver of a large run costs: 64 workers, 1,024 groups of 16 completions a step; real is only the driver's own work.

    python benchmarks/fleet_driver.py                    a few whole steps, and 100 steps of an eighth for the memory; some minutes
    python benchmarks/fleet_driver.py --flat-groups 1024     the memory over 100 whole steps; much longer
    python benchmarks/fleet_driver.py --json FILE        the same figures for a program

Workers answer after a simulated while with completions of 512 tokens, verdicts come at once, the learner does nothing. The driver
does what it does in a run: it takes completions apart as they arrive (pickled, as Ray brings them), keeps 64 workers busy, collects
groups, credits them, packs the examples for the learner, computes the step's metrics and writes the rollouts. Shown are its CPU
seconds for a step, as a share of the 30 s such a step takes, and its memory.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import pickle
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
from rich.console import Console
from rich.table import Table

from grpo.metrics import group_metrics
from grpo.objectives.grpo import Grpo
from grpo.run import GC_THRESHOLDS
from grpo.tracking import RolloutStore
from rollout.collector import Collector
from rollout.fleet import Fleet
from rollout.judging import judged_group
from rollout.sampling import Sampling
from rollout.tasks import TaskStream
from rollout.types import Completion, Group, Snapshot, VersionSpan
from verifiers.types import Task, Verdict, correct, wrong

NUM_WORKERS = 64
NUM_GROUPS = 1024
GROUP_SIZE = 16
NUM_TOKENS = 512
NUM_PROMPT_TOKENS = 128
CHUNK = 4  # completions that end together
STEP_S = 30.0
WANTED = 0.05  # of a step, at most
SIMULATED_S = 0.2
SAMPLING = Sampling(max_tokens=2 * NUM_TOKENS)


class Answers:
    """A group's completions as they arrive, of the version asked for last."""

    def __init__(self) -> None:
        self._generator = random.Random(0)
        self._prompt_ids = self._tokens(NUM_PROMPT_TOKENS)
        self._completions = [self._completion(index) for index in range(GROUP_SIZE)]
        self._version, self._chunks = -1, list[bytes]()

    def of_version(self, version: int) -> list[bytes]:
        if version != self._version:
            spans = (VersionSpan(version, NUM_TOKENS),)
            some = [dataclasses.replace(each, version_spans=spans) for each in self._completions]
            self._version = version
            self._chunks = [pickle.dumps(tuple(some[i : i + CHUNK]), protocol=5) for i in range(0, GROUP_SIZE, CHUNK)]
        return self._chunks

    def _completion(self, index: int) -> Completion:
        logprobs = tuple(-self._generator.random() for _ in range(NUM_TOKENS))
        text = "".join(self._generator.choice("abcdefgh ") for _ in range(4 * NUM_TOKENS))
        return Completion(index, self._prompt_ids, self._tokens(NUM_TOKENS), text, "stop", logprobs, seed=index)

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self._generator.randrange(150_000) for _ in range(count))


class FakeWorker:
    """Answers every task with the same completions, pickled before: in a run other processes do that."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._version = 0

    async def stream(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> AsyncGenerator[tuple[Completion, ...]]:
        for chunk in self._answers.of_version(self._version):
            await asyncio.sleep(SIMULATED_S * CHUNK / n)
            yield pickle.loads(chunk)

    async def hold(self) -> None: ...
    async def load(self, snapshot: Snapshot) -> None:
        self._version = snapshot.version

    async def ping(self) -> None: ...
    async def revive(self) -> bool:
        return False

    async def close(self) -> None: ...


async def verify(task: Task, completions: Sequence[Completion]) -> tuple[Verdict, ...]:
    """Every other one is right, at once."""
    return tuple(
        Verdict(1.0, True, (correct("equal"),)) if each.index % 2 else Verdict(0.0, False, (wrong("not equal"),))
        for each in completions
    )


class Clock:
    """CPU seconds of this process by what it did."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[name].append(time.process_time() - started)


async def run_steps(num_steps: int, num_groups: int, clock: Clock) -> list[float]:
    """Resident MiB of this process after each step."""

    answers = Answers()

    async def start_worker(index: int) -> FakeWorker:
        return FakeWorker(answers)

    fleet = Fleet(start_worker, num_workers=NUM_WORKERS, sampling=SAMPLING, run_seed=0, discard=lambda snapshot: None)

    async def rollout(task: Task) -> Group:
        return await judged_group(task, fleet.stream(task, n=GROUP_SIZE), verify)

    tasks = [Task(f"task-{i}", f"What is {i} + {i}? " * 20, str(2 * i), "math") for i in range(4 * NUM_GROUPS)]
    collector, objective, resident = Collector(rollout, TaskStream(tasks, seed=0)), Grpo(), []
    with tempfile.TemporaryDirectory() as folder:
        store = RolloutStore(Path(folder), every=1)
        await fleet.start()
        for step in range(num_steps):
            await fleet.load(Snapshot(step, "", ""))
            with clock.time("step"):
                with clock.time("sample, judge, collect"):
                    groups = await collector.take(num_groups, keep=objective.keep, version=step)
                with clock.time("credit"):
                    examples = objective.credit(groups)
                with clock.time("pack for the learner"):
                    pickle.dumps(examples, protocol=5)
                with clock.time("metrics"):
                    metrics = group_metrics(groups) | collector.metrics() | fleet.metrics()
                with clock.time("write the rollouts"):
                    store.write(step, groups)
            assert metrics["completion/tokens"] == num_groups * GROUP_SIZE * NUM_TOKENS
            for path in Path(folder).iterdir():
                path.unlink()
            del groups, examples
            gc.collect()
            resident.append(psutil.Process().memory_info().rss / 2**20)
        await fleet.close()
    return resident


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="whole steps that are timed, after one that is not")
    parser.add_argument("--flat-steps", type=int, default=100, help="steps over which the memory is watched")
    parser.add_argument("--flat-groups", type=int, default=NUM_GROUPS // 8, help="groups in each of those")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()

    gc.set_threshold(*GC_THRESHOLDS)
    asyncio.run(run_steps(1, NUM_GROUPS, Clock()))
    clock = Clock()
    asyncio.run(run_steps(arguments.steps, NUM_GROUPS, clock))
    peak = psutil.Process().memory_info().rss / 2**20
    resident = asyncio.run(run_steps(arguments.flat_steps, arguments.flat_groups, Clock()))
    seconds = {name: statistics.median(each) for name, each in clock.seconds.items()}
    table = Table("what", "CPU s a step", f"of {STEP_S:g} s", title=f"{NUM_WORKERS} workers, {NUM_GROUPS} groups of {GROUP_SIZE}")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / STEP_S:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"resident memory over {len(resident)} steps of {arguments.flat_groups} groups: {statistics.median(resident[:10]):.0f} MiB "
        f"in the first ten, {statistics.median(resident[-10:]):.0f} MiB in the last ten, {max(resident):.0f} MiB at most"
    )
    with_file, file = seconds["step"] / STEP_S, seconds["write the rollouts"] / STEP_S
    wanted = f"of a step of {STEP_S:g} s (wanted {WANTED:.0%})"
    for what, share in (("with the rollouts file", with_file), ("without it", with_file - file)):
        console.print(f"driver, {what}: {share:.1%} {wanted}", highlight=False)
    if arguments.json:
        figures = {"cpu_s": seconds, "step_s": STEP_S, "resident_mib": resident, "after_whole_steps_mib": peak}
        arguments.json.write_text(json.dumps(figures | {"cpus": os.cpu_count()}, indent=1))


if __name__ == "__main__":
    main()
