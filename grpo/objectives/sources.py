"""Where groups can come from, and what to say when an objective does not learn from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from grpo.objectives.base import Objective

# Sampled by the policy; recorded pairs, labels or demonstrations; or, for self-play, samples beside a demonstration.
GroupSource = Literal["samples", "pairs", "labels", "demonstrations", "samples beside a demonstration"]

# What a config sets to get groups of each kind.
SETTINGS: dict[GroupSource, str] = {
    "pairs": "set tasks.chosen and tasks.rejected to record pairs",
    "labels": "set tasks.completion and tasks.label to record labels",
    "demonstrations": "set tasks.completion to record demonstrations",
    "samples beside a demonstration": "set tasks.completion to record a demonstration that stands beside the samples",
}


def wrong_source(objective: Objective, source: GroupSource) -> str | None:
    """Why the objective cannot learn from groups of this source and what to do instead; None when it can."""
    if source in objective.learns_from:
        return None
    recorded = "tasks.chosen and tasks.rejected" if source == "pairs" else "tasks.completion"
    mends = [SETTINGS.get(each, f"leave {recorded} out to sample groups") for each in objective.learns_from if each != source]
    if not source.startswith("samples"):
        mends.append(f'set objective.name = "sft", which learns from {source}')
    given = "groups are sampled" if source == "samples" else f"the tasks give recorded {source}"
    wanted = " or ".join("sampled groups" if each == "samples" else each for each in objective.learns_from)
    mend = ", or ".join(mends)
    return f"{given}, but {objective.name} learns from {wanted}. {mend[0].upper()}{mend[1:]}."
