"""Snapshots that are LoRA adapters: what vLLM samples with them, and which it refuses."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import peft
import pytest
import pytest_asyncio
import torch
from engine_models import STOP_ID, forward_logprobs, model_folder, tiny_model
from safetensors.torch import load_file
from torch import Tensor

from rollout.engine import EngineConfig
from rollout.errors import SyncFailed
from rollout.sampling import Sampling
from rollout.snapshot import ADAPTER_FILE, as_adapter, discard, write_snapshot
from rollout.types import Generation, Snapshot
from rollout.vllm_engine import VllmEngine, engine_environment
from rollout.weights import check_adapter, model_weights

PROMPT = (5, 6, 7, 8)
BASE_SEED = 99  # that of engine_models.model_folder
RANK = 4
CLOSE = 1e-3  # float32 on both sides; the adapters here change log-probabilities by more than 0.1
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


def adapted(seed: int, *, rank: int = RANK) -> Any:
    """The base model with random adapters on all its linear layers but the head."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_model(BASE_SEED, is_tied=True), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.15)
    return model.eval()


def weights_of(model: Any) -> dict[str, Tensor]:
    return {name: weight.contiguous() for name, weight in peft.get_peft_model_state_dict(model).items()}


def written(weights: dict[str, Tensor], model: Any, *, version: int, folder: Path) -> Snapshot:
    return as_adapter(write_snapshot(weights, version=version, folder=folder), model.peft_config["default"].save_pretrained)


def changed(weights: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}


# The folder


def test_the_folder_of_an_adapter_is_what_peft_loads(tmp_path: Path):
    model = adapted(1)
    snapshot = written(weights_of(model), model, version=3, folder=tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_model(BASE_SEED, is_tied=True), str(Path(snapshot.path).parent))
    ids = torch.tensor([PROMPT])
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_discarded_adapter_leaves_nothing(tmp_path: Path):
    model = adapted(1)
    snapshot = written(weights_of(model), model, version=3, folder=tmp_path)
    assert Path(snapshot.path).name == ADAPTER_FILE
    discard(snapshot)
    assert list(tmp_path.iterdir()) == []
    discard(snapshot)


BAD = {
    "half of a pair": (lambda weights: changed(weights, **{f"{FIRST}.lora_A.weight": None}), "does not fit.*self_attn.q_proj"),
    "of another width": (lambda weights: changed(weights, **{f"{FIRST}.lora_B.weight": torch.zeros(64, 3)}), "does not fit"),
    "for a layer that is not there": (
        lambda weights: weights | {f"{FIRST}x.lora_{half}.weight": torch.zeros(4, 4) for half in "AB"},
        "q_projx, whose weight is not there",
    ),
    "of a larger rank": (lambda _: weights_of(adapted(1, rank=RANK + 1)), "rank 4 at most"),
    "a bias": (lambda weights: weights | {f"{FIRST}.lora_B.bias": torch.zeros(64)}, "29 weights for 14 layers"),
    "whole weights": (lambda _: dict(tiny_model(1, is_tied=True).named_parameters()), "does not fit"),
    "nothing": (lambda _: {}, "0 weights for 0 layers"),
}


@pytest.mark.parametrize("case", BAD)
def test_adapters_that_do_not_fit_the_model_are_refused(case: str, tmp_path: Path):
    spoil, message = BAD[case]
    model = adapted(1)
    known = model_weights(tiny_model(BASE_SEED, is_tied=True))
    check_adapter(written(weights_of(model), model, version=1, folder=tmp_path), known, rank=RANK)
    with pytest.raises(SyncFailed, match=message):
        check_adapter(written(spoil(weights_of(model)), model, version=2, folder=tmp_path), known, rank=RANK)


# The engine


class Bench:
    """An engine over the base model, and adapters that it can be given."""

    def __init__(self, engine: VllmEngine, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.version = 0

    def publish(self, seed: int) -> tuple[Snapshot, Any]:
        """A snapshot, and the model that it makes of the base when merged."""
        self.version += 1
        model = adapted(seed)
        snapshot = written(weights_of(model), model, version=self.version, folder=self.folder)
        return snapshot, model.merge_and_unload()

    async def loaded(self, seed: int) -> Any:
        snapshot, model = self.publish(seed)
        await self.engine.load(snapshot)
        return model

    async def sample(self, *, n: int = 8, seed: int = 10, max_tokens: int = 24) -> list[Generation]:
        return await self.engine.generate(PROMPT, Sampling(max_tokens=max_tokens), n=n, seed=seed)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=[True, pytest.param(False, marks=pytest.mark.slow)])
