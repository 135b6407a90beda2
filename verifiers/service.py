"""Applies reward mixes to completions, and is the wall between verifiers and the loop.

A plain class; whoever wants it in another process makes an actor of it. Verifiers keep no state that matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections import Counter, deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic_core import to_json

from sandbox.config import SandboxConfig
from sandbox.pool import open_sandbox
from sandbox.protocol import Sandbox
from sandbox.types import Program
from verifiers.errors import InvalidReference, VerifierError
from verifiers.options import did_you_mean
from verifiers.registry import Verifier, find, load_plugins
from verifiers.reward import RewardMix, built_in_mixes, combine
from verifiers.types import Outcome, Score, Task, Verdict, infra

logger = logging.getLogger(__name__)

MAX_TIMINGS = 100_000
TURNS_PER_SLOT = 4


class Judgeable(Protocol):
    """What the service needs of a completion; `rollout.types.Completion` has it."""

    @property
    def text(self) -> str: ...

    @property
    def token_ids(self) -> Sequence[int]: ...


class Text(NamedTuple):
    """What is judged: verifiers cannot tell two completions apart that agree in both."""

    text: str
    num_tokens: int | None


class VerifierService:
    """Judges the completions of tasks by the mix that each task names.

    `mixes` are added to the built-in ones; a mix of the same name takes the built-in's place. `workers` is how many processes each
    verifier that needs any may keep. All verifiers that run programs share one sandbox, which starts with the first program.
    `deadline_s` bounds one score, after which the completion is unscored; a score that needs the sandbox waits for its turn first.
    Raises VerifierError for an unknown verifier, an option it does not take, or a plugin that cannot be loaded.
    """

    def __init__(
        self,
        mixes: Mapping[str, RewardMix],
        *,
        plugins: Sequence[str] = (),
        workers: int = 2,
        deadline_s: float = 300.0,
        sandbox: SandboxConfig | Sandbox = SandboxConfig(),  # noqa: B008  # frozen
    ) -> None:
        load_plugins(plugins)
        self.mixes = built_in_mixes() | dict(mixes)
        self._deadline_s = deadline_s
        is_config = isinstance(sandbox, SandboxConfig)
        self._sandbox = open_sandbox(sandbox) if is_config else sandbox
        num_slots = (sandbox.slots if is_config else None) or len(os.sched_getaffinity(0))
        self._turns = asyncio.Semaphore(TURNS_PER_SLOT * num_slots)
        self._takes_turns: set[int] = set()
        self._built: dict[tuple[str, bytes], Verifier] = {}
        self._verifiers = {
            mix_name: {name: self._verifier(mix_name, name, workers) for name in mix} for mix_name, mix in self.mixes.items()
        }
        self._outcomes: Counter[tuple[str, Outcome]] = Counter()
        self._seconds: dict[str, deque[float]] = {}

    async def prepare(self, tasks: Iterable[Task]) -> None:
        """Check that each task's mix exists and that each verifier of it understands the reference. Raises with the task's id."""
        # Off the event loop: a verifier may parse at length.
        await asyncio.to_thread(self._prepare, tuple(tasks))

    async def verify(self, task: Task, completions: Sequence[Judgeable]) -> tuple[Verdict, ...]:
        """One verdict for each completion, in order. Never raises for what a completion or a verifier does."""
        return await self.judge(task, [Text(completion.text, len(completion.token_ids)) for completion in completions])

    async def judge(self, task: Task, texts: Sequence[Text]) -> tuple[Verdict, ...]:
        """As `verify`, for texts whose tokens are not at hand. Equal texts are judged once."""
        mix, verifiers = self._mix(task), self._verifiers[task.rewards]
        distinct = Counter(texts)
        jobs = [self._score(name, verifiers[name], task, text) for text in distinct for name in mix]
        scores = iter(await _gathered(jobs))
        verdicts = {text: combine(mix, {name: next(scores) for name in mix}) for text in distinct}
        for text, times in distinct.items():
            self._outcomes.update({(score.verifier, score.outcome): times for score in verdicts[text].scores})
        return tuple(verdicts[text] for text in texts)

    def metrics(self) -> dict[str, float]:
        """Outcomes and seconds of each component since the last call, e.g. `verify/math_correct`, `verify/math_p99_s`.

        An outcome is counted once for each completion, seconds once for each distinct text.
        """
        metrics: dict[str, float] = {f"verify/{name}_{outcome.value}": n for (name, outcome), n in sorted(self._outcomes.items())}
        for name, seconds in sorted(self._seconds.items()):
            ordered = sorted(seconds)
            metrics[f"verify/{name}_mean_s"] = sum(ordered) / len(ordered)
            metrics[f"verify/{name}_p50_s"] = ordered[(len(ordered) - 1) // 2]
            metrics[f"verify/{name}_p99_s"] = ordered[(len(ordered) - 1) * 99 // 100]
        self._outcomes.clear()
        self._seconds.clear()
        return metrics | self._sandbox.metrics()

    def verifiers_of(self, mix_name: str) -> Mapping[str, Verifier]:
        """The verifiers of one mix by component."""
        return self._verifiers[mix_name]

    async def probe_sandbox(self, mix_name: str) -> None:
        """Run an empty program, if a verifier of this mix runs any. Raises SandboxUnavailable, which says what to do."""
        if any(id(verifier) in self._takes_turns for verifier in self._verifiers[mix_name].values()):
            await self._sandbox.run(Program(""))

    async def close(self) -> None:
        """Close every verifier, then the sandbox; one that fails to close does not keep the others open."""
        closing = [verifier.close() for verifier in self._built.values()]
        for closed in (
            *await asyncio.gather(*closing, return_exceptions=True),
            *await asyncio.gather(self._sandbox.close(), return_exceptions=True),
        ):
            if isinstance(closed, Exception):
                logger.warning("a verifier or the sandbox did not close: %s: %s", type(closed).__name__, closed)

    def _verifier(self, mix_name: str, name: str, workers: int) -> Verifier:
        """The verifier of one component; components that ask for the same thing share it, and its processes."""
        component, verifier_name = self.mixes[mix_name][name], self.mixes[mix_name].verifier_name(name)
        where = f"rewards.{mix_name}.{name}"
        try:
            entry = find(verifier_name)
        except VerifierError as error:
            raise VerifierError(f"{where}: {error}") from None
        options = entry.validated(component.options, f"{where}.options")
        key = (verifier_name, to_json(options))
        if key not in self._built:
            built = entry.build(component.options, workers=workers, sandbox=self._sandbox, where=f"{where}.options")
            self._built[key] = built
            if "sandbox" in entry.provided:
                self._takes_turns.add(id(built))
        return self._built[key]

    def _mix(self, task: Task) -> RewardMix:
        if task.rewards not in self.mixes:
            hint = did_you_mean(task.rewards, self.mixes) or f"Known are {', '.join(sorted(self.mixes))}."
            raise VerifierError(f"task {task.id}: its rewards are {task.rewards!r}, which is not a reward mix. {hint}")
        return self.mixes[task.rewards]

    def _prepare(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            for name in self._mix(task):
                try:
                    self._verifiers[task.rewards][name].prepare(task.reference)
                except InvalidReference as error:
                    raise InvalidReference(f"task {task.id}: {name}: {error}") from None

    async def _score(self, name: str, verifier: Verifier, task: Task, text: Text) -> Score:
        """One component's score with its name and seconds. The boundary where a verifier's failure becomes `infra`."""
        # Programs queue for the sandbox here, where no clock is running yet.
        async with self._turns if id(verifier) in self._takes_turns else contextlib.nullcontext():
            return await self._score_now(name, verifier, task, text)

    async def _score_now(self, name: str, verifier: Verifier, task: Task, text: Text) -> Score:
        started = time.perf_counter()
        score = infra("not judged")
        for attempt in (1, 2):
            try:
                async with asyncio.timeout(self._deadline_s):
                    score = _checked(await verifier.score(task, text.text, num_tokens=text.num_tokens))
                break
            except (Exception, SystemExit) as error:
                late = isinstance(error, TimeoutError)
                fault = f"no answer within {self._deadline_s:g} s" if late else f"{type(error).__name__}: {error}"
                logger.warning("verifier %s failed on task %s (attempt %d of 2)", name, task.id, attempt, exc_info=True)
                score = infra(f"verifier {name} failed: {fault}"[:1000])
        seconds = time.perf_counter() - started
        self._seconds.setdefault(name, deque(maxlen=MAX_TIMINGS)).append(seconds)
        return dataclasses.replace(score, verifier=name, seconds=seconds)


def _checked(score: Score) -> Score:
    if not isinstance(score, Score):
        raise TypeError(f"a verifier returned {type(score).__name__} instead of a Score")
    return score


async def _gathered(jobs: Sequence[Coroutine[Any, Any, Score]]) -> list[Score]:
    """As many scores as jobs. When one is cancelled, the others are too, so nothing runs on unobserved."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
    assert len(tasks) == len(jobs), "as many scores come back as went in"
    return [task.result() for task in tasks]
