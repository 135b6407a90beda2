"""A run whose judge is its own policy: questions reach the engine from the verifiers' process, and its noise is never a zero."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from grpo.tiny_model import make_tiny_model
from tests.integration.runs import finish, start, wait_until_gone

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(200)]

CONFIG = """
steps = 2
groups_per_step = 2
group_size = 2
[model]
path = "model"
[tasks]
source = "tasks.jsonl"
held_out = 4
rewards = "liked"
[sampling]
max_tokens = 8
[engine]
kind = "hf"
max_model_len = 4096
[evaluation]
every = 0
num_tasks = 2
[rewards.liked.judge.options]
base_url = "engine"
model = "policy"
principles = ["Be brief."]
max_tokens = 16
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Path]:
    make_tiny_model(tmp_path / "model", seed=0, max_length=4096)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps({"question": f"{n}?", "answer": "no"}) for n in range(20)))
    (tmp_path / "tiny.toml").write_text(CONFIG)
    yield tmp_path
    wait_until_gone(tmp_path)


def test_the_policy_is_asked_and_what_it_stammers_leaves_completions_unscored(workplace: Path) -> None:
    process = start(workplace, "train", "tiny.toml")
    output = finish(process)
    assert process.returncode != 0
    assert "none of the 2 held-out completions could be scored" in output, output
    assert "the judge policy gave no verdict: it was cut off at max_tokens, twice. It ended with " in output, output
