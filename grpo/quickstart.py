"""The quickstart's worked examples: sums added digit by digit, by a pupil who forgets to carry more often than not.

Supervised fine-tuning copies the pupil, mistakes included. What GRPO adds can then be seen: from checked answers alone the model
learns to carry always, which no imitation of these examples could teach it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from rollout.rows import reasoning_gym_rows


def worked_sums(*, forgets_carry: float, seed: int = 0, **options: Any) -> Iterator[dict[str, Any]]:
    """The rows of reasoning_gym's basic_arithmetic with these options, each with a `demonstration`.

    `forgets_carry` is the share of demonstrations in which a carry, where there is one, is not carried.
    """
    forgetful = random.Random(seed)
    for _, row in reasoning_gym_rows("basic_arithmetic", {"seed": seed} | options):
        yield dict(row) | {"demonstration": worked_sum(row["metadata"]["expression"], carries=forgetful.random() >= forgets_carry)}


def worked_sum(expression: str, *, carries: bool = True) -> str:
    r"""`"47 + 25"` -> `"<think>7+5=12, 4+2+1=7</think>\\boxed{72}"`; without carrying, `4+2+0=6` and 62."""
    first, second = (int(term) for term in expression.split("+"))
    ones = first % 10 + second % 10
    carry = ones // 10 if carries else 0
    tens = first // 10 + second // 10 + carry
    steps = f"{first % 10}+{second % 10}={ones}, {first // 10}+{second // 10}+{carry}={tens}"
    return f"<think>{steps}</think>\\boxed{{{10 * tens + ones % 10}}}"
