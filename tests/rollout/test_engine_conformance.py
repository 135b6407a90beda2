"""What every engine must do, whichever it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from engine_models import (
    CLOSE,
    CONFIG,
    ENGINES,
    MAX_MODEL_LEN,
    PROMPT,
    STOP_ID,
    VOCAB_SIZE,
    forward_logprobs,
    make_engine,
    model_folder,
    tiny_model,
)
from safetensors.torch import load_file

from rollout.engine import Engine
from rollout.errors import PromptError, PromptTooLong, SyncFailed, WorkerLost
from rollout.sampling import Sampling
from rollout.snapshot import write_snapshot
from rollout.types import Generation, Snapshot

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Bench:
    """An engine, and models whose weights it can be given."""

    engine: Engine
    folder: Path
    is_tied: bool
    num_published: int = 0

    def publish(self, seed: int) -> tuple[Snapshot, Any]:
        """A snapshot of a model, with a version higher than all before."""
        self.num_published += 1
        model = tiny_model(seed, is_tied=self.is_tied)
        return write_snapshot(model.named_parameters(), version=self.num_published, folder=self.folder), model

    async def loaded(self, seed: int = 1) -> Any:
        """Load a model's weights, and return the model."""
        snapshot, model = self.publish(seed)
        await self.engine.load(snapshot)
        return model

    def rewrite(self, snapshot: Snapshot, **changes: torch.Tensor | None) -> Snapshot:
        """The same snapshot with some weights replaced, or left out where the change is None."""
        weights = {name: tensor for name, tensor in (load_file(snapshot.path) | changes).items() if tensor is not None}
        return write_snapshot(weights, version=snapshot.version, folder=self.folder)


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[True, False], ids=["tied", "untied"])
async def bench(kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("engine")
    engine = make_engine(kind, model_folder(folder / "model", is_tied=request.param))
    with pytest.raises(SyncFailed, match="no snapshot has been loaded"):
        await engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
    yield Bench(engine, folder, request.param)
    await engine.close()
    with pytest.raises(WorkerLost):
        await engine.ping()
    with pytest.raises(WorkerLost):
        await engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)


def assert_logprobs_of(model: Any, generations: list[Generation], *, prompt_ids: tuple[int, ...], temperature: float) -> None:
    for generation in generations:
        wanted = forward_logprobs(model, prompt_ids, generation.token_ids, temperature=temperature)
        assert generation.logprobs == pytest.approx(wanted, abs=CLOSE)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_those_of_the_loaded_weights_at_the_sampling_temperature(bench: Bench, temperature: float):
    for seed in (1, 2):  # the second load replaces weights that have sampled
        model = await bench.loaded(seed)
        generations = await bench.engine.generate(PROMPT, Sampling(temperature=temperature, max_tokens=24), n=8, seed=10)
        assert_logprobs_of(model, generations, prompt_ids=PROMPT, temperature=temperature)
        assert {g.version_spans for g in generations} == {((bench.num_published, len(g.token_ids)),) for g in generations}


async def test_without_the_load_the_logprobs_are_not_those_of_the_new_weights(bench: Bench):
    """The tests above would not notice a load that does nothing, if the two models agreed."""
    await bench.loaded(1)
    _, other = bench.publish(2)
    generation = (await bench.engine.generate(PROMPT, Sampling(max_tokens=24), n=1, seed=10))[0]
    assert generation.logprobs != pytest.approx(forward_logprobs(other, PROMPT, generation.token_ids, temperature=1.0), abs=0.1)


async def test_n_completions_end_at_the_stop_token_or_at_the_budget(bench: Bench):
    await bench.loaded()
    generations = await bench.engine.generate(PROMPT, Sampling(max_tokens=20), n=40, seed=0)
    assert len(generations) == 40
    for generation in generations:
        assert len(generation.logprobs) == len(generation.token_ids) <= 20
        assert STOP_ID not in generation.token_ids[:-1]
        ends_with_stop = generation.token_ids[-1] == STOP_ID
        assert generation.finish_reason == ("stop" if ends_with_stop else "length")
        assert ends_with_stop or len(generation.token_ids) == 20
    assert {g.finish_reason for g in generations} == {"stop", "length"}
    assert len({g.token_ids for g in generations}) > 30


async def test_a_completion_ends_where_the_model_does(bench: Bench):
    await bench.loaded()
    prompt = tuple(5 + i % 7 for i in range(MAX_MODEL_LEN - 3))
    generations = await bench.engine.generate(prompt, Sampling(max_tokens=50), n=8, seed=0)
    assert {(g.finish_reason, len(g.token_ids)) for g in generations if g.finish_reason == "length"} == {("length", 3)}


