"""The one data type from prompt to learner, the Group, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rollout.packed import Packed, PackedRow
from verifiers.types import Task, Verdict

FinishReason = Literal["stop", "length"]


class VersionSpan(NamedTuple):
    """So many tokens, one after the other, were sampled by the weights of one version."""

    version: int
    num_tokens: int


class Generation(NamedTuple):
    """What an engine returns for one sampled continuation.

    `logprobs[t]` is the log-probability of `token_ids[t]` under the distribution that was sampled from (after temperature). When
    `finish_reason` is "stop" the last token is the stop token; when it is "length" the token budget ended first. `version_spans`
    say which weights sampled which tokens, in order.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    version_spans: tuple[VersionSpan, ...]


@dataclass(frozen=True, slots=True)
class Completion(PackedRow):
    """One continuation of a prompt, sampled or recorded.

    `prompt_ids` are the tokens the policy was conditioned on, `token_ids` what followed, the stop token included. Both come from
    where the text was made or sampled and are never tokenized again. `behavior_logprobs`, as long as `token_ids`, is None when the
    completion was recorded instead of sampled; `version_spans` is then empty, and `seed` 0. One that has come from another process
    keeps both packed until they are read.
    """

    index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    behavior_logprobs: tuple[float, ...] | None = None
    version_spans: tuple[VersionSpan, ...] = ()
    seed: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # As bytes, and with no state by name. The prompt stays as it is, since those of a group share it.
        spans = tuple(map(tuple, self.version_spans))
        return _unpickled, (self.index, self.prompt_ids, *self.packed, self.text, self.finish_reason, spans, self.seed)

    @property
    def policy_version(self) -> int:
        """The oldest version that sampled a token of it; 0 when it was recorded."""
        return min((span.version for span in self.version_spans), default=0)


def _unpickled(
    index: int,
    prompt_ids: tuple[int, ...],
    token_ids: bytes,
    logprobs: bytes | None,
    text: str,
    finish_reason: FinishReason,
    spans: tuple[tuple[int, int], ...],
    seed: int,
) -> Completion:
    row = Completion(index, prompt_ids, (), text, finish_reason, None, tuple(VersionSpan(*span) for span in spans), seed)
    return row.holding(Packed(token_ids, logprobs))


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
        """The oldest version that sampled a token of this group; 0 when all of it was recorded."""
        return min((each.policy_version for each in self.completions if each.version_spans), default=0)


class WeightSpec(NamedTuple):
    """One weight without its values: its Hugging Face name, its dtype as torch names it ("bfloat16"), its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


Layout = tuple[WeightSpec, ...]
"""Weights in the order in which they are written or sent: the layers one after another, each whole."""


@dataclass(frozen=True, slots=True)
class BroadcastSeat:
    """Where an engine takes part in a broadcast: among `world_size` processes, the learner first, that meet at host and port.

    The processes of one engine have the ranks from `first_rank` on. `generation` names the group: one that broke is never used
    again. `backend` is what carries the bytes: gloo or nccl. `bucket_bytes` is how many come at a time, unless one layer has more.
    """

    backend: str
    host: str
    port: int
    generation: str
    world_size: int
    bucket_bytes: int
    first_rank: int = 0


@dataclass(frozen=True, slots=True)
class Loan:
    """Memory of the learner that one engine may open: a handle for each bucket of the snapshot's layout, cut at `bucket_bytes`.

    `device` is where the memory is: "cpu" or "cuda".
    """

    device: str
    bucket_bytes: int
    handles: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Published weights in Hugging Face names, already in the dtype and merged form the engine loads.

    Either `path` is a safetensors file, and `fingerprint` the xxh3-128 of its bytes: an engine checks it before it loads a single
    tensor. Or the learner will send or lend them: then `layout` says what comes in which order, every piece brings its own digest,
    and each engine is told its `seat` in a broadcast, or given its `loan`.
    """

    version: int
    path: str = ""
    fingerprint: str = ""
    layout: Layout = ()
    seat: BroadcastSeat | None = None
    loan: Loan | None = None

    @property
    def is_sent(self) -> bool:
        """Whether the learner sends or lends it, instead of leaving it in a file."""
        return bool(self.layout)
