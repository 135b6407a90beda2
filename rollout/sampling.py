"""How completions are sampled. top_p, top_k and min_p are left out on purpose: the learner would have to apply the same filter."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Sampling(BaseModel):
    """What an engine is told about one request, beside the prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(
        default=1.0,
        ge=0.0,
        description="Divides the logits, in the engine and in the learner alike. 0 is greedy (evaluation only).",
    )
    tokens_per_turn: int | None = Field(
        default=None,
        ge=1,
        description="Tokens after which a long completion is put back and goes on in a turn of its own, where weights may change "
        '(publish = "wait") and others may run first. None: completions are sampled in one turn.',
    )
    max_tokens: int = Field(default=512, ge=1, description="Completion budget in tokens; what reaches it has finish reason length.")

    @model_validator(mode="before")
    @classmethod
    def _no_stop_strings(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.keys() & {"stop", "stop_strings", "stop_token_ids"}:
            raise ValueError(
                "engines see token ids alone, so no text can stop them. Completions end at the end-of-sequence ids of the "
                "tokenizer and of the model's generation_config.json: add an id to eos_token_id there."
            )
        return values

    @property
    def is_one_turn(self) -> bool:
        return self.tokens_per_turn is None or self.tokens_per_turn >= self.max_tokens

    def turn(self, num_left: int) -> Sampling:
        """The setting of the next turn of a completion that may have `num_left` more tokens."""
        return self.model_copy(update={"max_tokens": min(num_left, self.tokens_per_turn or num_left), "tokens_per_turn": None})


def group_seed(run_seed: int, policy_version: int, task_id: str) -> int:
    """The seed of completion 0 of a group; completion i uses this plus i.

    A stable hash, so that the number of workers and the order of arrival change nothing. 62 bits: groups are spaced far beyond any
    group size, and adding an index cannot overflow a signed 64-bit integer.
    """
    return _hash(f"{run_seed}\x00{policy_version}\x00{task_id}")


def turn_seed(seed: int, turn: int) -> int:
    """The seed of one turn of a completion whose own is `seed`; the first turn has that one, so a single turn changes nothing."""
    return seed if turn == 0 else _hash(f"{seed}\x00turn {turn}")


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 2
