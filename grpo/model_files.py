"""A policy's weights in files: read from a checkpoint, written in Hugging Face form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from grpo.learner_state import check_same_weights, read_tensors, weight_tensors, written_shapes
from grpo.policy import Policy, load_model
from rollout.weights import model_weights
from sandbox.errors import SystemFault


def restore_weights(policy: Policy, folder: Path) -> None:
    """Give the policy the weights in a folder of a checkpoint. Raises UserError when they are those of another model."""
    check_same_weights(written_shapes(folder), policy.trainable, where=folder)
    read_tensors(weight_tensors(policy.trainable), folder, policy.ranks)


def write_model(policy: Policy, model_path: str, folder: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """The policy in Hugging Face form, adapters merged, with its tokenizer. All ranks must call; the first one writes."""
    from rollout.prompting import load_tokenizer

    weights = dict(policy.engine_weights(torch.float32))
    if not policy.ranks.is_first:
        return
    model: Any = load_model(model_path)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if odd := sorted({*missing, *unexpected} - model_weights(model).aliases.keys()):
        raise SystemFault(f"{folder}: the policy and {model_path} differ in {len(odd)} weights, first {odd[0]}.")
    model.to(dtype).save_pretrained(folder)
    load_tokenizer(model_path).save_pretrained(folder)
