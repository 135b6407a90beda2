"""The optimizer and its learning rate over the steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from grpo.learner_config import LearnerConfig, check_optimizer
from grpo.policy import Policy
from grpo.ranks import own_share
from sandbox.errors import UserError


def make_optimizer(policy: Policy, config: LearnerConfig) -> torch.optim.Optimizer:
    """AdamW with decay on matrices only; gains and biases are left alone. torch's own, fused, or torchao's of 8 bits."""
    trainable = list(policy.trainable.values())
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw_8bit":
        return make_8bit(policy, groups, config)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def make_8bit(policy: Policy, groups: list[dict[str, Any]], config: LearnerConfig) -> torch.optim.Optimizer:
    """Raises UserError where torchao is missing, and for a policy of which nothing would be kept in 8 bits."""
    check_optimizer(config)
    from grpo.adamw_8bit import BLOCK_SIZE, SMALLEST, BlockedAdamW

    embeddings = policy.model.get_input_embeddings().parameters()
    optimizer = BlockedAdamW(groups, in_float32=embeddings, lr=config.learning_rate, betas=config.betas)
    if not optimizer.num_quantized:
        raise UserError(
            f'learner.optimizer is "adamw_8bit", but of this policy\'s {len(policy.trainable)} trained weights none would have '
            f"moments of 8 bits: no matrix beside the embedding has {SMALLEST:,} values or more, in rows of a multiple of "
            f"{BLOCK_SIZE}. Type: --set learner.optimizer=adamw"
        )
    return optimizer


def empty_state(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """What AdamW knows of a weight before its first step, in the form that a checkpoint fills."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return optimizer.empty_state(weight)  # type: ignore[attr-defined]
    moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
    # A count of steps is one number for a whole weight; the rest is shaped, and shared out, as the weight is.
    return {"step": torch.zeros((), device=own_share(weight).device)} | moments


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """For its next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # a compiled step reads it there: another tensor, or a number, would compile it again
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def rate_factor(step: int, config: LearnerConfig, total_steps: int) -> float:
    """What the peak learning rate is multiplied with at optimizer step `step` (0 is the first)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    if config.schedule == "linear":
        return 1.0 - progress
    if config.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
