"""Intervals for what a run logged as means, by the estimators of pass_at_k.py, and the k that are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grpo.evaluation.pass_at_k import Estimate, interval


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


def shown_ks(group_size: int) -> tuple[int, ...]:
    """The k that a report shows for groups of this size: 1, then powers of 4, and the size itself."""
    powers = [4**i for i in range(16) if 4**i < group_size]
    return (*powers, group_size) if group_size > 0 else ()


def ends(estimate: Estimate) -> Interval:
    """Of an estimate the interval alone."""
    return Interval(estimate.low, estimate.high)


def accuracy_interval(accuracy: float, num_tasks: int) -> Interval:
    """Of an accuracy over tasks with one completion each: Wilson's score interval."""
    num_correct = round(accuracy * num_tasks)
    low, high = ends(interval([1.0] * num_correct + [0.0] * (num_tasks - num_correct)))
    return Interval(min(low, accuracy), max(high, accuracy))  # some tasks may be unscored: then this is no whole number of them


def reward_interval(totals: Sequence[float], counts: Sequence[int]) -> Interval | None:
    """Of the mean reward of a step, from each prompt's sum and its number of scored completions; None when nothing was scored."""
    means = [total / count for total, count in zip(totals, counts, strict=True) if count]
    return ends(interval(means, most=sum(counts))) if means else None
