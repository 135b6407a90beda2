"""A rollout worker gives completions as they finish, and they are those that its engine would give together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import rollout.worker as worker_module
from grpo.tiny_model import make_tiny_model
from rollout.engine import EngineConfig
from rollout.errors import WorkerLost
from rollout.sampling import Sampling
from rollout.snapshot import write_snapshot
from rollout.types import Completion, Generation
from rollout.worker import LONG, RolloutWorker, WorkerSpec
from tests.fakes import make_task

TASK = make_task(prompt="3 + 4 = ")
WARM = Sampling(max_tokens=LONG)
SHORT = Sampling(max_tokens=LONG - 1)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    folder = tmp_path_factory.mktemp("worker") / "model"
    make_tiny_model(folder, seed=0)
    return WorkerSpec(str(folder), EngineConfig(kind="hf", max_model_len=32), "cpu")


async def collected(worker: RolloutWorker, *, n: int, seed: int = 7) -> list[list[Completion]]:
    async with aclosing(worker.stream(TASK, WARM, n=n, seed=seed)) as finished:
        return [list(some) async for some in finished]


async def test_they_are_those_that_the_engine_gives_together(spec: WorkerSpec, tmp_path: Path):
    worker = RolloutWorker(spec)
    model = AutoModelForCausalLM.from_pretrained(spec.model_path)
    await worker.load(write_snapshot(model.state_dict(), version=3, folder=tmp_path))
    streamed = sorted([one for some in await collected(worker, n=8) for one in some], key=lambda one: one.index)
    together = await worker._engine.generate(streamed[0].prompt_ids, WARM, n=8, seed=7)
    assert [one.token_ids for one in streamed] == [one.token_ids for one in together]
    assert [one.behavior_logprobs for one in streamed] == [pytest.approx(one.logprobs, abs=1e-5) for one in together]
    assert [(one.index, one.seed, one.policy_version) for one in streamed] == [(i, 7 + i, 3) for i in range(8)]
    await worker.close()


class TimedEngine:
    """Completion `seed` takes as many tenths of a second; a seed of `fatal` kills the engine at once."""

    def __init__(self, *, fatal: int | None = None) -> None:
        self._fatal = fatal
        self.asked: list[tuple[int, int]] = []
        self.cancelled: list[int] = []

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, n: int, seed: int) -> list[Generation]:
        self.asked.append((n, seed))
        try:
            await asyncio.sleep(0 if seed == self._fatal else seed / 10)
        except asyncio.CancelledError:
            self.cancelled.append(seed)
            raise
        if seed == self._fatal:
            raise WorkerLost("no room")
        return [Generation((seed,), (0.0,), "stop", 0)] * n


def timed(spec: WorkerSpec, engine: TimedEngine, monkeypatch: pytest.MonkeyPatch) -> RolloutWorker:
    monkeypatch.setattr(worker_module, "make_engine", lambda *_: engine)
    monkeypatch.setattr(worker_module, "GATHER_S", 0.15)
    return RolloutWorker(spec)


async def test_what_finishes_together_comes_together_and_nothing_waits_for_the_last(spec: WorkerSpec, monkeypatch):
    worker = timed(spec, TimedEngine(), monkeypatch)
    batches = await collected(worker, n=5, seed=0)
    assert [[one.index for one in some] for some in batches] == [[0, 1], [2, 3], [4]]


async def test_who_stops_listening_ends_what_is_under_way(spec: WorkerSpec, monkeypatch):
    engine = TimedEngine()
    async with aclosing(timed(spec, engine, monkeypatch).stream(TASK, WARM, n=9, seed=0)) as finished:
        async for _ in finished:
            break
    assert sorted(engine.cancelled) == [2, 3, 4, 5, 6, 7, 8]


async def test_a_lost_engine_is_told_and_ends_the_others(spec: WorkerSpec, monkeypatch):
    engine = TimedEngine(fatal=3)
    with pytest.raises(WorkerLost, match="no room"):
        await collected(timed(spec, engine, monkeypatch), n=9, seed=0)
    assert sorted(engine.cancelled) == [2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("sampling", [SHORT, Sampling(temperature=0)], ids=["short", "greedy"])
async def test_completions_that_finish_together_are_one_request(spec: WorkerSpec, monkeypatch, sampling: Sampling):
    engine = TimedEngine()
    given = [some async for some in timed(spec, engine, monkeypatch).stream(TASK, sampling, n=4, seed=1)]
    assert engine.asked == [(4, 1)]
    assert [[one.index for one in some] for some in given] == [[0, 1, 2, 3]]
