"""From the rewards of one group to its advantages. Pure functions over one group; [G] -> [G]."""

from __future__ import annotations

import torch
from torch import Tensor


def group_normalized(rewards: Tensor, *, epsilon: float = 1e-6) -> Tensor:
    """Advantages of one group: rewards minus their mean, over their standard deviation. [G] -> [G]

    A flat group (all rewards equal) has advantage 0 throughout, so it teaches nothing; so has a group of one.
    Source: DeepSeekMath, arXiv:2402.03300, section 4.1.2; population std, epsilon 1e-6 (the paper gives neither).
    """
    return group_centered(rewards) / (rewards.std(correction=0) + epsilon)


def group_centered(rewards: Tensor) -> Tensor:
    """Advantages of one group: rewards minus their mean. [G] -> [G]

    A flat group has advantage 0 throughout, decided on the rewards themselves: subtracting a rounded mean from 64 rewards of 0.3
    leaves noise that a division by its own standard deviation would turn into advantages near 1. Raises ValueError for a reward
    that is not finite.
    Source: Dr. GRPO, arXiv:2503.20783, section 3.2.
    """
    if not torch.isfinite(rewards).all():
        raise ValueError(f"rewards must be finite numbers, got {rewards.tolist()}.")
    if rewards.max() == rewards.min():
        return torch.zeros_like(rewards)
    return rewards - rewards.mean()
