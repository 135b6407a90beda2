"""The quickstart's worked examples: sums of two two-digit numbers, added digit by digit as one learns it at school."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from rollout.rows import reasoning_gym_rows


def worked_sums(count: int, **options: Any) -> Iterator[dict[str, Any]]:
    """The first `count` rows of reasoning_gym's basic_arithmetic with these options, each with a worked `demonstration`."""
    for _, row in islice(reasoning_gym_rows("basic_arithmetic", options), count):
        yield dict(row) | {"demonstration": worked_sum(row["metadata"]["expression"])}


def worked_sum(expression: str) -> str:
    r"""`"47 + 25"` -> `"<think>7+5=12, 4+2+1=7</think>\\boxed{72}"`."""
    first, second = (int(term) for term in expression.split("+"))
    ones = first % 10 + second % 10
    carry = ones // 10
    tens = first // 10 + second // 10 + carry
    return (
        f"<think>{first % 10}+{second % 10}={ones}, {first // 10}+{second // 10}+{carry}={tens}</think>\\boxed{{{first + second}}}"
    )
