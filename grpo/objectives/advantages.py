"""From rewards to advantages. Pure functions; over one group, or over a whole step where their names say batch."""

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
    _check_finite(rewards)
    if rewards.max() == rewards.min():
        return torch.zeros_like(rewards)
    return rewards - rewards.mean()


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages of one group: each reward minus the mean of the others, which is G / (G - 1) times `group_centered`. [G] -> [G]

    Source: RLOO, arXiv:2402.14740, section 3.3.
    """
    size = len(rewards)
    return group_centered(rewards) * (size / max(1, size - 1))


def batch_normalized(values: Tensor, counts: Tensor, *, min_variance: float = 1e-8) -> Tensor:
    """Values minus their mean, over their standard deviation, each counted as often as `counts` says. [M], [M] -> [M]

    Equal values become 0, whatever rounding says.
    Source: REINFORCE++, arXiv:2501.03262, equation 10, over the tokens of the whole batch; population std and a least variance of
    1e-8 as in the authors' code (OpenRLHF; the paper gives neither).
    """
    _check_finite(values)
    total = counts.sum()
    if not total or values.max() == values.min():
        return torch.zeros_like(values)
    centered = values - (counts * values).sum() / total
    variance = (counts * centered.square()).sum() / total
    return centered / variance.clamp(min=min_variance).sqrt()


def _check_finite(rewards: Tensor) -> None:
    if not torch.isfinite(rewards).all():
        raise ValueError(f"rewards must be finite numbers, got {rewards.tolist()}.")
