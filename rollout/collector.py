"""The live source of groups: keeps rollouts going, drops what is not worth learning from, and hands out what is.

Asynchrony lives here and nowhere else: with `max_lag = 0` nothing is in flight between two calls of `take`; with `max_lag = k`
rollouts for the next k updates go on while the learner works.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rollout.errors import NoSignal, TooManyUnscored
from rollout.judged import Judged
from rollout.tasks import TaskStream
from rollout.types import Group
from rollout.waiting import all_of
from verifiers.types import Task

logger = logging.getLogger(__name__)

Rollout = Callable[[Task], Coroutine[Any, Any, Group]]
Keep = Callable[[Group], bool]


class Source(Protocol):
    """Where the loop takes groups from: a Collector for live ones, RecordedGroups for recorded ones."""

    async def take(self, num_groups: int, *, keep: Keep, version: int) -> list[Group]:
        """Groups for the update from policy `version` to `version + 1`."""
        ...

    def metrics(self) -> dict[str, float]:
        """What happened in the last `take`."""
        ...

    def finished(self) -> dict[int, Judged]:
        """Groups that are finished and were not taken yet, by their position in the task stream."""
        ...

    async def close(self) -> None: ...


@dataclass
class _Tally:
    """What one `take` saw."""

    sampled: int = 0
    flat: Counter[str] = field(default_factory=Counter)
    completions: int = 0
    unscored: int = 0
    first_cause: str = ""
    dropped: Counter[str] = field(default_factory=Counter)
    lags: list[int] = field(default_factory=list)
    spans: list[int] = field(default_factory=list)  # of each completion that was taken


class Collector:
    """Groups sampled by the policy published last (one update in `publish_every` is), or up to `max_lag` updates before it.

    A group is dropped, and counted, when it is older than that, when fewer than two of its completions could be scored (one, if it
    has only one), or when `keep` refuses it. `take` gives up with NoSignal before it has sampled more than `max_tries` times the
    groups wanted, and with TooManyUnscored as soon as a step's worth of groups has been seen and more than `max_unscored` of their
    completions have no reward.

    In lock step with `over_sample` above 1 that many times the groups missing are begun, those that finish first make up the step,
    and the others are abandoned: their tasks come first in the next step. What a step is made of then depends on who is quick.

    `kept` are groups that were finished before the run was resumed: they are not sampled again.

    A position of the task stream is finished when its group leaves for the loop, or is dropped. The loop reads the stream's cursor
    after it has learnt, so a checkpoint counts as unfinished all that is under way, and all that is done but was not taken yet.
    """

    def __init__(
        self,
        rollout: Rollout,
        tasks: TaskStream,
        *,
        max_lag: int = 0,
        over_sample: float = 1.0,
        publish_every: int = 1,
        max_tries: int = 8,
        max_unscored: float = 0.1,
        kept: Mapping[int, Judged] | None = None,
    ) -> None:
        self._rollout = rollout
        self._tasks = tasks
        self._max_lag = max_lag
        self._over_sample = over_sample
        self._max_age = max_lag + publish_every - 1
        self._max_tries = max_tries
        self._max_unscored = max_unscored
        self._kept = dict(kept or {})
        self._in_flight: dict[int, asyncio.Task[Group]] = {}
        self._landed = asyncio.Event()
        self._metrics: dict[str, float] = {}

    async def take(self, num_groups: int, *, keep: Keep, version: int) -> list[Group]:
        """A failure of one rollout is raised as it is, as soon as it is seen; all others are cancelled and have ended by then."""
        try:
            return await self._take(num_groups, keep, version)
        except BaseException:
            await self.close()
            raise

    async def _take(self, num_groups: int, keep: Keep, version: int) -> list[Group]:
        started = time.perf_counter()
        tally = _Tally()
        taken: list[Group] = []
        while len(taken) < num_groups:
            missing = num_groups - len(taken)
            if tally.sampled + missing > self._max_tries * num_groups:
                raise NoSignal(_no_signal(version, tally, len(taken), num_groups))
            # In lock step exactly what is missing is sampled, and groups are judged in task order: which groups make up the step
            # then depends on nothing but the seed. Running ahead, k more steps are kept in flight.
            self._launch(math.ceil(missing * self._over_sample) + self._max_lag * num_groups)
            for position, group in await self._finished(missing):
                self._tasks.finish(position)
                if self._worth_taking(group, tally, keep, version):
                    taken.append(group)
            if tally.sampled >= num_groups:
                self._check_scored(tally, version)
        if self._max_lag == 0:
            tally.dropped["abandoned"] = len(self._in_flight)
            await self._abandon()
        self._launch(self._max_lag * num_groups)
        self._metrics = _metrics(tally, time.perf_counter() - started, len(self._in_flight))
        return taken

    def _launch(self, wanted: int) -> None:
        while len(self._in_flight) < wanted:
            position, task = self._tasks.next()
            kept = self._kept.pop(position, None)
            running = asyncio.create_task(self._rollout(task) if kept is None else _at_once(kept.of(task)))
            running.add_done_callback(lambda _: self._landed.set())
            self._in_flight[position] = running

    async def _finished(self, most: int) -> list[tuple[int, Group]]:
        """In lock step all that is in flight, in task order. Otherwise up to `most` of what is done, launched first first."""
        if self._max_lag == 0 and self._over_sample == 1:
            await all_of(self._in_flight.values())
        while not any(running.done() for running in self._in_flight.values()):
            self._landed.clear()
            await self._landed.wait()
        done = [(position, running.result()) for position, running in self._in_flight.items() if running.done()]
        for position, _ in done[:most]:
            del self._in_flight[position]
        return done[:most]

    def _worth_taking(self, group: Group, tally: _Tally, keep: Keep, version: int) -> bool:
        tally.sampled += 1
        tally.completions += len(group.completions)
        causes = [verdict.cause for verdict in group.verdicts if verdict.cause is not None]
        tally.unscored += len(causes)
        tally.first_cause = tally.first_cause or (causes[0] if causes else "")
        if group.is_flat and group.scored_rewards:
            tally.flat["right" if group.num_correct else "wrong"] += 1
        lag = version - group.policy_version
        if lag > self._max_age:
            tally.dropped["stale"] += 1
            return False
        if len(group.scored_rewards) < min(2, len(group.completions)):
            tally.dropped["unscored"] += 1
            return False
        if not keep(group):
            tally.dropped["refused"] += 1
            return False
        tally.lags.append(lag)
        tally.spans += [len(completion.version_spans) for completion in group.completions if completion.version_spans]
        return True

    def _check_scored(self, tally: _Tally, version: int) -> None:
        if tally.unscored > self._max_unscored * tally.completions:
            raise TooManyUnscored(
                f"step {version + 1}: {tally.unscored} of {tally.completions} completions could not be scored, more than "
                f"max_unscored = {self._max_unscored:g} allows. The first cause: {tally.first_cause}"
            )

    def metrics(self) -> dict[str, float]:
        return self._metrics

    def finished(self) -> dict[int, Judged]:
        return self._kept | {
            position: Judged(running.result().completions, running.result().verdicts)
            for position, running in self._in_flight.items()
            if running.done() and not running.cancelled() and running.exception() is None
        }

    async def close(self) -> None:
        """Abandon what is in flight; its tasks stay unfinished and are sampled again after a resume."""
        await self._abandon()

    async def _abandon(self) -> None:
        abandoned, self._in_flight = self._in_flight, {}
        for position, running in abandoned.items():
            self._tasks.put_back(position)
            running.cancel()
        await asyncio.gather(*abandoned.values(), return_exceptions=True)


async def _at_once(group: Group) -> Group:
    return group


def _metrics(tally: _Tally, seconds: float, in_flight: int) -> dict[str, float]:
    return {
        "time/rollout_s": seconds,
        "collector/sampled_groups": tally.sampled,
        "collector/stale_groups": tally.dropped["stale"],
        "collector/unscored_groups": tally.dropped["unscored"],
        "collector/refused_groups": tally.dropped["refused"],
        "collector/abandoned_groups": tally.dropped["abandoned"],
        "collector/in_flight_groups": in_flight,
        "collector/lag_mean": sum(tally.lags) / max(1, len(tally.lags)),
        "collector/lag_max": max(tally.lags, default=0),
        "collector/crossed_fraction": sum(spans > 1 for spans in tally.spans) / max(1, len(tally.spans)),
        "collector/spans_mean": sum(tally.spans) / max(1, len(tally.spans)),
        "verify/unscored_fraction": tally.unscored / max(1, tally.completions),
    }


def _no_signal(version: int, tally: _Tally, taken: int, wanted: int) -> str:
    dropped = ", ".join(f"{count} {cause}" for cause, count in tally.dropped.most_common())
    if tally.dropped["stale"] > tally.sampled // 2:
        advice = "Their weights were older than max_lag allows: raise it, or find out why new weights do not reach the workers."
    elif tally.flat["right"] > tally.flat["wrong"]:
        advice = "Use harder tasks, or raise max_tries."
    else:
        advice = "Use easier tasks, or raise max_tries."
    return (
        f"step {version + 1}: {tally.sampled} groups sampled, {taken} of {wanted} wanted could be taken ({tally.flat['wrong']} "
        f"all wrong, {tally.flat['right']} all right; dropped: {dropped}). {advice}"
    )
