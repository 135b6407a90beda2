"""The optimizer and its learning rate over the steps."""

from __future__ import annotations

import math

import torch

from grpo.config import LearnerConfig
from grpo.policy import Policy


def make_optimizer(policy: Policy, config: LearnerConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices only; gains and biases are left alone."""
    trainable = list(policy.trainable.values())
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, fused=True)


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
