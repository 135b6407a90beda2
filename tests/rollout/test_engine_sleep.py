"""Engines that give their memory up while the learner updates, and sample as if they never had."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from engine_models import CONFIG, ENGINES, STOP_ID, make_engine, model_folder, tiny_model

from rollout.engine import Engine
from rollout.errors import SyncFailed
from rollout.hf_engine import HfEngine
from rollout.sampling import Sampling
from rollout.snapshot import write_snapshot
from rollout.types import Generation, Snapshot
from rollout.vllm_engine import VllmEngine
from rollout.vllm_sleep import SleepMode

PROMPT = (5, 6, 7, 8)


def publish(folder: Path, *, version: int, seed: int | None = None, is_tied: bool = True) -> Snapshot:
    model = tiny_model(version if seed is None else seed, is_tied=is_tied)
    return write_snapshot(model.named_parameters(), version=version, folder=folder)


async def sampled(engine: Engine) -> list[Generation]:
    return await engine.generate(PROMPT, Sampling(max_tokens=24), n=8, seed=10)


# Every engine


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest_asyncio.fixture
async def engine(kind: str, tmp_path: Path) -> AsyncIterator[Engine]:
    engine = make_engine(kind, model_folder(tmp_path / "model", is_tied=True))
    yield engine
    await engine.close()


async def test_what_is_sampled_after_a_sleep_is_to_the_bit_what_would_have_been_without(engine: Engine, kind: str, tmp_path: Path):
    first, second = publish(tmp_path, version=1), publish(tmp_path, version=2)
    wanted = []
    for snapshot in (first, second):
        await engine.load(snapshot)
        wanted.append(await sampled(engine))
    for snapshot, expected in ((first, wanted[0]), (second, wanted[1]), (second, wanted[1])):
        assert await engine.sleep() == (kind == "hf"), "vLLM has no sleep mode on a CPU, and says so"
        await asyncio.wait_for(engine.ping(), 30)
        await engine.load(snapshot)
        assert await sampled(engine) == expected


async def test_an_engine_that_cannot_sleep_goes_on_as_it_was(engine: Engine, kind: str, tmp_path: Path):
    await engine.load(publish(tmp_path, version=1))
    before = await sampled(engine)
    if await engine.sleep():
        with pytest.raises(SyncFailed, match="it sleeps"):
            await sampled(engine)
    else:
        assert await sampled(engine) == before


# The hf engine


async def hf_engine(tmp_path: Path, *, is_tied: bool = True) -> HfEngine:
    return HfEngine(model_folder(tmp_path / "model", is_tied=is_tied), CONFIG, stop_token_ids=[STOP_ID], device="cpu")


async def test_a_sleeping_engine_holds_no_weights_and_refuses_until_a_load_that_succeeds(tmp_path: Path):
    engine = await hf_engine(tmp_path, is_tied=False)
    good = publish(tmp_path, version=1, is_tied=False)
    await engine.load(good)
    wanted = await sampled(engine)
    assert await engine.sleep()
    assert sum(parameter.numel() for parameter in engine._thread.engine.model.parameters()) == 0
    with pytest.raises(SyncFailed, match="it sleeps, and has given them up"):
        await sampled(engine)
    with pytest.raises(SyncFailed, match="fingerprint"):
        await engine.load(Snapshot(2, good.path, "0" * 32))
    with pytest.raises(SyncFailed, match="fingerprint"):
        await sampled(engine)
    assert await engine.sleep(), "once more does no harm"
    await engine.load(good)
    assert await sampled(engine) == wanted
    await engine.close()


async def test_requests_in_flight_wait_for_the_weights_and_those_that_are_cancelled_are_gone(tmp_path: Path):
    engine = await hf_engine(tmp_path)
    await engine.load(publish(tmp_path, version=1))
    requests = [asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=80), n=16, seed=i)) for i in range(2)]
    await asyncio.sleep(0.02)
    assert await engine.sleep()
    requests[1].cancel()
    await asyncio.wait(requests, timeout=0.2)
    assert not requests[0].done()
    assert requests[1].cancelled()
    await engine.load(publish(tmp_path, version=2))
    generations = await requests[0]
    assert {span.version for generation in generations for span in generation.version_spans} == {1, 2}
    assert not engine._thread.engine.has_unfinished()
    await engine.close()


# In a process of its own, whose memory nothing else has touched: bytes held before, asleep, and awake again.
MEASURED = """
import asyncio, sys
import psutil, torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from rollout.engine import EngineConfig
from rollout.hf_engine import HfEngine
from rollout.sampling import Sampling
from rollout.snapshot import write_snapshot

config = Qwen2Config(vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8,
                     num_key_value_heads=8, max_position_embeddings=2048)
