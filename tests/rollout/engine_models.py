"""Tiny models for the engine tests, every kind of engine over one, and what it must agree with: a plain forward pass."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from rollout.engine import Engine, EngineConfig
from rollout.sampling import Sampling
from rollout.snapshot import discard, write_snapshot

STOP_ID = 3
VOCAB_SIZE = 48
MAX_MODEL_LEN = 96
PROMPT = (5, 6, 7, 8)
# float32 on both sides, sums in another order: differences stay below 1e-4 here, a wrong temperature or weight is above 1e-2.
CLOSE = 1e-3
CONFIG = EngineConfig(dtype="float32", max_num_seqs=32, kv_cache_mb=16)
ENGINES = [
    pytest.param("hf", id="hf"),
    pytest.param("vllm", id="vllm", marks=pytest.mark.vllm),
    pytest.param("vllm-async", id="vllm-async", marks=[pytest.mark.vllm, pytest.mark.slow]),
]


def make_engine(kind: str, model_path: str) -> Engine:
    if kind == "hf":
        from rollout.hf_engine import HfEngine

        return HfEngine(model_path, CONFIG, stop_token_ids=[STOP_ID], device="cpu")
    from rollout.vllm_engine import VllmEngine, engine_environment

    if "vllm" not in sys.modules:
        os.environ.update(engine_environment("vllm", "cpu"))
    return VllmEngine(model_path, CONFIG, stop_token_ids=[STOP_ID], device="cpu", in_process=kind == "vllm")


def tiny_model(seed: int, *, is_tied: bool) -> Qwen2ForCausalLM:
    """Two layers, random weights large enough that its distributions are far from uniform. vLLM on a CPU wants heads of 32."""
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=is_tied,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero otherwise, and then nobody would notice when it is not loaded
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def model_folder(folder: Path, *, is_tied: bool) -> str:
    """A model as an engine is started with: its weights are not those of any snapshot in the tests."""
    tiny_model(seed=99, is_tied=is_tied).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def forward_logprobs(
    model: Qwen2ForCausalLM, prompt_ids: Sequence[int], token_ids: Sequence[int], *, temperature: float
) -> list[float]:
    """log softmax(logits / temperature) of each completion token, by one forward pass without a cache."""
    ids = torch.tensor([[*prompt_ids, *token_ids]])
    logits = model(ids).logits[0, len(prompt_ids) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()


class EngineBench:
    """An engine, and the weights of models that it can be given as version after version."""

    def __init__(self, engine: Engine, *, is_tied: bool) -> None:
        self.engine = engine
        self.is_tied = is_tied
        self.version = 0

    def weights(self, seed: int) -> dict[str, Tensor]:
        return {name: weight.detach() for name, weight in tiny_model(seed, is_tied=self.is_tied).named_parameters()}

    async def load_file(self, seed: int, folder: Path) -> None:
        self.version += 1
        snapshot = write_snapshot(self.weights(seed), version=self.version, folder=folder)
        await self.engine.load(snapshot)
        discard(snapshot)

    async def check(self, seed: int) -> None:
        """The engine samples with just the weights of this model, and calls them by the last version."""
        model = tiny_model(seed, is_tied=self.is_tied)
        for generation in await self.engine.generate(PROMPT, Sampling(max_tokens=24), n=8, seed=10):
            assert {span.version for span in generation.version_spans} == {self.version}
            wanted = forward_logprobs(model, PROMPT, generation.token_ids, temperature=1.0)
            assert generation.logprobs == pytest.approx(wanted, abs=CLOSE)
