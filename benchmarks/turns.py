"""Ways of doing the same work that take turns on one machine: each in a process of its own, idle while another works.

`Way` is the side of the benchmark, `Turns` that of the process. `follow_run` makes a whole run of ours take turns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # before this folder, which has a verifiers.py of its own

from rollout.environment import environment

REST_S = 1.5  # between two turns: what a way has still under way, as a run with lag does, ends in nobody's time
EVALUATION_SEEDS = 4  # each samples every held-out task once


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a way: how long it took, and what it says of itself."""

    seconds: float
    facts: dict[str, float]


class Turns:
    """What a process with a way is told: to go on for some steps, to evaluate, to end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = 0
        self._steps: list[Step] = []
        self._started = 0.0
        self.evaluate: Callable[[], float] = lambda: 0.0

    def begin(self) -> bool:
        """Say that all is ready, and wait for the first turn. False: there is none."""
        self._connection.send("ready")
        return self._wait()

    def step_ended(self, facts: Mapping[str, float]) -> bool:
        """Note a step; at the end of a turn, wait for the next one. False: there is none."""
        self._steps.append(Step(time.perf_counter() - self._started, dict(facts)))
        self._started = time.perf_counter()
        self._left -= 1
        if self._left:
            return True
        self._connection.send(self._steps)
        return self._wait()

    def _wait(self) -> bool:
        while (told := self._connection.recv()) == "evaluate":
            self._connection.send(self.evaluate())
        self._left, self._steps = told or 0, []
        self._started = time.perf_counter()
        return told is not None


class Way:
    """One way, in a process that runs `target(Turns, *args)`. `env` is set before anything is imported there."""

    def __init__(self, name: str, target: Callable[..., None], *args: Any, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.facts: list[dict[str, float]] = []
        self.total_s = 0.0
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(target, self._theirs, args), name=name, daemon=True)
        self._env = dict(env or {})

    def start(self) -> None:
        """Start the process, and wait until it is ready for its first turn."""
        with environment(self._env):
            self._process.start()
        self._theirs.close()  # so that its end is noticed
        assert self._receive() == "ready"

    def turn(self, num_steps: int, *, warm_up: int = 1) -> None:
        """Let it do `warm_up` steps that do not count, and `num_steps` that do."""
        self._connection.send(warm_up + num_steps)
        steps: list[Step] = self._receive()
        self.total_s += sum(step.seconds for step in steps)
        self.seconds += [step.seconds for step in steps[warm_up:]]
        self.facts += [step.facts for step in steps[warm_up:]]

    def evaluate(self) -> float:
        """Held-out accuracy."""
        self._connection.send("evaluate")
        return self._receive()

    def close(self) -> None:
        if self._process.pid is None:
            return
        if self._process.is_alive():
            self._connection.send(None)
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            self._process.join()
            raise SystemExit(f"{self.name} ended with exit code {self._process.exitcode}; its error stands above") from None


def _run(target: Callable[..., None], connection: Connection, args: Sequence[Any]) -> None:
    target(Turns(connection), *args)


def take_turns(ways: Sequence[Way], *, rounds: int, num_steps: int) -> None:
    """Each way does `num_steps` steps that count, `rounds` times, one after the other."""
    for way in ways:
        way.start()
    for i in range(rounds + 1):
        for way in ways:
            time.sleep(REST_S)
            if i:
                way.turn(num_steps)
                told = " ".join(f"{seconds:.2f}" for seconds in way.seconds[-num_steps:])
                print(f"round {i}: {way.name}: {told}", file=sys.stderr, flush=True)
            else:  # to get warm
                way.turn(1)
                way.seconds.clear()
                way.facts.clear()


def follow_run(turns: Turns, config_file: str, overrides: Sequence[str], folder: str, learner_threads: int | None = None) -> None:
    """A whole run of ours, Ray and all, that takes turns: groups, update, sync, metrics and rollouts are what a step is.

    `learner_threads` None: as many as a run gives its learner.
    """
    import grpo.run

    if learner_threads is not None:
        usual = grpo.run.learner_spec
        grpo.run.learner_spec = lambda *args, **options: dataclasses.replace(usual(*args, **options), num_threads=learner_threads)
    asyncio.run(_follow_run(turns, config_file, overrides, Path(folder)))


async def _follow_run(turns: Turns, config_file: str, overrides: Sequence[str], folder: Path) -> None:
    from rich.console import Console

    from grpo.config import load_config
    from grpo.evaluate import evaluate
    from grpo.folder import RunFolder
    from grpo.run import open_run
    from grpo.train import train
    from rollout.tasks import load_tasks

    config = load_config(Path(config_file), overrides)
    run_folder = RunFolder(folder)
    run_folder.acquire()
    task_set = load_tasks(config.tasks)
    console = Console(file=(folder / "console.txt").open("w"))
    try:
        async with open_run(config, run_folder, task_set=task_set, console=console, title=folder.name) as run:
            loop = asyncio.get_running_loop()

            async def accuracy() -> float:
                tasks = run.task_set.held_out[: config.evaluation.num_tasks]
                rounds = [
                    await evaluate(
                        tasks, fleet=run.fleet, verifiers=run.verifiers, sampling=config.sampling, step=0, run_seed=1_000 + seed
                    )
                    for seed in range(EVALUATION_SEEDS)
                ]
                return sum(each.sampled_accuracy for each in rounds) / len(rounds)

            turns.evaluate = lambda: asyncio.run_coroutine_threadsafe(accuracy(), loop).result()
            begin, log_step = run.begin, run.log_step

            async def gated_begin(state: Any) -> Any:
                state = await begin(state)
                if not await asyncio.to_thread(turns.begin):
                    run.request_stop()
                return state

            async def gated_log_step(state: Any, groups: Any, metrics: dict[str, float]) -> None:
                await log_step(state, groups, metrics)
                if not await asyncio.to_thread(turns.step_ended, metrics | {"time/load_s": run.fleet.metrics()["time/load_s"]}):
                    run.request_stop()

            run.begin, run.log_step = gated_begin, gated_log_step  # type: ignore[method-assign]
            await train(run)
            run.tracker.close()
    finally:
        run_folder.release()


def median_fact(way: Way, name: str) -> float:
    values = sorted(facts.get(name, 0.0) for facts in way.facts)
    return values[len(values) // 2]
