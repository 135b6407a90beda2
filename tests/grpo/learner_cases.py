"""A model small enough to train within a test, examples for it, and learners that train it."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch

from grpo.batch import Example, make_batch
from grpo.learner import Learner, LearnerSpec
from grpo.learner_config import LearnerConfig, LoraConfig, ModelConfig
from grpo.objectives import Grpo, Objective
from grpo.objectives.kto import labelled
from grpo.policy import Policy
from grpo.tiny_model import make_tiny_model

MAX_TOKENS = 12
VOCABULARY = range(4, 40)


def sharp_model(folder: Path, *, tied: bool = True, **changes: Any) -> str:
    """The embedded model at 16 x 2, with weights large enough that its distributions are far from uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM

    make_tiny_model(folder, seed=0, hidden_size=16, num_layers=2, max_length=64)
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=tied, **changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return str(folder)


def make_policy(model_path: str, *, rank: int = 0, **options: Any) -> Policy:
    options = {"compute_dtype": torch.float32, "device": "cpu"} | options
    return Policy(model_path, lora=LoraConfig(rank=rank), **options)


def shake_adapters(policy: Policy) -> None:
    """Give the adapters, which begin as zero, something to say."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in policy.trainable.items():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


def random_examples(count: int, *, seed: int = 0, advantages: tuple[float, ...] = (1.0, -0.5, 0.25)) -> list[Example]:
    """Rows of uneven length whose behavior log-probabilities belong to no policy in particular."""
    chance = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(chance.choice(VOCABULARY) for _ in range(chance.randint(low, high)))

    rows = []
    for i in range(count):
        token_ids = ids(1, MAX_TOKENS)
        behavior = tuple(chance.uniform(-5.0, -2.0) for _ in token_ids)
        rows.append(Example(ids(1, 6), token_ids, behavior, advantages[i % len(advantages)]))
    return rows


def random_rows(objective: Objective, count: int, *, seed: int = 0) -> list[Example]:
    """Rows of the form that this objective's `credit` gives."""
    examples = random_examples(count * objective.rows_per_unit, seed=seed)
    if objective.learns_from == ("samples",):
        return examples
    recorded = [dataclasses.replace(example, behavior_logprobs=None, advantage=1.0) for example in examples]
    if objective.name == "kto":
        return [labelled(dataclasses.replace(row, reward=float(i % 3 != 0))) for i, row in enumerate(recorded)]
    if objective.rows_per_unit == 2:
        return [dataclasses.replace(row, advantage=1.0 - 2 * (i % 2)) for i, row in enumerate(recorded)]
    return recorded


def on_policy(policy: Policy, examples: list[Example], *, temperature: float = 1.0) -> list[Example]:
    """The same examples as if this policy had sampled them."""
    with torch.no_grad():
        logprobs = policy.score(make_batch(examples, [0.0] * len(examples)), temperature=temperature).logprobs
    return [
        dataclasses.replace(example, behavior_logprobs=tuple(logprobs[i, : len(example.token_ids)].tolist()))
        for i, example in enumerate(examples)
    ]


def make_learner(model_path: str, *, objective: Objective | None = None, rank: int = 0, **options: Any) -> Learner:
    """`options` are fields of the learner's config, or of its spec."""
    spec_options = {name: options.pop(name) for name in list(options) if name in LearnerSpec.__dataclass_fields__}
    spec: dict[str, Any] = {
        "model_path": model_path,
        "model": ModelConfig(path=model_path, dtype="float32", lora=LoraConfig(rank=rank)),
        "learner": LearnerConfig(**({"learning_rate": 1e-2} | options)),
        "objective": objective or Grpo(),
        "temperature": 1.0,
        "max_tokens": MAX_TOKENS,
        "max_mismatch": None,
        "total_steps": 10,
        "seed": 0,
        "device": "cpu",
        "engine_dtype": "float32",
        "snapshot_folder": "unused",
    }
    return Learner(LearnerSpec(**(spec | spec_options)))


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in learner._policy.model.named_parameters()}


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
