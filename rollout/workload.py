"""How much each worker still has to compute, in tokens, as far as one can tell before they are sampled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rollout.sampling import Sampling
from rollout.types import Completion
from verifiers.types import Task

CHARACTERS_PER_TOKEN = 4
MEMORY = 0.99


class Workload:
    """Outstanding tokens of `num_workers` workers.

    A prompt counts once for its group, since it is computed once. A completion counts as long as completions have been of late, as
    a share of their budget: groups of a long and of a short budget, or of few and of many completions, weigh what they cost.
    """

    def __init__(self, num_workers: int) -> None:
        self._tokens = [0.0] * num_workers
        self._length_share = 1.0
        self._has_seen_any = False

    def least(self, indices: Iterable[int]) -> int:
        """The worker with the fewest outstanding tokens, of those given; the first of several."""
        return min(indices, key=lambda index: (self._tokens[index], index))

    @contextmanager
    def group(self, index: int, task: Task, sampling: Sampling, *, n: int) -> Iterator[GroupLoad]:
        """The worker has this group to sample, until the context ends."""
        load = GroupLoad(self, index, n, each=self._length_share * sampling.max_tokens, max_tokens=sampling.max_tokens)
        self._tokens[index] += (prompt := _prompt_tokens(task)) + n * load.each
        try:
            yield load
        finally:
            self._tokens[index] -= prompt + load.num_left * load.each

    def learn(self, completions: Sequence[Completion], *, max_tokens: int) -> None:
        """Completions of this budget have ended."""
        for completion in completions:
            share = completion.num_completion_tokens / max_tokens
            self._length_share = MEMORY * self._length_share + (1 - MEMORY) * share if self._has_seen_any else share
            self._has_seen_any = True

    def reduce(self, index: int, tokens: float) -> None:
        self._tokens[index] -= tokens

    @property
    def tokens(self) -> tuple[float, ...]:
        return tuple(self._tokens)


class GroupLoad:
    """What is left of one group on one worker."""

    def __init__(self, workload: Workload, index: int, num_left: int, *, each: float, max_tokens: int) -> None:
        self._workload = workload
        self._index = index
        self._max_tokens = max_tokens
        self.num_left = num_left
        self.each = each

    def ended(self, completions: Sequence[Completion]) -> None:
        """These completions of the group need no more work."""
        self.num_left -= len(completions)
        self._workload.reduce(self._index, len(completions) * self.each)
        self._workload.learn(completions, max_tokens=self._max_tokens)


def _prompt_tokens(task: Task) -> int:
    texts = [task.prompt] if isinstance(task.prompt, str) else [turn.content for turn in task.prompt]
    return sum(map(len, texts)) // CHARACTERS_PER_TOKEN
