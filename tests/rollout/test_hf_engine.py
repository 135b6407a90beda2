"""What is particular to the hf engine: its sampler, its random streams, what it refuses to decode."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_models import STOP_ID, forward_logprobs, model_folder, tiny_model
from transformers import MistralConfig, MistralForCausalLM

from rollout.engine import EngineConfig
from rollout.errors import ModelError, WorkerLost
from rollout.hf_batch import sample, stream
from rollout.hf_engine import HfEngine
from rollout.sampling import Sampling
from rollout.snapshot import write_snapshot


def test_tokens_are_drawn_with_their_probabilities():
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0]).repeat(20_000, 1)
    uniforms = torch.from_numpy(stream(np.arange(20_000, dtype=np.uint64), np.zeros(20_000, dtype=np.uint64)))
    tokens, logprobs = sample(logits, torch.full((20_000,), 2.0), uniforms)
    wanted = (logits[0] / 2).softmax(-1)
    frequencies = tokens.bincount(minlength=4) / 20_000
    assert frequencies.tolist() == pytest.approx(wanted.tolist(), abs=0.014)  # four standard deviations of the largest
    assert logprobs.tolist() == pytest.approx(wanted.log()[tokens].tolist(), abs=1e-6)


def test_a_token_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 0.5, 1 - 2**-24, 1.0):
        tokens, logprobs = sample(logits, torch.ones(1), torch.tensor([uniform]))
        assert (tokens.item(), logprobs.item()) == (1, 0.0)


def test_a_greedy_row_may_stand_beside_a_sampled_one():
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    tokens, logprobs = sample(logits, torch.tensor([0.0, 0.5]), torch.tensor([0.9999, 0.9999]))
    assert tokens.tolist() == [1, 2]
    assert logprobs[0].item() == pytest.approx(logits[0].log_softmax(-1)[1].item())
    assert logprobs[1].item() == pytest.approx((logits[1] / 0.5).log_softmax(-1)[2].item())


def test_random_streams_are_uniform_and_neighbours_are_unrelated():
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.uint64), indexing="ij")
    numbers = stream(seeds.ravel(), positions.ravel()).reshape(300, 300).astype(np.float64)
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.004)  # four standard errors of 90,000 uniform numbers
    for one, other in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1]), (numbers[1:, :-1], numbers[:-1, 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.014


async def make_engine(tmp_path: Path, **settings: object) -> tuple[HfEngine, object]:
    engine = HfEngine(model_folder(tmp_path, is_tied=True), EngineConfig(**settings), stop_token_ids=[STOP_ID], device="cpu")  # type: ignore[arg-type]
    model = tiny_model(1, is_tied=True)
    await engine.load(write_snapshot(model.named_parameters(), version=1, folder=tmp_path))
    return engine, model


async def test_few_slots_serve_many_requests_of_every_length(tmp_path: Path):
    engine, model = await make_engine(tmp_path, max_num_seqs=5)
    requests = [((7, 8, 9)[: 1 + i % 3], Sampling(max_tokens=1 + 11 * (i % 8))) for i in range(16)]
    results = await asyncio.gather(*(engine.generate(p, s, n=3, seed=9 * i) for i, (p, s) in enumerate(requests)))
    for (prompt, sampling), generations in zip(requests, results, strict=True):
        for generation in generations:
            assert len(generation.token_ids) == sampling.max_tokens or generation.token_ids[-1] == STOP_ID
            assert generation.logprobs == pytest.approx(
                forward_logprobs(model, prompt, generation.token_ids, temperature=1.0), abs=1e-3
            )
    await engine.close()


async def test_bfloat16_weights_are_sampled_from(tmp_path: Path):
    engine, model = await make_engine(tmp_path, dtype="bfloat16")
    generations = await engine.generate((5, 6), Sampling(max_tokens=20), n=8, seed=1)
    for generation in generations:
        wanted = forward_logprobs(model, (5, 6), generation.token_ids, temperature=1.0)
        assert generation.logprobs == pytest.approx(wanted, abs=0.3)  # 8 bits of mantissa; a wrong weight is off by more than 1
    await engine.close()


async def test_an_engine_whose_step_fails_says_so_and_does_not_hang(tmp_path: Path):
    engine, _ = await make_engine(tmp_path)
    engine._thread.engine.model.forward = None  # type: ignore[method-assign]
    with pytest.raises(WorkerLost, match="TypeError"):
        await engine.generate((5, 6), Sampling(max_tokens=20), n=2, seed=1)
    with pytest.raises(WorkerLost):
        await engine.generate((5, 6), Sampling(max_tokens=20), n=2, seed=1)


def test_a_model_that_is_not_there_is_the_users_mistake(tmp_path: Path):
    with pytest.raises(ModelError, match="absent"):
        HfEngine(str(tmp_path / "absent"), EngineConfig(), stop_token_ids=[], device="cpu")


def test_more_context_than_the_model_has_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"max_model_len is 4096, but .* was built for 96"):
        HfEngine(model_folder(tmp_path, is_tied=True), EngineConfig(max_model_len=4096), stop_token_ids=[], device="cpu")


@pytest.mark.parametrize(("max_model_len", "is_refused"), [(16, False), (17, True)])
async def test_a_sliding_window_is_refused_when_it_would_slide(tmp_path: Path, max_model_len: int, is_refused: bool):
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=1, sliding_window=16)).save_pretrained(tmp_path)
    config = EngineConfig(max_model_len=max_model_len)
    if is_refused:
        with pytest.raises(ModelError, match=r"full attention only.*window 16"):
            HfEngine(str(tmp_path), config, stop_token_ids=[], device="cpu")
    else:
        await HfEngine(str(tmp_path), config, stop_token_ids=[], device="cpu").close()
