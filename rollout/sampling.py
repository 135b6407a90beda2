"""How completions are sampled. top_p, top_k and min_p are left out on purpose: the learner would have to apply the same filter."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field


class Sampling(BaseModel):
    """What an engine is told about one request, beside the prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(
        default=1.0,
        ge=0.0,
        description="Divides the logits, in the engine and in the learner alike. 0 is greedy (evaluation only).",
    )
    max_tokens: int = Field(default=512, ge=1, description="Completion budget in tokens; what reaches it has finish reason length.")


def group_seed(run_seed: int, policy_version: int, task_id: str) -> int:
    """The seed of completion 0 of a group; completion i uses this plus i.

    A stable hash, so that the number of workers and the order of arrival change nothing. 62 bits: groups are spaced far beyond any
    group size, and adding an index cannot overflow a signed 64-bit integer.
    """
    key = f"{run_seed}\x00{policy_version}\x00{task_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 2
