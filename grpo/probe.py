"""The guard for runs in which a mismatch could hide behind old weights: a few prompts, scored on both sides after each sync."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from grpo.batch import Example
from grpo.learner import MismatchTooLarge
from rollout.fleet import Fleet
from rollout.sampling import Sampling, group_seed
from rollout.types import Completion, Snapshot
from rollout.waiting import all_of
from verifiers.types import Task

MAX_TASKS = 8
MAX_TOKENS = 4  # the loop waits for so many of the engine's steps, in a batch that may be full


class Scorer(Protocol):
    """What the probe asks of the learner."""

    async def score(self, examples: Sequence[Example]) -> list[tuple[float, ...]]: ...


class SyncProbe:
    """A few fixed prompts that every worker continues with its new weights, and whose log-probabilities the learner must confirm.

    `limit` is the mean |difference| above which the run stops. Seeds and prompts are the same after every sync, and nothing else
    sees what is sampled here.
    """

    def __init__(self, tasks: Sequence[Task], learner: Scorer, *, sampling: Sampling, limit: float, run_seed: int) -> None:
        self._tasks = tasks[:MAX_TASKS]
        self._learner = learner
        self._sampling = sampling.model_copy(update={"max_tokens": min(MAX_TOKENS, sampling.max_tokens)})
        self._limit = limit
        self._run_seed = run_seed

    async def check(self, fleet: Fleet, snapshot: Snapshot) -> float:
        """The mean |learner - engine| log-probability. Raises MismatchTooLarge when it is too large, or the weights were others."""
        sampled = await all_of(self._sample(fleet, task) for task in self._tasks)
        completions = [completion for group in sampled for completion in group]
        if stale := next((each for each in completions if each.policy_version != snapshot.version), None):
            raise MismatchTooLarge(
                f"after the sync of version {snapshot.version} a worker still samples from version {stale.policy_version}. The "
                "sync did not reach it; its log is in the run folder."
            )
        examples = [Example(each.prompt_ids, each.token_ids, each.behavior_logprobs, 0.0) for each in completions]
        scores = await self._learner.score(examples)
        differences = [
            abs(ours - theirs)
            for example, row in zip(examples, scores, strict=True)
            for ours, theirs in zip(row, example.behavior_logprobs or (), strict=True)
        ]
        mean = math.fsum(differences) / max(1, len(differences))
        if not mean <= self._limit:
            raise MismatchTooLarge(
                f"after the sync of version {snapshot.version} engine and learner differ by {mean:.3g} in mean |log-probability| "
                f"on {len(completions)} fixed prompts, more than learner.max_mismatch = {self._limit:g}. Either the sync did not "
                "reach the engine, or their precisions differ: try engine.dtype and model.dtype float32."
            )
        return mean

    async def _sample(self, fleet: Fleet, task: Task) -> list[Completion]:
        seed = group_seed(self._run_seed, 0, f"probe/{task.id}")
        return await fleet.sample_each(task, sampling=self._sampling, seed=seed)


class ProbedFleet(Fleet):
    """A fleet that is probed after each load, once it has a probe."""

    probe: SyncProbe | None = None
    _mismatch: float | None = None

    async def load(self, snapshot: Snapshot) -> None:
        await super().load(snapshot)
        if self.probe is not None:
            self._mismatch = await self.probe.check(self, snapshot)

    def metrics(self) -> dict[str, float]:
        return super().metrics() | ({} if self._mismatch is None else {"mismatch/probe_abs_mean": self._mismatch})
