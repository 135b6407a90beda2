"""Fakes behind the costly parts: workers, learner, verifiers, trackers. They keep the promises of what they stand for.

test_fakes.py says which. Also the smallest tasks, verdicts and groups a test can be about.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.errors import WorkerLost
from rollout.sampling import Sampling
from rollout.types import Completion, Group, Snapshot
from verifiers.types import Message, Task, Verdict, correct, infra, partial, wrong

if TYPE_CHECKING:
    from grpo.batch import Example
    from grpo.learner import Update

FakeAnswer = Callable[[Task, random.Random], str]


def make_task(
    task_id: str = "t", *, prompt: str | tuple[Message, ...] = "1+1=", reference: str = "2", rewards: str = "math"
) -> Task:
    return Task(task_id, prompt, reference, rewards)


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
    return Completion(index, (5, 6), token_ids, text, "stop", logprobs, version, seed)


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

    `kill()` makes every call raise WorkerLost, those under way too. `hold` is an event that every call waits for.
    """

    def __init__(self, answer: FakeAnswer = guess, *, hold: asyncio.Event | None = None) -> None:
        self._answer = answer
        self._hold = hold
        self._dead = asyncio.Event()
        self.snapshot: Snapshot | None = None
        self.sampled: list[tuple[str, int, int]] = []  # (task id, n, seed) of each call
        self.loaded: list[int] = []
        self.closed = False

    def kill(self) -> None:
        self._dead.set()

    async def sample(self, task: Task, sampling: Sampling, *, n: int, seed: int) -> tuple[Completion, ...]:
        assert self.snapshot is not None, "a worker samples only after it was given weights"
        self.sampled.append((task.id, n, seed))
        await self._wait()
        return tuple(self._completion(task, sampling, i, seed + i) for i in range(n))

    def _completion(self, task: Task, sampling: Sampling, index: int, seed: int) -> Completion:
        assert self.snapshot is not None
        stream = f"{task.id}/{self.snapshot.version}/" + ("greedy" if sampling.temperature == 0 else str(seed))
        return make_completion(index, text=self._answer(task, random.Random(stream)), version=self.snapshot.version, seed=seed)

    async def load(self, snapshot: Snapshot) -> None:
        await self._wait()
        self.snapshot = snapshot
        self.loaded.append(snapshot.version)

    async def close(self) -> None:
        self.closed = True

    async def _wait(self) -> None:
        """Let others run; then go on when held no more, or die when killed."""
        await asyncio.sleep(0)
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


class FakeTracker:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed = True

    def values(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.lines if name in metrics]


class FakeVerifiers:
    """Judges by `reward(task, text)`; None leaves the completion unscored."""

    def __init__(self, reward: Callable[[Task, str], float | None]) -> None:
        self._reward = reward

    async def verify(self, task: Task, completions: Sequence[Completion]) -> tuple[Verdict, ...]:
        await asyncio.sleep(0)
        return tuple(make_verdict(self._reward(task, completion.text)) for completion in completions)


def is_right(task: Task, text: str) -> float:
    """1 for the box with the reference in it, 0 for all else."""
    return float(text == f"\\boxed{{{task.reference}}}")
