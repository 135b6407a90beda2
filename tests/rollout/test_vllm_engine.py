"""What is particular to the vLLM engine: updates that fail half-way, engines that die, models its kernels lack."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from engine_models import STOP_ID, forward_logprobs, model_folder, tiny_model
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from rollout import vllm_engine
from rollout.engine import EngineConfig
from rollout.errors import ModelError, SyncFailed, WorkerLost
from rollout.sampling import Sampling
from rollout.snapshot import write_snapshot
from rollout.types import Snapshot
from rollout.vllm_engine import VllmEngine, engine_environment
from rollout.vllm_start import SOCKET_VARIABLE, socket_folder

PROMPT = (5, 6, 7)
CONFIG = EngineConfig(dtype="float32", max_num_seqs=32, kv_cache_mb=16)


def test_importing_the_engine_imports_nothing_heavy():
    heavy = "torch vllm transformers ray safetensors"
    script = f"import sys, rollout.vllm_engine, rollout.hf_engine; print([m for m in '{heavy}'.split() if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_the_environment_of_a_gpu_engine_leaves_its_processes_and_compiler_alone():
    environment = engine_environment("vllm", "cuda")
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment
    assert "TORCH_COMPILE_DISABLE" not in environment
    assert engine_environment("hf", "cpu", num_threads=3)["OMP_NUM_THREADS"] == "3"


def make_engine(model_path: str, *, in_process: bool) -> VllmEngine:
    if "vllm" not in sys.modules:
        os.environ.update(engine_environment("vllm", "cpu"))
    return VllmEngine(model_path, CONFIG, stop_token_ids=[STOP_ID], device="cpu", in_process=in_process)


def publish(folder: Path, *, version: int) -> tuple[Snapshot, Any]:
    model = tiny_model(version, is_tied=True)
    return write_snapshot(model.named_parameters(), version=version, folder=folder), model


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[VllmEngine]:
    engine = make_engine(model_folder(tmp_path / "model", is_tied=True), in_process=True)
    yield engine
    await engine.close()


@pytest.mark.vllm
async def test_an_update_that_fails_half_way_is_healed_by_the_next(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """vLLM has then replaced some layers, emptied others, and buffered weights that must not be mixed with the next ones."""
    first, _ = publish(tmp_path, version=1)
    await engine.load(first)
    second, model = publish(tmp_path, version=2)
    weights = load_file(second.path)
    monkeypatch.setattr(vllm_engine, "check_fit", lambda *arguments: None)  # it would refuse these before they do harm
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        misshapen = write_snapshot(weights | {name: weights[name][:5]}, version=3, folder=tmp_path)
        with pytest.raises(SyncFailed, match="did not take version 3"):
            await engine.load(misshapen)
        with pytest.raises(SyncFailed):
            await engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
    await engine.load(second)
    for generation in await engine.generate(PROMPT, Sampling(max_tokens=24), n=8, seed=0):
        assert generation.version_spans == ((2, len(generation.token_ids)),)
        assert generation.logprobs == pytest.approx(
            forward_logprobs(model, PROMPT, generation.token_ids, temperature=1.0), abs=1e-3
        )


@pytest.mark.vllm
async def test_a_cancelled_load_leaves_the_engine_refusing_until_the_next(engine: VllmEngine, tmp_path: Path):
    first, _ = publish(tmp_path, version=1)
    second, model = publish(tmp_path, version=2)
    await engine.load(first)
    for delay in (0.0, 0.002, 0.005, 0.01):
        loading = asyncio.create_task(engine.load(first))
        await asyncio.sleep(delay)
        if loading.cancel():
            with pytest.raises(asyncio.CancelledError):
                await loading
            with pytest.raises(SyncFailed, match="did not finish"):
                await engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
        await engine.load(second)
        (generation,) = await engine.generate(PROMPT, Sampling(max_tokens=24), n=1, seed=0)
        assert generation.logprobs == pytest.approx(
            forward_logprobs(model, PROMPT, generation.token_ids, temperature=1.0), abs=1e-3
        )


@pytest.mark.vllm
async def test_an_engine_whose_step_fails_says_so_and_does_not_hang(engine: VllmEngine, tmp_path: Path):
    await engine.load(publish(tmp_path, version=1)[0])

    def fail() -> None:
        raise MemoryError("no room")

    engine._llm._thread.engine.llm.step = fail
    waiting = [engine.generate(PROMPT, Sampling(max_tokens=80), n=8, seed=i) for i in range(4)]
    assert all(isinstance(result, WorkerLost) for result in await asyncio.gather(*waiting, return_exceptions=True))
    with pytest.raises(WorkerLost, match="no room"):
        await engine.load(publish(tmp_path, version=2)[0])


@pytest.mark.vllm
@pytest.mark.slow
async def test_a_killed_engine_process_loses_requests_and_loads_but_hangs_neither(tmp_path: Path):
    engine = make_engine(model_folder(tmp_path / "model", is_tied=True), in_process=False)
    await engine.load(publish(tmp_path, version=1)[0])
    waiting = [asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=90), n=64, seed=i)) for i in range(8)]
    await asyncio.sleep(0.05)
    loading = asyncio.create_task(engine.load(publish(tmp_path, version=2)[0]))
    await asyncio.sleep(0.001)
    assert SOCKET_VARIABLE not in os.environ, "a server started later would look for a folder that goes with this engine"
    children = psutil.Process().children(recursive=True)
    for child in children:
        if "EngineCore" in " ".join(child.cmdline()):
            child.kill()
    results = await asyncio.wait_for(asyncio.gather(*waiting, loading, return_exceptions=True), 30)
    assert all(isinstance(result, WorkerLost) for result in results), results
    with pytest.raises(WorkerLost):
        await engine.generate(PROMPT, Sampling(max_tokens=4), n=1, seed=0)
    await engine.close()
    assert not socket_folder().exists()


@pytest.mark.vllm
def test_heads_that_the_cpu_kernels_lack_are_refused_at_the_start(tmp_path: Path):
    sizes = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1}
    Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=2, num_key_value_heads=1)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"heads have size 16, .* engine.kind = \"hf\""):
        make_engine(str(tmp_path), in_process=True)


@pytest.mark.vllm
def test_more_context_than_the_model_has_is_refused(tmp_path: Path):
    if "vllm" not in sys.modules:
        os.environ.update(engine_environment("vllm", "cpu"))
    with pytest.raises(ModelError, match="4096"):
        VllmEngine(
            model_folder(tmp_path, is_tied=True), EngineConfig(max_model_len=4096), stop_token_ids=[], device="cpu", in_process=True
        )


@pytest.mark.vllm
async def test_more_prompt_tokens_than_one_step_takes_are_sampled_with_their_seeds(engine: VllmEngine, tmp_path: Path):
    """vLLM would cut a prompt in two where a step is full, and then rewind its seeded generator, which a CPU's cannot do."""
    snapshot, _ = publish(tmp_path, version=1)
    await engine.load(snapshot)
    prompts = [(5 + i, *([7] * 90)) for i in range(32)]  # no two share a block of the prefix cache
    sampling = Sampling(max_tokens=4)

    crowd = await asyncio.gather(*(engine.generate(prompt, sampling, n=1, seed=i) for i, prompt in enumerate(prompts)))
    alone = await engine.generate(prompts[-1], sampling, n=1, seed=31)

    assert crowd[-1] == alone
