"""Actors used like the objects inside them: calls, streams, their errors, their deaths, and what was cancelled."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from grpo.cluster import Cluster
from rollout.errors import WorkerLost

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(120)]


def counter(folder: Path) -> Any:
    """A class in a function travels by value: an actor cannot import this file."""

    class Counter:
        async def pid(self) -> int:
            return os.getpid()

        async def wait(self) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                (folder / "call ended").touch()

        async def stream(self, count: int, *, then: str = "") -> AsyncIterator[int]:
            try:
                for i in range(count):
                    yield i
                if then == "raise":
                    raise ValueError("no more")
                if then == "wait":
                    await asyncio.sleep(60)
            finally:
                (folder / f"stream {then} ended").touch()

        async def close(self) -> None:
            """Holds nothing."""

    return Counter


@pytest.fixture
async def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    cluster = Cluster("local", logs=tmp_path / "logs")
    try:
        yield await cluster.start(counter(tmp_path), name="counter", lost=WorkerLost)
    finally:
        cluster.shutdown()


def written(path: Path) -> bool:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return path.exists()


async def test_an_actor_is_used_like_the_object_inside_it(actor: Any, tmp_path: Path) -> None:
    assert [i async for i in actor.stream(5)] == [0, 1, 2, 3, 4]

    failing = actor.stream(2, then="raise")
    assert [await anext(failing), await anext(failing)] == [0, 1]
    with pytest.raises(ValueError, match="no more"):
        await anext(failing)

    async with aclosing(actor.stream(1, then="wait")) as items:
        async for _ in items:
            break
    assert await asyncio.to_thread(written, tmp_path / "stream wait ended"), "who stops listening ends the stream"

    calling = asyncio.create_task(actor.wait())
    await asyncio.sleep(0.5)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert await asyncio.to_thread(written, tmp_path / "call ended")

    pid, first = await actor.pid(), asyncio.Event()
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0), "another program does not starve it"

    async def listen() -> None:
        async for _ in actor.stream(1, then="wait"):
            first.set()

    listening = asyncio.create_task(listen())
    await first.wait()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="the process of counter died"):
        await listening
    with pytest.raises(WorkerLost):
        await actor.pid()
