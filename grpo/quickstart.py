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
    """The rows of reasoning_gym's basic_arithmetic with these options, each with a `demonstration` and whether it `is_right`.

    `forgets_carry` is the share of demonstrations in which a carry, where there is one, is not carried.
    """
    forgetful = random.Random(seed)
    for _, row in reasoning_gym_rows("basic_arithmetic", {"seed": seed} | options):
        expression = row["metadata"]["expression"]
        demonstration = worked_sum(expression, carries=forgetful.random() >= forgets_carry)
        yield dict(row) | {"demonstration": demonstration, "is_right": demonstration == worked_sum(expression)}


def compared_sums(*, seed: int = 0, **options: Any) -> Iterator[dict[str, Any]]:
    """Those of the same rows that have something to carry, worked out twice: it is carried in `chosen`, forgotten in `rejected`."""
    for _, row in reasoning_gym_rows("basic_arithmetic", {"seed": seed} | options):
        chosen, rejected = (worked_sum(row["metadata"]["expression"], carries=carries) for carries in (True, False))
        if chosen != rejected:
            yield dict(row) | {"chosen": chosen, "rejected": rejected}


def worked_sum(expression: str, *, carries: bool = True) -> str:
    r"""`"47 + 25"` -> `"<think>7+5=12, 4+2+1=7</think>\\boxed{72}"`; without carrying, `4+2+0=6` and 62."""
    first, second = (int(term) for term in expression.split("+"))
    ones = first % 10 + second % 10
    carry = ones // 10 if carries else 0
    tens = first // 10 + second // 10 + carry
    steps = f"{first % 10}+{second % 10}={ones}, {first // 10}+{second // 10}+{carry}={tens}"
    return f"<think>{steps}</think>\\boxed{{{10 * tens + ones % 10}}}"
