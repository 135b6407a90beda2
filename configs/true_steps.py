"""An example of a plugin: a rule of one's own, used by quickstart_plugin.toml.

It rewards a thought whose written sums are true, whatever the answer: `7+5=12, 4+2+1=7` is, `7+5=12, 4+2+0=7` is half of it.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

from verifiers.audit_samples import sample
from verifiers.registry import rule
from verifiers.types import Score, Task, correct, partial, wrong

SUM = re.compile(r"(?<![\d+])(\d{1,9}(?:\+\d{1,9})+)=(\d{1,9})(?!\d)")
MAX_STEPS = 100


@rule("true_steps")
def true_steps(
    task: Task,
    text: str,
    *,
    at_least: Annotated[int, Field(ge=1, description="A thought with fewer sums than this gets nothing.")] = 1,
) -> Score:
    """The share of the sums in the thought that are true."""
    thought = text.partition("<think>")[2].partition("</think>")[0]
    steps = SUM.findall(thought)[:MAX_STEPS]
    if len(steps) < at_least:
        return wrong(f"{len(steps)} sums in the thought, at least {at_least} are wanted")
    untrue = [f"{terms}={result}" for terms, result in steps if sum(map(int, terms.split("+"))) != int(result)]
    if not untrue:
        return correct(f"all {len(steps)} sums are true")
    return partial(1 - len(untrue) / len(steps), f"not true: {', '.join(untrue[:3])}")


sample(
    "true_steps",
    right=["<think>7+5=12, 4+2+1=7</think>\\boxed{72}", "<think>1+1=2</think>"],
    wrong=["<think>7+5=13</think>", "<think>7+5=12, 4+2+0=7</think>", "7+5=12", "<think>none</think>"],
)
sample("true_steps", options={"at_least": 2}, wrong=["<think>1+1=2</think>"])
