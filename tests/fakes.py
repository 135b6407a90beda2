"""Fakes behind the costly parts: workers, learner, verifiers, trackers, sandbox. They keep the promises of what they stand for.

test_fakes.py says which. Also the smallest tasks, verdicts and groups a test can be about.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from grpo.tracking import Tracker
from rollout.errors import WorkerLost
from rollout.sampling import Sampling
from rollout.types import Completion, Group, Snapshot, VersionSpan
from sandbox.agent.calls import MAX_LINE
from sandbox.types import Ending, Execution, Limits, Program, ProgramEnded
from verifiers.types import Message, Task, Verdict, correct, infra, partial, wrong

if TYPE_CHECKING:
    from grpo.batch import Example
    from grpo.learner import Update

FakeAnswer = Callable[[Task, random.Random], str]


def make_task(
    task_id: str = "t", *, prompt: str | tuple[Message, ...] = "1+1=", reference: str = "2", rewards: str = "math"
) -> Task:
    return Task(task_id, prompt, reference, rewards)


def index_of(completion: Completion) -> int:
    return completion.index


def make_tasks(count: int) -> tuple[Task, ...]:
    """Sums with distinct prompts and ids `t0`, `t1`, ..."""
    return tuple(make_task(f"t{i}", prompt=f"{i}+1=", reference=str(i + 1)) for i in range(count))


def make_verdict(reward: float | None) -> Verdict:
    """Correct at 1, wrong at 0, unscored at None."""
    if reward is None:
        return Verdict(None, False, (infra("the judge is down"),), cause="fake: the judge is down")
    score = {0.0: wrong("not as asked"), 1.0: correct("as asked")}.get(float(reward), partial(reward, "in part"))
    return Verdict(reward, reward == 1, (score,))


def make_completion(index: int = 0, *, text: str = "2", version: int = 0, seed: int = 0) -> Completion:
    token_ids = tuple(4 + ord(character) % 90 for character in text)
    logprobs = tuple(-0.5 for _ in token_ids)
    return Completion(index, (5, 6), token_ids, text, "stop", logprobs, (VersionSpan(version, len(token_ids)),), seed)


def make_group(rewards: Sequence[float | None], *, task: Task | None = None, version: int = 0) -> Group:
    completions = tuple(make_completion(i, version=version, seed=i) for i in range(len(rewards)))
    return Group(task or make_task(), completions, tuple(make_verdict(reward) for reward in rewards))


def make_snapshot(version: int) -> Snapshot:
    return Snapshot(version, f"/nowhere/v{version}", f"{version:032x}")


def guess(task: Task, generator: random.Random) -> str:
    """The reference, or one more than it, as often."""
    return f"\\boxed{{{int(task.reference) + generator.randrange(2)}}}"


class FakeWorker:
    """A rollout worker whose completions depend on the task, the seed and the version of its weights, and on nothing else.

    `kill()` makes every call raise WorkerLost, those under way too; so does `close()`. `freeze()` makes them wait for that. `hold`
    is an event that every call but `ping` waits for.
    """

    def __init__(self, answer: FakeAnswer = guess, *, hold: asyncio.Event | None = None) -> None:
        self._answer = answer
        self._hold = hold
        self._dead = asyncio.Event()
        self._is_frozen = False
        self.snapshot: Snapshot | None = None
        self.sampled: list[tuple[str, int, int]] = []  # (task id, n, seed) of each call
        self.loaded: list[int] = []
        self.held = 0
        self.can_sleep = True
        self.is_asleep = False
        self.closed = False

    def kill(self) -> None:
        self._dead.set()

    def freeze(self) -> None:
        self._is_frozen = True

    async def stream(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> AsyncGenerator[tuple[Completion, ...]]:
        """The last half first."""
        assert self.snapshot is not None, "a worker samples only after it was given weights"
        assert not self.is_asleep, "a worker that sleeps has no weights"
        self.sampled.append((task.id, n, seed))
        await self._wait()
        completions = tuple(self._completion(task, sampling, i, seed + i) for i in range(n))
        for some in (completions[n // 2 :], completions[: n // 2]):
            if some:
                yield some
            await self._wait()

    async def sample(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> tuple[Completion, ...]:
        """All of `stream`, in order."""
        return tuple(sorted([one async for some in self.stream(task, sampling, n=n, seed=seed) for one in some], key=index_of))

    def _completion(self, task: Task, sampling: Sampling, index: int, seed: int) -> Completion:
        assert self.snapshot is not None
        stream = f"{task.id}/{self.snapshot.version}/" + ("greedy" if sampling.temperature == 0 else str(seed))
        return make_completion(index, text=self._answer(task, random.Random(stream)), version=self.snapshot.version, seed=seed)

    async def hold(self) -> None:
        await self._wait()
        self.held += 1

    async def load(self, snapshot: Snapshot) -> None:
        await self._wait()
        self.snapshot = snapshot
        self.is_asleep = False
        self.loaded.append(snapshot.version)

    async def sleep(self) -> bool:
        await self._wait()
        self.is_asleep = self.can_sleep
        return self.is_asleep

    async def ping(self) -> None:
        if self._is_frozen:
            await self._dead.wait()
        if self._dead.is_set():
            raise WorkerLost("the fake worker was killed")

    async def revive(self) -> bool:
        await self.ping()
        return False

    async def close(self) -> None:
        self.closed = True
        self.kill()

    async def _wait(self) -> None:
        """Let others run; then go on when held no more, or die when killed."""
        await asyncio.sleep(0)
        if self._is_frozen:
            await self._dead.wait()
        if self._hold is not None and not self._dead.is_set():
            waits = [asyncio.ensure_future(event.wait()) for event in (self._hold, self._dead)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for waiting in waits:
                waiting.cancel()
        if self._dead.is_set():
            raise WorkerLost("the fake worker was killed")


class FakeLearner:
    """A learner whose only weight is a number: the sum of the advantages it was taught."""

    def __init__(self) -> None:
        self.weight = 0.0
        self.published: list[int] = []
        self.full_disk = False

    async def update(self, examples: Sequence[Example]) -> Update:
        from grpo.learner import Update

        self.weight += sum(example.advantage * len(example.token_ids) for example in examples)
        return Update({"loss/value": self.weight, "learner/rows": len(examples), "time/update_s": 0.0})

    async def publish(self, version: int) -> Snapshot:
        self.published.append(version)
        return make_snapshot(version)

    async def save(self, folder: str) -> None:
        (Path(folder) / "weight.json").write_text(json.dumps(self.weight))
        if self.full_disk:
            raise OSError(28, "No space left on device")

    async def restore(self, folder: str) -> None:
        self.weight = json.loads((Path(folder) / "weight.json").read_text())


class FakeTracker(Tracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.alerts: list[tuple[str, str]] = []
        self.closed = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed = True

    def alert(self, title: str, text: str) -> None:
        self.alerts.append((title, text))

    def values(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.lines if name in metrics]


class FakeVerifiers:
    """Judges by `reward(task, text)`; None leaves the completion unscored."""

    def __init__(self, reward: Callable[[Task, str], float | None]) -> None:
        self._reward = reward

    async def verify(self, task: Task, completions: Sequence[Completion]) -> tuple[Verdict, ...]:
        await asyncio.sleep(0)
        return tuple(make_verdict(self._reward(task, completion.text)) for completion in completions)

    async def metrics(self) -> dict[str, float]:
        return {}


def is_right(task: Task, text: str) -> float:
    """1 for the box with the reference in it, 0 for all else."""
    return float(text == f"\\boxed{{{task.reference}}}")


class FakeSandbox:
    """Runs programs as plain subprocesses, behind no walls: only for programs that a test wrote itself.

    Clocks, endings and the order of questions and answers are as in the real thing, and what stays in the program's process group
    ends with it. `faults` are raised one by one, each in place of a program. `programs` are those that ran.
    """

    def __init__(self, *, faults: Iterable[Exception] = ()) -> None:
        self._faults = deque(faults)
        self.programs: list[Program] = []
        self.num_alive = 0
        self.closed = False

    async def run(self, program: Program, *, stdin: str = "", limits: Limits | None = None) -> Execution:
        async with self._start(program, stdin, limits or Limits()) as process:
            return await asyncio.to_thread(process.wait)

    @asynccontextmanager
    async def open(self, program: Program, *, limits: Limits | None = None) -> AsyncIterator[FakeSession]:
        async with self._start(program, "", limits or Limits()) as process:
            yield FakeSession(process)

    def metrics(self) -> dict[str, float]:
        return {"sandbox/exited": float(len(self.programs))}

    async def close(self) -> None:
        self.closed = True

    @asynccontextmanager
    async def _start(self, program: Program, stdin: str, limits: Limits) -> AsyncIterator[_FakeProcess]:
        assert not self.closed, "a closed sandbox runs nothing"
        if self._faults:
            raise self._faults.popleft()
        self.programs.append(program)
        self.num_alive += 1
        with tempfile.TemporaryDirectory() as folder:
            process = _FakeProcess(program, stdin, limits, Path(folder))
            try:
                yield process
            finally:
                process.kill()
                self.num_alive -= 1


class FakeSession:
    """One program with an entry point in a FakeSandbox."""

    def __init__(self, process: _FakeProcess) -> None:
        self._process = process

    async def ask(self, question: str) -> str:
        return await asyncio.to_thread(self._process.ask, question)


class _FakeProcess:
    """A program's process; it does what the agent does once its walls are up. Every method may block."""

    PROGRAM = """
import json, resource, sys, types
root, given, questions, answers = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])
sys.path.append(root)
from sandbox.agent import answering
sys.path.pop()
for kind, value in given["limits"]:
    resource.setrlimit(kind, (value, value + 1))  # the soft one of the two on CPU time tells which it was
module = types.ModuleType("solution" if given["entry_point"] else "__main__")
sys.modules[module.__name__] = module
exec(compile(given["source"], "program.py", "exec"), module.__dict__)
if given["entry_point"]:
    answering.serve(module.__dict__, given["entry_point"], questions, answers)
"""

    def __init__(self, program: Program, stdin: str, limits: Limits, folder: Path) -> None:
        self._limits, self._folder = limits, folder
        self._execution: Execution | None = None
        self._started, self._cpu_before = time.monotonic(), _cpu_of_children()
        bounds = [
            (resource.RLIMIT_CPU, math.ceil(limits.cpu_s)),
            (resource.RLIMIT_DATA, (limits.memory_mb + 16) * 2**20),
            (resource.RLIMIT_FSIZE, 16 * limits.output_kb * 2**10),
        ]
        given = {"source": program.source, "entry_point": program.entry_point, "limits": bounds}
        (folder / "given.json").write_text(json.dumps(given))
        (folder / "stdin").write_bytes(stdin.encode("utf-8", "surrogatepass"))
        (folder / "work").mkdir()
        for name, content in program.files.items():
            place = folder / "work" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        incoming, self._questions = os.pipe()
        self._answers, outgoing = os.pipe()
        root = str(Path(__file__).parents[1])
        command = [sys.executable, "-I", "-c", self.PROGRAM, root, str(folder / "given.json"), str(incoming), str(outgoing)]
        with (folder / "stdin").open() as read, (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
            self._process = subprocess.Popen(
                command,
                stdin=read,
                stdout=out,
                stderr=err,
                cwd=folder / "work",
                env={"PYTHONHASHSEED": "0"},
                pass_fds=(incoming, outgoing),
                start_new_session=True,
            )
        os.close(incoming)
        os.close(outgoing)

    def ask(self, question: str) -> str:
        if self._execution is not None:
            raise ProgramEnded(self._execution)
        if self._can_be_read(0) and self._read():
            self._end(Ending.PROTOCOL)  # it answers before it is asked
        with contextlib.suppress(BrokenPipeError):
            os.write(self._questions, question.encode("ascii") + b"\n")
        deadline, received = time.monotonic() + self._limits.wall_clock_s, b""
        while not received.endswith(b"\n"):
            if not self._can_be_read(deadline - time.monotonic()):
                self._end(Ending.WALL_TIME)
            chunk = self._read()
            if not chunk:
                self._end()
            received += chunk
            if len(received) > MAX_LINE + 1 or b"\n" in received[:-1]:
                self._end(Ending.PROTOCOL)
        return received[:-1].decode("utf-8", "replace")

    def wait(self) -> Execution:
        deadline = self._started + self._limits.wall_clock_s
        while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                return self._ended(Ending.WALL_TIME)
            time.sleep(0.002)
        return self._ended()

    def kill(self) -> None:
        self._ended(Ending.DISMISSED)

    def _can_be_read(self, timeout_s: float) -> bool:
        return bool(select.select([self._answers], [], [], max(0, timeout_s))[0])

    def _read(self) -> bytes:
        return os.read(self._answers, 1 << 16)

    def _end(self, ending: Ending | None = None) -> NoReturn:
        raise ProgramEnded(self._ended(ending))

    def _ended(self, ending: Ending | None = None) -> Execution:
        """Make sure that the process group is dead, and say how it died; `ending` is what we ended it for."""
        if self._execution is not None:
            return self._execution
        if ending is None:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        os.killpg(self._process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        code = self._process.wait()
        os.close(self._questions)
        os.close(self._answers)
        out, err = ((self._folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        size = self._limits.output_kb * 2**10
        if ending is None:
            ending = Ending.EXITED if code >= 0 else Ending.CPU_TIME if -code == signal.SIGXCPU else Ending.KILLED
            if len(out) >= 16 * size:
                ending = Ending.OUTPUT
            elif err.rstrip().endswith("MemoryError"):
                ending = Ending.MEMORY
        self._execution = Execution(
            ending,
            exit_code=code if ending is Ending.EXITED else None,
            signal=-code if ending is Ending.KILLED else None,
            stdout=out[:size],
            stderr=err[:size],
            stdout_truncated=len(out) > size,
            stderr_truncated=len(err) > size,
            wall_s=time.monotonic() - self._started,
            cpu_s=_cpu_of_children() - self._cpu_before,
        )
        return self._execution


def _cpu_of_children() -> float:
    """Of all that have ended, so of those that ran beside it too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
