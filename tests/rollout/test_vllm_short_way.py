"""The short ways through vLLM on a CPU give what vLLM's own give: the scheduler's, the sampler's, the kernels'."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from engine_models import STOP_ID, model_folder, tiny_model

from rollout.engine import EngineConfig
from rollout.sampling import Sampling
from rollout.snapshot import write_snapshot
from rollout.types import Generation
from rollout.vllm_engine import VllmEngine, engine_environment

pytestmark = pytest.mark.vllm

SEATS = 8


def ready_for_vllm() -> None:
    if "vllm" not in sys.modules:
        os.environ.update(engine_environment("vllm", "cpu"))


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[VllmEngine]:
    ready_for_vllm()
    config = EngineConfig(dtype="float32", max_num_seqs=SEATS, kv_cache_mb=16)
    engine = VllmEngine(model_folder(tmp_path / "model", is_tied=True), config, stop_token_ids=[STOP_ID], device="cpu")
    await engine.load(write_snapshot(tiny_model(1, is_tied=True).named_parameters(), version=1, folder=tmp_path))
    yield engine
    await engine.close()


def scheduler_of(engine: VllmEngine) -> Any:
    return engine._llm._thread.engine.llm.engine_core.engine_core.scheduler


async def sample_a_crowd(engine: VllmEngine) -> list[list[Generation]]:
    """More completions than seats, of all lengths up to three blocks of the cache, greedy ones among them."""
    some = [
        engine.generate((5 + i, *([7] * (i % 40))), Sampling(temperature=float(i % 4 > 0), max_tokens=4 + 9 * i), n=3, seed=100 * i)
        for i in range(9)
    ]
    return await asyncio.gather(*some)


async def test_the_short_way_samples_the_same_tokens_with_the_same_logprobs(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch):
    scheduler, steps = scheduler_of(engine), []
    decode_step = scheduler._decode_step
    monkeypatch.setattr(scheduler, "_decode_step", lambda starting: steps.append(starting) or decode_step(starting))

    short = await sample_a_crowd(engine)
    monkeypatch.setattr(scheduler, "_can_shorten", False)
    num_short = len(steps)
    long = await sample_a_crowd(engine)

    assert short == long
    assert num_short > 60, "most steps only decode"
    assert any(steps), "some of them need a new block of the cache"
    assert len(steps) == num_short


async def test_nothing_is_held_for_requests_that_are_gone(engine: VllmEngine):
    running = [asyncio.create_task(engine.generate((5, 6), Sampling(max_tokens=90), n=4, seed=i)) for i in range(4)]
    await asyncio.sleep(0.05)
    for each in running[:2]:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await engine.generate((5, 6), Sampling(max_tokens=4), n=1, seed=0)
    assert not scheduler_of(engine)._held


def test_the_sampler_draws_what_vllm_draws():
    ready_for_vllm()
    import torch
    from torch import Generator

    from rollout.vllm_cpu import DRAWN_AT_ONCE, TopKTopPSampler, _vllm_forward_cpu

    def draw(forward: Any) -> list[list[int]]:
        generators = {row: Generator().manual_seed(40 + row) for row in (0, 1, 3)}  # row 2 has no seed
        sampler = TopKTopPSampler("processed_logprobs")
        logits = torch.linspace(0, 1, 4 * 50).reshape(4, 50)
        drawn = [forward(sampler, logits.clone(), generators, None, None) for _ in range(2 * DRAWN_AT_ONCE + 1)]
        assert all(torch.equal(logprobs, logits.log_softmax(-1)) for _, logprobs in drawn)
        return [tokens[[0, 1, 3]].tolist() for tokens, _ in drawn]

    assert draw(TopKTopPSampler.forward_cpu) == draw(_vllm_forward_cpu)


@pytest.mark.parametrize("has_flat_logprobs", [True, False])
def test_the_logprobs_of_many_tokens_are_noted_as_vllm_notes_them(has_flat_logprobs: bool):
    ready_for_vllm()
    import numpy as np
    from vllm.logprobs import create_sample_logprobs
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsLists

    from rollout.vllm_cpu import _vllm_update_sample_logprobs

    def of(*tokens: int) -> LogprobsLists:
        column = np.array(tokens, np.int32)[:, None]
        return LogprobsLists(column, np.sin(column).astype(np.float32), np.arange(1, len(tokens) + 1))

    def noted(update: Any) -> LogprobsProcessor:
        processor = LogprobsProcessor(None, create_sample_logprobs(has_flat_logprobs), None, 0.0, 0, None)
        for some in (of(7), of(3, 9, 3), of(4, 5)):
            update(processor, some)
        return processor

    assert LogprobsProcessor._update_sample_logprobs is not _vllm_update_sample_logprobs
    assert noted(LogprobsProcessor._update_sample_logprobs) == noted(_vllm_update_sample_logprobs)


@pytest.mark.parametrize("num_rows", [1, 7])
def test_the_compiled_norms_are_vllms_own(num_rows: int):
    ready_for_vllm()
    import torch
    from vllm import ir

    import rollout.vllm_cpu  # noqa: F401
    from rollout.vllm_start import COMPILED_NORMS

    x, residual, weight = torch.randn(num_rows, 48), torch.randn(num_rows, 48), torch.randn(48)
    ours, own = (ir.ops.rms_norm.impls[provider].impl_fn for provider in (COMPILED_NORMS, "native"))
    torch.testing.assert_close(ours(x, weight, 1e-6), own(x, weight, 1e-6), rtol=1e-6, atol=1e-6)
    ours, own = (ir.ops.fused_add_rms_norm.impls[provider].impl_fn for provider in (COMPILED_NORMS, "native"))
    wanted = own(x.clone(), residual.clone(), weight, 1e-6)
    torch.testing.assert_close(ours(x, residual, weight, 1e-6), wanted, rtol=1e-6, atol=1e-6)