async def test_a_prompt_of_one_token_is_enough(bench: Bench):
    model = await bench.loaded()
    generations = await bench.engine.generate((5,), Sampling(max_tokens=8), n=3, seed=0)
    assert_logprobs_of(model, generations, prompt_ids=(5,), temperature=1.0)


async def test_prompts_that_cannot_be_continued_are_refused(bench: Bench):
    await bench.loaded()
    with pytest.raises(PromptTooLong, match=f"{MAX_MODEL_LEN} for prompt and completion"):
        await bench.engine.generate((5,) * MAX_MODEL_LEN, Sampling(max_tokens=8), n=1, seed=0)
    for prompt in ((), (5, VOCAB_SIZE), (5, -1)):
        with pytest.raises(PromptError):
            await bench.engine.generate(prompt, Sampling(max_tokens=8), n=1, seed=0)


async def test_a_seed_gives_the_same_completions_alone_and_in_a_crowd(bench: Bench):
    await bench.loaded()
    sampling = Sampling(temperature=0.9, max_tokens=30)
    alone = [await bench.engine.generate((5 + i, 6, 7)[: 1 + i % 3], sampling, n=4, seed=100 * i) for i in range(6)]
    crowd = await asyncio.gather(
        *(bench.engine.generate((5 + i, 6, 7)[: 1 + i % 3], sampling, n=4, seed=100 * i) for i in range(6))
    )
    for one, other in zip(alone, crowd, strict=True):
        assert [g.token_ids for g in one] == [g.token_ids for g in other]
        for a, b in zip(one, other, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


async def test_completion_i_has_the_seed_plus_i(bench: Bench):
    await bench.loaded()
    four = await bench.engine.generate(PROMPT, Sampling(max_tokens=12), n=4, seed=2**62 - 1)
    third = await bench.engine.generate(PROMPT, Sampling(max_tokens=12), n=1, seed=2**62 + 1)
    assert third[0].token_ids == four[2].token_ids


async def test_temperature_zero_takes_the_likeliest_token(bench: Bench):
    model = await bench.loaded()
    generations = await bench.engine.generate(PROMPT, Sampling(temperature=0.0, max_tokens=10), n=3, seed=7)
    assert len({g.token_ids for g in generations}) == 1
    token_ids = generations[0].token_ids
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPT, *token_ids]])).logits[0, len(PROMPT) - 1 : -1]
    assert logits.argmax(-1).tolist() == list(token_ids)
    assert_logprobs_of(model, generations, prompt_ids=PROMPT, temperature=1.0)


async def test_many_requests_at_once_with_several_temperatures(bench: Bench):
    model = await bench.loaded()
    wanted = [(tuple(range(4, 5 + i % 9)), (1.0, 0.5, 0.0)[i % 3], 1 + 3 * (i % 7)) for i in range(60)]
    results = await asyncio.gather(
        *(bench.engine.generate(p, Sampling(temperature=t, max_tokens=m), n=2, seed=i) for i, (p, t, m) in enumerate(wanted))
    )
    for (prompt, temperature, max_tokens), generations in zip(wanted, results, strict=True):
        assert len(generations) == 2
        assert all(len(g.token_ids) <= max_tokens for g in generations)
        assert_logprobs_of(model, generations, prompt_ids=prompt, temperature=temperature or 1.0)


async def test_a_cancelled_request_leaves_the_engine_in_health(bench: Bench):
    model = await bench.loaded()
    for delay in (0.0, 0.005, 0.03):
        task = asyncio.create_task(bench.engine.generate(PROMPT, Sampling(max_tokens=90), n=64, seed=0))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    generations = await bench.engine.generate(PROMPT, Sampling(max_tokens=24), n=8, seed=10)
    assert_logprobs_of(model, generations, prompt_ids=PROMPT, temperature=1.0)


async def test_an_abort_frees_the_slots_at_once(bench: Bench):
    """64 rows in 32 slots take twice the steps of one; were they still there, others would have to wait for most of them."""
    await bench.loaded()
    crowd = Sampling(max_tokens=90)

    async def seconds(sampling: Sampling) -> float:
        started = time.perf_counter()
        await bench.engine.generate(PROMPT, sampling, n=64, seed=0)
        return time.perf_counter() - started

    await seconds(crowd)
    whole = await seconds(crowd)
    waited = []
    for _ in range(3):
        running = asyncio.create_task(seconds(crowd))
        await asyncio.sleep(whole / 10)
        running.cancel()
        waited.append(await seconds(Sampling(max_tokens=1)))
    assert min(waited) < whole / 3, (waited, whole)