model = Qwen2ForCausalLM(config)
model.save_pretrained(sys.argv[1])
snapshot = write_snapshot(model.named_parameters(), version=1, folder=sys.argv[1])
size = sum(parameter.nbytes for parameter in model.parameters())
del model
held = lambda: psutil.Process().memory_full_info().uss

async def main():
    engine = HfEngine(sys.argv[1], EngineConfig(), stop_token_ids=[], device="cpu")
    found = []
    for _ in range(3):
        await engine.load(snapshot)
        await engine.generate((5, 6, 7), Sampling(max_tokens=4), n=8, seed=1)
        running = asyncio.create_task(engine.generate((5, 6, 7) * 100, Sampling(max_tokens=1000), n=8, seed=1))
        while engine._thread.engine._batch is None:
            await asyncio.sleep(0.05)
        awake = held()
        await engine.sleep()
        found += [awake, held()]
        running.cancel()
    print(size, *found)
    await engine.close()

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_sleeping_engine_gives_the_memory_of_weights_and_cache_back_to_the_system(tmp_path: Path):
    told = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path)], check=True, capture_output=True, text=True)
    size, *found = map(int, told.stdout.split())
    cache = 8 * 300 * 8 * 2 * 8 * 64 * 4  # rows, tokens of the prompt, layers, keys and values, heads, their size, bytes
    assert size > 80 << 20
    for awake, asleep in zip(found[::2], found[1::2], strict=True):
        assert awake - asleep > 0.95 * (size + cache), (size >> 20, cache >> 20, [each >> 20 for each in found])
    assert found[-1] - found[1] < 0.1 * size, "and as much each time"


# vLLM's sleep mode, which only a GPU has: what it is told, and when


class Recorded:
    """An LLM that notes the calls that change its memory or its weights, and fails one of them where it is told to."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self.calls: list[str] = []
        self.fails = ""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._llm, name)
        if name not in ("pause_generation", "start_weight_update", "update_weights", "finish_weight_update", "resume_generation"):
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if name == self.fails:
                raise RuntimeError(f"{name} failed")
            return await method(*args, **kwargs)

        return call

    async def sleep(self, *, level: int, mode: str) -> None:
        self.calls.append(f"sleep {level} {mode}")

    async def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {' '.join(tags)}")


@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["vllm"])
async def test_vllm_gets_its_weights_back_before_a_load_and_its_cache_after(engine: VllmEngine, tmp_path: Path):
    """Not yet run on a GPU: on a CPU vLLM is told the same, and has nothing to give up."""
    engine._can_sleep = True
    engine._llm = llm = Recorded(engine._llm)
    first = publish(tmp_path, version=1)
    await engine.load(first)
    wanted = await sampled(engine)
    llm.calls.clear()
    assert await engine.sleep()
    with pytest.raises(SyncFailed, match="it sleeps"):
        await sampled(engine)
    await engine.load(first)
    update = ["start_weight_update", "update_weights", "finish_weight_update"]
    asleep = ["sleep 2 keep", "pause_generation", "wake weights", *update, "wake kv_cache", "resume_generation"]
    assert llm.calls == asleep
    assert await sampled(engine) == wanted
    llm.calls.clear()
    await engine.load(first)
    assert llm.calls == ["pause_generation", *update, "resume_generation"], "who is awake is not woken"


@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["vllm"])
async def test_vllm_whose_load_failed_when_it_woke_samples_nothing_until_one_succeeds(engine: VllmEngine, tmp_path: Path):
    engine._can_sleep = True
    engine._llm = llm = Recorded(engine._llm)
    first = publish(tmp_path, version=1)
    await engine.load(first)
    wanted = await sampled(engine)
    await engine.sleep()
    llm.fails = "update_weights"
    with pytest.raises(SyncFailed, match="update_weights failed"):
        await engine.load(first)
    assert llm.calls[-1] == "update_weights", "neither the cache nor the sampling came back"
    with pytest.raises(SyncFailed):
        await sampled(engine)
    llm.fails = ""
    await engine.load(first)
    assert llm.calls[-2:] == ["wake kv_cache", "resume_generation"]
    assert await sampled(engine) == wanted


@pytest.mark.parametrize(("keeps_weights", "level"), [(False, 2), (True, 1)])
async def test_base_weights_wait_in_memory_where_a_load_brings_adapters_only(keeps_weights: bool, level: int):
    llm = Recorded(None)
    sleep_mode = SleepMode(keeps_weights=keeps_weights)
    await sleep_mode.wake_weights(llm)
    await sleep_mode.end(llm)
    assert llm.calls == []
    await sleep_mode.begin(llm)
    await sleep_mode.wake_weights(llm)
    await sleep_mode.end(llm)
    assert llm.calls == [f"sleep {level} keep", "wake weights", "wake kv_cache"]
