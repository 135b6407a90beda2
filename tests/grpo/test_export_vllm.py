"""An exported folder behind vLLM's own server: as a model, and as an adapter, it continues a prompt as the policy does."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import make_trained

from grpo.export import export
from grpo.tiny_model import make_tiny_model
from rollout.prompting import load_tokenizer
from tests.vllm_server import vllm_server

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(400)]
PROMPT = "3 + 4 ="


@pytest.fixture(scope="module")
def served_model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Wide enough for vLLM's kernels, with weights large enough that it does not say one thing whatever is asked."""
    from transformers import AutoModelForCausalLM

    folder = make_tiny_model(tmp_path_factory.mktemp("served") / "model", seed=0, max_length=64)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return str(folder)


def greedy(learner: Any, model_path: str) -> list[int]:
    ids = load_tokenizer(model_path)(PROMPT, return_tensors="pt")["input_ids"]
    generated = learner._policy.model.generate(ids, max_new_tokens=12, do_sample=False)
    return generated[0, ids.shape[1] :].tolist()


def asked(url: str, path: str, **request: Any) -> dict[str, Any]:
    body = json.dumps({"max_tokens": 12, "temperature": 0, "return_token_ids": True, **request}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{path}", body, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)["choices"][0]


async def test_the_server_continues_a_prompt_and_a_chat_as_the_policy_does(served_model_path: str, tmp_path: Path):
    run, learner = await make_trained(tmp_path, served_model_path)
    expected = greedy(learner, served_model_path)
    with vllm_server(export(run).folder) as url:
        assert asked(url, "completions", model="tiny", prompt=PROMPT)["token_ids"] == expected
        chat = [{"role": "user", "content": PROMPT}]
        assert asked(url, "chat/completions", model="tiny", messages=chat)["token_ids"] == expected


async def test_the_server_takes_the_adapters_on_their_base(served_model_path: str, tmp_path: Path):
    run, learner = await make_trained(tmp_path, served_model_path, rank=4)
    exported = export(run, form="adapter")
    expected = greedy(learner, served_model_path)
    options = ("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"policy={exported.folder}")
    with vllm_server(Path(exported.base), *options) as url:
        assert asked(url, "completions", model="policy", prompt=PROMPT)["token_ids"] == expected
        assert asked(url, "completions", model="tiny", prompt=PROMPT)["token_ids"] != expected
