"""What every engine must do with weights that the learner sends it, over a real gloo group."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import pytest_asyncio
from engine_models import ENGINES, PROMPT, EngineBench, make_engine, model_folder
from torch import Tensor

from rollout import broadcast
from rollout.broadcast import Group, Sender, spec_of
from rollout.engine import Engine
from rollout.errors import SyncFailed
from rollout.sampling import Sampling
from rollout.types import BroadcastSeat, Snapshot

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Held(NamedTuple):
    """What this process holds: bytes of memory, threads, and its open descriptors, each with what it leads to."""

    rss: int
    threads: int
    files: frozenset[str]

    @classmethod
    def now(cls) -> Held:
        files = {f"{file.name} -> {os.readlink(file)}" for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
        return cls(psutil.Process().memory_info().rss, psutil.Process().num_threads(), frozenset(files))


async def fill_thread_pool(size: int = 4) -> None:
    """Let all the threads of `asyncio.to_thread` start: the pool adds one whenever the others happen to be busy."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(size))
    everybody = threading.Barrier(size)
    await asyncio.gather(*(asyncio.to_thread(everybody.wait) for _ in range(size)))


async def settled(*, at_most: Held | None = None) -> Held:
    """What is held once nothing more is given back, or no more than that: sockets and threads end a moment after their owners."""
    held = None
    for _ in range(100):
        gc.collect()
        last, held = held, Held.now()
        if at_most is None and last is not None and (last.threads, last.files) == (held.threads, held.files):
            break
        if at_most is not None and held.threads <= at_most.threads and len(held.files) <= len(at_most.files):
            break
        await asyncio.sleep(0.1)
    assert held is not None
    return held


class Bench(EngineBench):
    """With the end of the learner that sends."""

    def __init__(self, engine: Engine, *, is_tied: bool) -> None:
        super().__init__(engine, is_tied=is_tied)
        self.sender = Sender("gloo", host="127.0.0.1")
        self.seat: BroadcastSeat | None = None

    async def send(self, weights: dict[str, Tensor], *, layout_of: dict[str, Tensor] | None = None) -> None:
        """Send to the engine, in the group of the last time unless that broke. Raises what the engine raises."""
        self.version += 1
        self.seat = self.seat or replace(self.sender.open(2), first_rank=1)
        snapshot = Snapshot(self.version, layout=tuple(spec_of(*named) for named in (layout_of or weights).items()))
        sending = asyncio.create_task(asyncio.to_thread(self.sender.send, self.seat, snapshot, iter(weights.items())))
        try:
            await self.engine.load(replace(snapshot, seat=self.seat))
            await sending
        except BaseException:
            self.seat = None
            self.sender.close()
            await asyncio.gather(sending, return_exceptions=True)
            raise


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[True, False], ids=["tied", "untied"])
async def bench(kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    broadcast.BUCKET_BYTES = 20_000  # half a layer: several buckets
    engine = make_engine(kind, model_folder(tmp_path_factory.mktemp("engine"), is_tied=request.param))
    bench = Bench(engine, is_tied=request.param)
    yield bench
    await engine.close()
    bench.sender.close()
    broadcast.BUCKET_BYTES = 32 << 20


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


async def test_weights_that_were_sent_are_sampled_with(bench: Bench):
    for seed in (1, 2):
        await bench.send(bench.weights(seed))
        await bench.check(seed)


async def test_a_file_after_a_broadcast_and_a_broadcast_after_a_file(bench: Bench, tmp_path: Path):
    await bench.send(bench.weights(1))
    await bench.load_file(2, tmp_path)
    await bench.check(2)
    await bench.send(bench.weights(1))
    await bench.check(1)


async def test_a_broadcast_that_does_not_arrive_whole_stops_the_sampling_until_one_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    good, start = bench.weights(1), Group.start
    num_sent = 0  # an engine that receives in this process starts its buckets with the same method

    def is_third(group: Group) -> bool:
        nonlocal num_sent
        num_sent += group is bench.sender._group
        return group is bench.sender._group and num_sent == 3

    def start_damaged(group: Group, bucket: Tensor) -> None:
        if is_third(group):
            bucket[100] ^= 1
        start(group, bucket)

    def start_unless_broken(group: Group, bucket: Tensor) -> None:
        if is_third(group):
            raise OSError("the cable was pulled")
        start(group, bucket)

    for broken in (start_damaged, start_unless_broken):
        await bench.send(bench.weights(2))
        num_sent = 0
        with monkeypatch.context() as patch:
            patch.setattr(Group, "start", broken)
            with pytest.raises(SyncFailed):
                await bench.send(good)
        with pytest.raises(SyncFailed):
            await bench.engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
    await bench.send(good)
    await bench.check(1)


async def test_a_broadcast_that_does_not_fit_the_model_is_refused_before_it_begins(bench: Bench):
    good = bench.weights(1)
    first = next(name for name in good if name.endswith("q_proj.weight"))
    bad = {
        "missing": {name: weight for name, weight in good.items() if ".layers.1." not in name},
        "shape": good | {first: good[first][:5]},
    }
    for cause, weights in bad.items():
        await bench.send(good)
        with pytest.raises(SyncFailed, match=cause):
            await bench.send(weights)
        with pytest.raises(SyncFailed, match=cause):
            await bench.engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
    await bench.send(good)
    await bench.check(1)


@pytest.mark.slow
async def test_two_hundred_updates_grow_nothing(bench: Bench, kind: str):
    if kind == "vllm-async":
        pytest.skip("the memory that counts is in another process")
    both = [bench.weights(1), bench.weights(2)]

    async def update(times: int) -> None:
        for i in range(times):
            await bench.send(both[i % 2])

    await fill_thread_pool()
    await update(50)
    before = await settled()
    await update(200)
    after = await settled(at_most=before)
    assert after.rss - before.rss < 8 << 20
    assert after.threads <= before.threads
    assert len(after.files) <= len(before.files), sorted(after.files - before.files)
    await bench.check(2)
