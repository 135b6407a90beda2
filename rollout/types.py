"""The one data type from prompt to learner, the Group, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from verifiers.types import Task, Verdict

FinishReason = Literal["stop", "length"]


class Generation(NamedTuple):
    """What an engine returns for one sampled continuation.

    `logprobs[t]` is the log-probability of `token_ids[t]` under the distribution that was sampled from (after temperature). When
    `finish_reason` is "stop" the last token is the stop token; when it is "length" the token budget ended first.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of a prompt, sampled or recorded.

    `prompt_ids` are the tokens the policy was conditioned on, `token_ids` what followed, the stop token included. Both come from
    where the text was made or sampled and are never tokenized again. `behavior_logprobs`, as long as `token_ids`, is None when the
    completion was recorded instead of sampled; `policy_version` and `seed` are then 0.
    """

    index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    behavior_logprobs: tuple[float, ...] | None = None
    policy_version: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """A Task with its completions and their verdicts: `verdicts[i]` judges `completions[i]`."""

    task: Task
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]

    def __post_init__(self) -> None:
        assert len(self.completions) == len(self.verdicts), "a group has one verdict for each completion"

    @property
    def scored_rewards(self) -> tuple[float, ...]:
        """The rewards of the scored completions, in order."""
        return tuple(verdict.reward for verdict in self.verdicts if verdict.reward is not None)

    @property
    def is_flat(self) -> bool:
        """Whether all scored rewards are equal, decided on the rewards themselves; true when fewer than two are scored."""
        return len(set(self.scored_rewards)) < 2

    @property
    def num_correct(self) -> int:
        return sum(verdict.is_correct for verdict in self.verdicts)

    @property
    def policy_version(self) -> int:
        """The oldest version that sampled a completion of this group."""
        return min(completion.policy_version for completion in self.completions)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Published weights: a safetensors file in Hugging Face names, already in the dtype and merged form the engine loads.

    `fingerprint` is the xxh3-128 of the file's bytes: an engine checks it before it loads a single tensor.
    """

    version: int
    path: str
    fingerprint: str
