"""A rollout worker gives completions as they finish, and they are those that its engine would give together."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import rollout.worker as worker_module
from grpo.tiny_model import make_tiny_model
from rollout.engine import EngineConfig
from rollout.errors import PromptTooLong, WorkerLost
from rollout.sampling import Sampling, turn_seed
from rollout.snapshot import write_snapshot
from rollout.types import Completion, Generation, Snapshot, VersionSpan
from rollout.worker import LONG, RolloutWorker, WorkerSpec
from tests.fakes import make_snapshot, make_task

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


async def test_turns_have_the_logprobs_of_the_whole_and_come_again_the_same(spec: WorkerSpec, tmp_path: Path):
    worker = RolloutWorker(spec)
    model = AutoModelForCausalLM.from_pretrained(spec.model_path)
    await worker.load(write_snapshot(model.state_dict(), version=3, folder=tmp_path))
    setting = Sampling(max_tokens=20, tokens_per_turn=6)
    first, again = [
        sorted([one async for some in worker.stream(TASK, setting, n=4, seed=7) for one in some], key=lambda one: one.index)
        for _ in range(2)
    ]
    assert [one.token_ids for one in first] == [one.token_ids for one in again]
    assert max(len(one.token_ids) for one in first) == 20
    for one in first:
        ids = torch.tensor([[*one.prompt_ids, *one.token_ids]])
        with torch.no_grad():
            wanted = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[len(one.prompt_ids) - 1 :, 0]
        assert one.behavior_logprobs == pytest.approx(wanted.tolist(), abs=1e-3)
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
        return [Generation((seed,), (0.0,), "stop", (VersionSpan(0, 1),))] * n


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


class CountingEngine:
    """Token t of a context is its length; version and end are as told. Each request waits for `go`."""

    def __init__(self, *, total: int = 99, model_len: int = 99) -> None:
        self.total = total
        self.model_len = model_len
        self.version = 0
        self.go = asyncio.Event()
        self.go.set()
        self.asked: list[tuple[int, int, int]] = []  # (length of the context, max_tokens, seed)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, n: int, seed: int) -> list[Generation]:
        first = len(prompt_ids)
        if first >= self.model_len:
            raise PromptTooLong("too long")
        self.asked.append((first, sampling.max_tokens, seed))
        version = self.version
        await self.go.wait()
        num_tokens = min(sampling.max_tokens, self.total - first, self.model_len - first)
        token_ids = tuple(range(first, first + num_tokens))
        reason = "stop" if first + num_tokens == self.total else "length"
        return [Generation(token_ids, tuple(map(float, token_ids)), reason, (VersionSpan(version, num_tokens),))] * n

    async def load(self, snapshot: Snapshot) -> None:
        self.version = snapshot.version


def counting(spec: WorkerSpec, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch) -> RolloutWorker:
    monkeypatch.setattr(worker_module, "make_engine", lambda *_: engine)
    return RolloutWorker(spec)


async def continued(worker: RolloutWorker, sampling: Sampling) -> Completion:
    ((completion,),) = [some async for some in worker.stream(TASK, sampling, n=1, seed=5)]
    return completion


TURNS = Sampling(max_tokens=10, tokens_per_turn=4)
FIRST = len(TASK.prompt)  # the tiny model has a token per byte


@pytest.mark.parametrize(
    ("total", "model_len", "turns", "num_tokens", "reason"),
    [
        (99, 99, [4, 4, 2], 10, "length"),
        (FIRST + 6, 99, [4, 4], 6, "stop"),
        (FIRST + 8, 99, [4, 4], 8, "stop"),
        (99, FIRST + 6, [4, 4], 6, "length"),  # the model ends in the middle of a turn,
        (99, FIRST + 8, [4, 4], 8, "length"),  # and with one
    ],
)
async def test_a_long_completion_goes_on_in_turns(spec, monkeypatch, total, model_len, turns, num_tokens, reason):
    engine = CountingEngine(total=total, model_len=model_len)
    completion = await continued(counting(spec, engine, monkeypatch), TURNS)
    assert [asked[:2] for asked in engine.asked] == [(FIRST + 4 * i, budget) for i, budget in enumerate(turns)]
    assert [asked[2] for asked in engine.asked] == [turn_seed(5, turn) for turn in range(len(turns))]
    assert completion.token_ids == tuple(range(FIRST, FIRST + num_tokens))
    assert completion.behavior_logprobs == tuple(map(float, completion.token_ids))
    assert (completion.finish_reason, completion.seed) == (reason, 5)
    assert completion.version_spans == ((0, num_tokens),)


async def test_a_prompt_that_is_too_long_from_the_start_is_still_refused(spec, monkeypatch):
    with pytest.raises(PromptTooLong):
        await continued(counting(spec, CountingEngine(model_len=2), monkeypatch), TURNS)


async def test_a_held_worker_ends_its_turns_before_new_weights_and_begins_none(spec, monkeypatch):
    engine = CountingEngine()
    worker = counting(spec, engine, monkeypatch)
    engine.go.clear()
    running = asyncio.create_task(continued(worker, TURNS))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    holding = asyncio.create_task(worker.hold())
    later = asyncio.create_task(continued(worker, Sampling(max_tokens=3)))
    await asyncio.sleep(0.01)
    assert len(engine.asked) == 1
    assert not holding.done()
    engine.go.set()
    await holding
    await asyncio.sleep(0.01)
    assert len(engine.asked) == 1
    await worker.load(make_snapshot(1))
    assert (await running).version_spans == ((0, 4), (1, 6))
    assert (await later).version_spans == ((1, 3),)


@pytest.mark.parametrize("sampling", [SHORT, Sampling(temperature=0)], ids=["short", "greedy"])
async def test_completions_that_finish_together_are_one_request(spec: WorkerSpec, monkeypatch, sampling: Sampling):
    engine = TimedEngine()
    given = [some async for some in timed(spec, engine, monkeypatch).stream(TASK, sampling, n=4, seed=1)]
    assert engine.asked == [(4, 1)]
    assert [[one.index for one in some] for some in given] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("logprobs", [None, (), (-0.1, -1e-300, float("-inf"))])
def test_a_completion_travels_whole(logprobs):
    ids = () if logprobs == () else (0, 2**31, 5)
    spans = (VersionSpan(3, 2), VersionSpan(4, 1))
    completion = Completion(1, (7, 8), ids, "lone \ud800", "length", logprobs, spans, 2**62)
    arrived = pickle.loads(pickle.dumps(completion))
    assert arrived == completion
    assert type(arrived.version_spans[0]) is VersionSpan