async def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("engine")
    if "vllm" not in sys.modules:
        os.environ.update(engine_environment("vllm", "cpu"))
    engine = VllmEngine(
        model_folder(folder / "model", is_tied=True),
        EngineConfig(dtype="float32", max_num_seqs=32, kv_cache_mb=16),
        stop_token_ids=[STOP_ID],
        device="cpu",
        in_process=request.param,
        adapter_rank=RANK,
    )
    yield Bench(engine, folder)
    await engine.close()


in_vllm = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module")]


def assert_sampled_by(model: Any, generations: list[Generation], *, version: int) -> None:
    for generation in generations:
        wanted = forward_logprobs(model, PROMPT, generation.token_ids, temperature=1.0)
        assert generation.logprobs == pytest.approx(wanted, abs=CLOSE)
        assert generation.version_spans == ((version, len(generation.token_ids)),)


class TestEngine:
    pytestmark = in_vllm

    async def test_samples_are_those_of_the_merged_model_after_every_load(self, bench: Bench):
        base = tiny_model(BASE_SEED, is_tied=True)
        for seed in (1, 2, 1):
            model = await bench.loaded(seed)
            generations = await bench.sample()
            assert_sampled_by(model, generations, version=bench.version)
            plain = forward_logprobs(base, PROMPT, generations[0].token_ids, temperature=1.0)
            assert generations[0].logprobs != pytest.approx(plain, abs=0.1), "the adapter says something"

    async def test_an_adapter_that_comes_back_samples_the_same(self, bench: Bench):
        """Neither the prefix cache nor vLLM's cache of adapters mixes two that follow each other."""
        tokens = []
        for seed in (1, 2, 1):
            await bench.loaded(seed)
            tokens.append([generation.token_ids for generation in await bench.sample()])
        assert tokens[0] == tokens[2] != tokens[1]

    async def test_requests_in_flight_keep_their_adapter(self, bench: Bench):
        before = await bench.loaded(1)
        snapshot, after = bench.publish(2)  # not beside an engine that samples: both draw from torch's one stream of random numbers
        requests = [asyncio.create_task(bench.sample(n=4, seed=10 * i, max_tokens=80)) for i in range(8)]
        await asyncio.sleep(0.02)
        loading = asyncio.create_task(bench.engine.load(snapshot))
        await asyncio.sleep(0)
        late = asyncio.create_task(bench.sample(n=4))
        await loading
        assert all(request.done() for request in requests)
        for request in requests:
            assert_sampled_by(before, await request, version=snapshot.version - 1)
        assert_sampled_by(after, await late, version=snapshot.version)

    async def test_what_cannot_be_loaded_stops_the_sampling_until_a_load_succeeds(self, bench: Bench):
        snapshot, model = bench.publish(1)
        weights = load_file(snapshot.path)
        broken = Snapshot(snapshot.version, snapshot.path, "0" * 32)
        half = written(changed(weights, **{f"{FIRST}.lora_A.weight": None}), adapted(1), version=99, folder=bench.folder)
        for bad, cause in ((broken, "fingerprint"), (half, "does not fit")):
            await bench.loaded(2)
            with pytest.raises(SyncFailed, match=cause):
                await bench.engine.load(bad)
            with pytest.raises(SyncFailed, match=cause):
                await bench.sample(n=1)
        await bench.engine.load(snapshot)
        assert_sampled_by(model, await bench.sample(), version=snapshot.version)

    async def test_one_adapter_is_held_however_many_were_loaded(self, bench: Bench):
        for seed in range(12):
            snapshot, _ = bench.publish(seed)
            await bench.engine.load(snapshot)
            await bench.sample(n=1, max_tokens=2)
            discard(snapshot)
        held = await bench.engine._llm.collective_rpc("list_loras")
        assert [len(each) for each in held] == [1]