async def test_a_group_larger_than_the_engine_is_queued(bench: Bench):
    model = await bench.loaded()
    generations = await bench.engine.generate(PROMPT, Sampling(max_tokens=6), n=3 * CONFIG.max_num_seqs + 1, seed=0)
    assert len(generations) == 97
    assert_logprobs_of(model, generations[-5:], prompt_ids=PROMPT, temperature=1.0)


async def test_an_engine_answers_a_ping_idle_and_busy(bench: Bench):
    await bench.loaded()
    await asyncio.wait_for(bench.engine.ping(), 30)
    running = asyncio.create_task(bench.engine.generate(PROMPT, Sampling(max_tokens=90), n=64, seed=0))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(bench.engine.ping(), 30)
    assert not running.done()
    await running


async def test_a_load_in_the_middle_changes_the_rest_of_every_completion(bench: Bench):
    """Each log-probability is the one of the weights that sampled the token, over the whole context recomputed with them."""
    for delay in (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64):
        if await num_crossing_a_load(bench, delay):
            return
    pytest.fail("no completion was under way when the weights changed")


async def num_crossing_a_load(bench: Bench, delay: float) -> int:
    """Load in the middle of sampling, check every completion, and count those that both versions have sampled."""
    before = await bench.loaded(1)
    requests = [asyncio.create_task(bench.engine.generate(PROMPT, Sampling(max_tokens=80), n=4, seed=10 * i)) for i in range(8)]
    await asyncio.sleep(delay)
    snapshot, after = bench.publish(2)
    await bench.engine.load(snapshot)
    late = await bench.engine.generate(PROMPT, Sampling(max_tokens=20), n=4, seed=3)
    assert {g.version_spans for g in late} == {((snapshot.version, len(g.token_ids)),) for g in late}
    assert_logprobs_of(after, late, prompt_ids=PROMPT, temperature=1.0)
    num_crossing = 0
    for generation in [g for request in requests for g in await request]:
        old, new = (forward_logprobs(model, PROMPT, generation.token_ids, temperature=1.0) for model in (before, after))
        num_old = sum(span.num_tokens for span in generation.version_spans if span.version < snapshot.version)
        assert [*generation.logprobs] == pytest.approx([*old[:num_old], *new[num_old:]], abs=CLOSE)
        spans = ((snapshot.version - 1, num_old), (snapshot.version, len(old) - num_old))
        assert generation.version_spans == tuple(span for span in spans if span[1])
        num_crossing += 0 < num_old < len(old)
    return num_crossing


async def test_a_load_that_fails_stops_the_sampling_until_one_succeeds(bench: Bench):
    good, model = bench.publish(1)
    weights = load_file(good.path)
    first = next(name for name in weights if name.endswith("q_proj.weight"))
    damaged = bench.rewrite(good, **{first: weights[first] + 1})
    Path(damaged.path).write_bytes(Path(damaged.path).read_bytes()[:-4] + b"\x00\x00\x00\x01")
    bad = {
        "fingerprint": damaged,
        "cannot be read": Snapshot(good.version, str(bench.folder / "absent.safetensors"), good.fingerprint),
        "missing": bench.rewrite(good, **{first: None}),
        "unknown": bench.rewrite(good, extra=torch.zeros(3)),
        "shape": bench.rewrite(good, **{first: weights[first][:-1]}),
    }
    for cause, snapshot in bad.items():
        await bench.loaded(2)
        with pytest.raises(SyncFailed, match=cause):
            await bench.engine.load(snapshot)
        with pytest.raises(SyncFailed, match=cause):
            await bench.engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
    await bench.engine.load(good)
    generations = await bench.engine.generate(PROMPT, Sampling(max_tokens=24), n=8, seed=10)
    assert_logprobs_of(model, generations, prompt_ids=PROMPT, temperature=1.0)


async def test_a_load_that_fails_ends_the_requests_in_flight(bench: Bench):
    await bench.loaded(1)
    requests = [asyncio.create_task(bench.engine.generate(PROMPT, Sampling(max_tokens=90), n=32, seed=i)) for i in range(4)]
    await asyncio.sleep(0.02)
    good, _ = bench.publish(2)
    with pytest.raises(SyncFailed):
        await bench.engine.load(Snapshot(good.version, good.path, "0" * 32))
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert any(isinstance(result, SyncFailed) for result in results)
    await bench.engine.load(good)
    assert len(await bench.engine.generate(PROMPT, Sampling(max_tokens=4), n=2, seed=0)) == 2
