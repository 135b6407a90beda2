"""Programs per second of the sandbox's levels, beside what one would otherwise do, in one run on one machine.

    python benchmarks/sandbox_speed.py              every way this machine has, about two minutes
    python benchmarks/sandbox_speed.py --json FILE  the same figures for a program

Each way runs the same program (`print(1)`) again and again for some seconds, in rounds that alternate between the ways, one at a
time and several at once. Shown are medians over the rounds; what a table says about other machines is in its ratios.
Importing numpy in the program, against having it preloaded, needs: grpo sandbox build --packages python3-numpy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from sandbox.config import Level, SandboxConfig
from sandbox.docker import connect
from sandbox.errors import SandboxUnavailable
from sandbox.image import find_image, image_name
from sandbox.pool import open_sandbox
from sandbox.types import Limits, Program

SOURCE = "print(1)"
NUMPY = "import numpy; print(int(numpy.arange(10).sum()))"
SYSTEM_PYTHON = "/usr/bin/python3"
LIMITS = Limits(cpu_s=20)

Job = Callable[[], Awaitable[None]]


class Rate(NamedTuple):
    """One way at one concurrency: jobs per second, and milliseconds of a job."""

    way: str
    at_once: int
    per_s: float
    p50_ms: float
    p99_ms: float
    num_jobs: int


async def measure(job: Job, *, at_once: int, seconds: float) -> list[float]:
    """Seconds of each job, started by `at_once` callers without a pause."""
    taken: list[float] = []
    deadline = time.perf_counter() + seconds

    async def caller() -> None:
        while time.perf_counter() < deadline:
            began = time.perf_counter()
            await job()
            taken.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return taken


def rate(way: str, at_once: int, rounds: list[tuple[float, list[float]]]) -> Rate:
    taken = sorted(second for _, seconds in rounds for second in seconds)
    per_s = statistics.median(len(seconds) / elapsed for elapsed, seconds in rounds)
    return Rate(way, at_once, per_s, 1000 * taken[len(taken) // 2], 1000 * taken[int(0.99 * (len(taken) - 1))], len(taken))


async def process(*command: str, stdin: bytes | None = None) -> None:
    """A bare process: no limits, no walls. What it prints is read and checked."""
    started = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await started.communicate()
    if out.strip() not in (b"1", b"45"):
        raise SystemExit(f"{' '.join(command)}: {error.decode()[-500:]}")


@contextlib.asynccontextmanager
async def sandboxed(config: SandboxConfig, source: str) -> AsyncIterator[Job]:
    sandbox = open_sandbox(config)

    async def job() -> None:
        execution = await sandbox.run(Program(source), limits=LIMITS)
        if not execution.ok:
            raise SystemExit(f"{config.level}: {execution}")

    try:
        # Every slot stands before the clock starts.
        await asyncio.gather(*(job() for _ in range(config.slots or 1)))
        yield job
    finally:
        await sandbox.close()


@contextlib.asynccontextmanager
async def docker_exec(image: str) -> AsyncIterator[Job]:
    """`docker exec` into a container that stands, by the command line."""
    client = connect()
    container = client.containers.run(
        image, ["python3", "-c", "import time; time.sleep(3600)"], detach=True, auto_remove=True, network_mode="none"
    )

    async def job() -> None:
        await process("docker", "exec", container.id, "python3", "-I", "-c", SOURCE)

    try:
        yield job
    finally:
        container.kill()


async def docker_run(image: str) -> None:
    await process(
        "docker", "run", "--rm", "--network", "none", "--read-only", "--memory", "512m", image, "python3", "-I", "-c", SOURCE
    )


async def run(console: Console, *, seconds: float, num_rounds: int) -> list[Rate]:
    """Every way that this machine has."""
    ways: dict[str, Job] = {}
    async with contextlib.AsyncExitStack() as open_ways:
        levels: tuple[Level, ...] = ("warm", "bubblewrap", "fresh", "gvisor")
        for level in levels:
            try:
                ways[level] = await open_ways.enter_async_context(sandboxed(SandboxConfig(level=level, slots=4), SOURCE))
            except SandboxUnavailable as error:
                console.print(f"without {level}: {error}", highlight=False)
        ways["bare python3 -I"] = lambda: process(SYSTEM_PYTHON, "-I", "-c", SOURCE)
        image = find_image(connect()).id
        ways["docker exec"] = await open_ways.enter_async_context(docker_exec(image))
        ways["docker run"] = lambda: docker_run(image)
        with_numpy = image_name(("python3-numpy",))
        try:
            imported, preloaded = (
                SandboxConfig(slots=4, image=with_numpy, preload=preload) for preload in ((), ("numpy", "numpy.random"))
            )
            ways["warm, imports numpy"] = await open_ways.enter_async_context(sandboxed(imported, NUMPY))
            ways["warm, numpy preloaded"] = await open_ways.enter_async_context(sandboxed(preloaded, NUMPY))
        except SandboxUnavailable as error:
            console.print(f"without numpy: {error}", highlight=False)
        rounds: dict[tuple[str, int], list[tuple[float, list[float]]]] = {}
        for number in range(num_rounds):
            for way, job in ways.items():
                for at_once in (1, 4):
                    began = time.perf_counter()
                    taken = await measure(job, at_once=at_once, seconds=seconds)
                    rounds.setdefault((way, at_once), []).append((time.perf_counter() - began, taken))
            console.print(f"round {number + 1} of {num_rounds}", highlight=False)
        return [rate(way, at_once, measured) for (way, at_once), measured in rounds.items()]


def table(rates: list[Rate]) -> Table:
    shown = Table("way", "at once", "per s", "p50 ms", "p99 ms", "p99 / p50", "jobs")
    for one in rates:
        figures = (
            f"{one.per_s:.1f}",
            f"{one.p50_ms:.1f}",
            f"{one.p99_ms:.1f}",
            f"{one.p99_ms / one.p50_ms:.1f}",
            str(one.num_jobs),
        )
        shown.add_row(one.way, str(one.at_once), *figures)
    return shown


WANTED = {
    ("warm", "docker run"): " (wanted 40)",
    ("warm", "bare python3 -I"): " (wanted 1)",
    ("warm, numpy preloaded", "warm, imports numpy"): " (wanted 2.5)",
}


def ratios(rates: list[Rate]) -> list[str]:
    """What the table is for."""
    by_way = {(one.way, one.at_once): one.per_s for one in rates}
    pairs = [("warm", other) for other in ("docker run", "docker exec", "bare python3 -I")]
    pairs.append(("warm, numpy preloaded", "warm, imports numpy"))
    there = [(ours, other) for ours, other in pairs if (ours, 1) in by_way and (other, 1) in by_way]
    times = {pair: [by_way[pair[0], at_once] / by_way[pair[1], at_once] for at_once in (1, 4)] for pair in there}
    return [
        f"sandbox, {ours} against {other}: {one:.2f} x one at a time, {four:.2f} x four at once{WANTED.get((ours, other), '')}"
        for (ours, other), (one, four) in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one way at one concurrency in one round (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    console = Console()
    rates = asyncio.run(run(console, seconds=arguments.seconds, num_rounds=arguments.rounds))
    console.print(table(rates))
    for line in ratios(rates):
        console.print(line, highlight=False, soft_wrap=True)
    if arguments.json:
        figures: list[dict[str, Any]] = [one._asdict() for one in rates]
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
