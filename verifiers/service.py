"""Applies reward mixes to completions, and is the wall between verifiers and the loop.

A plain class; whoever wants it in another process makes an actor of it. Verifiers keep no state that matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic_core import to_json

from sandbox.config import SandboxConfig
from sandbox.errors import SystemFault
from sandbox.pool import open_sandbox
from sandbox.protocol import Sandbox
from sandbox.types import Program
from verifiers.errors import InvalidReference, VerifierError
from verifiers.options import did_you_mean
from verifiers.protocol import Probed, TakesTurns
from verifiers.registry import Verifier, find, load_plugins
from verifiers.reward import RewardMix, built_in_mixes, combine
from verifiers.types import Outcome, Score, Task, Verdict, infra

logger = logging.getLogger(__name__)

MAX_TIMINGS = 100_000
MAX_AT_ONCE = 20_000  # characters, after which others get their turn on the event loop
TURNS_PER_SLOT = 4


class Judgeable(Protocol):
    """What the service needs of a completion; `rollout.types.Completion` has it."""

    @property
    def text(self) -> str: ...

    @property
    def num_completion_tokens(self) -> int: ...


class Text(NamedTuple):
    """What is judged: verifiers cannot tell two completions apart that agree in both."""

    text: str
    num_tokens: int | None


class VerifierService:
    """Judges the completions of tasks by the mix that each task names.

    `mixes` are added to the built-in ones; a mix of the same name takes the built-in's place. `workers` is how many processes each
    verifier that needs any may keep. All verifiers that run programs share one sandbox, which starts with the first program.
    `deadline_s` bounds one score, after which the completion is unscored; one that needs processes waits for its turn first.
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
        self._sandbox_turns = asyncio.Semaphore(TURNS_PER_SLOT * num_slots)
        self._turns: dict[int, asyncio.Semaphore] = {}
        self._built: dict[tuple[str, bytes], Verifier] = {}
        self._verifiers = {
            mix_name: {name: self._verifier(mix_name, name, workers) for name in mix} for mix_name, mix in self.mixes.items()
        }
        self._told: set[str] = set()
        self._outcomes: Counter[tuple[str, Outcome]] = Counter()
        self._seconds: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_TIMINGS))

    async def prepare(self, tasks: Iterable[Task]) -> None:
        """Check that each task's mix exists and that each verifier of it understands the reference. Raises with the task's id."""
        # Off the event loop: a verifier may parse at length.
        await asyncio.to_thread(self._prepare, tuple(tasks))

    async def verify(self, task: Task, completions: Sequence[Judgeable]) -> tuple[Verdict, ...]:
        """One verdict for each completion, in order. Never raises for what a completion or a verifier does."""
        return await self.judge(task, [Text(completion.text, completion.num_completion_tokens) for completion in completions])

    async def judge(self, task: Task, texts: Sequence[Text]) -> tuple[Verdict, ...]:
        """As `verify`, for texts whose tokens are not at hand. Equal texts are judged once."""
        mix, verifiers = self._mix(task), self._verifiers[task.rewards]
        distinct = Counter(texts)
        scores: dict[tuple[Text, str], Score] = {}
        waiting: dict[tuple[Text, str], Coroutine[Any, Any, Score]] = {}
        for text in distinct:
            for name in mix:
                score = self._at_once(name, verifiers[name], task, text)
                if isinstance(score, Score):
                    scores[text, name] = score
                else:
                    waiting[text, name] = self._score(name, verifiers[name], task, text, score)
            if len(text.text) > MAX_AT_ONCE and not waiting:
                await asyncio.sleep(0)
        if waiting:
            scores.update(zip(waiting, await _gathered(list(waiting.values())), strict=True))
        verdicts = {text: combine(mix, {name: scores[text, name] for name in mix}) for text in distinct}
        for text, times in distinct.items():
            self._outcomes.update({(score.verifier, score.outcome): times for score in verdicts[text].scores})
        return tuple(verdicts[text] for text in texts)

    async def metrics(self) -> dict[str, float]:
        """Outcomes and seconds of each component since the last call, e.g. `verify/math_correct`, `verify/math_p99_s`.

        An outcome is counted once for each completion, seconds once for each distinct text. What the processes and the cache of a
        verifier did stands under its name: `verify/math_asked`, `verify/math_killed`, `verify/math_known`.
        """
        metrics: dict[str, float] = {f"verify/{name}_{outcome.value}": n for (name, outcome), n in sorted(self._outcomes.items())}
        for name, seconds in sorted(self._seconds.items()):
            ordered = sorted(seconds)
            metrics[f"verify/{name}_mean_s"] = sum(ordered) / len(ordered)
            metrics[f"verify/{name}_p50_s"] = ordered[(len(ordered) - 1) // 2]
            metrics[f"verify/{name}_p99_s"] = ordered[(len(ordered) - 1) * 99 // 100]
        self._outcomes.clear()
        self._seconds.clear()
        for (verifier_name, _), built in self._built.items():
            for counter, count in getattr(built, "counters", dict)().items():
                if count:
                    metrics[f"verify/{verifier_name}_{counter}"] = metrics.get(f"verify/{verifier_name}_{counter}", 0) + count
        return metrics | self._sandbox.metrics()

    def verifiers_of(self, mix_name: str) -> Mapping[str, Verifier]:
        """The verifiers of one mix by component."""
        return self._verifiers[mix_name]

    async def probe_sandbox(self, mix_name: str) -> None:
        """Run an empty program, if a verifier of this mix runs any. Raises SandboxUnavailable, which says what to do."""
        if any(self._turns.get(id(verifier)) is self._sandbox_turns for verifier in self._verifiers[mix_name].values()):
            await self._sandbox.run(Program(""))

    async def probe(self, mix_name: str) -> None:
        """Try what the verifiers of this mix depend on, where they say how. Raises SystemFault, which says what to do."""
        for name, verifier in self._verifiers[mix_name].items():
            if isinstance(verifier, Probed):
                try:
                    await verifier.probe()
                except SystemFault as error:
                    raise SystemFault(f"rewards.{mix_name}.{name}: {error}") from None

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
                self._turns[id(built)] = self._sandbox_turns
            elif "workers" in entry.provided or entry.runs_apart:
                self._turns[id(built)] = asyncio.Semaphore(TURNS_PER_SLOT * workers)
            elif isinstance(built, TakesTurns):
                self._turns[id(built)] = asyncio.Semaphore(built.max_at_once)
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

    def _at_once(self, name: str, verifier: Verifier, task: Task, text: Text) -> Score | int:
        """The score where the verifier gives it without waiting; otherwise the number of the attempt to go on with."""
        score_now = getattr(verifier, "score_now", None)
        if score_now is None:
            return 1
        started = time.perf_counter()
        try:
            score = score_now(task, text.text, num_tokens=text.num_tokens)
            return 1 if score is None else self._finished(name, _checked(score), started)
        except (Exception, SystemExit) as error:
            self._tell(name, task, 1, error)
            return 2

    def _tell(self, name: str, task: Task, attempt: int, error: BaseException) -> None:
        """Log a verifier's failure: with its traceback, or, if it is a machine's fault that says what to do, once."""
        if not isinstance(error, SystemFault):
            logger.warning("verifier %s failed on task %s (attempt %d of 2)", name, task.id, attempt, exc_info=True)
        elif str(error) not in self._told:
            self._told.add(str(error))
            logger.warning("verifier %s: %s", name, error)

    async def _score(self, name: str, verifier: Verifier, task: Task, text: Text, first_attempt: int) -> Score:
        """One component's score with its name and seconds. The boundary where a verifier's failure becomes `infra`."""
        # Checks queue for the sandbox, or for a pool of processes, here, where no clock is running yet.
        async with self._turns.get(id(verifier)) or contextlib.nullcontext():
            return await self._in_turn(name, verifier, task, text, first_attempt)

    async def _in_turn(self, name: str, verifier: Verifier, task: Task, text: Text, first_attempt: int) -> Score:
        started = time.perf_counter()
        score = infra("not judged")
        for attempt in range(first_attempt, 3):
            try:
                async with asyncio.timeout(self._deadline_s):
                    score = _checked(await verifier.score(task, text.text, num_tokens=text.num_tokens))
                break
            except (Exception, SystemExit) as error:
                late = isinstance(error, TimeoutError)
                fault = f"no answer within {self._deadline_s:g} s" if late else f"{type(error).__name__}: {error}"
                self._tell(name, task, attempt, error)
                score = infra(f"verifier {name} failed: {fault}"[:1000])
        return self._finished(name, score, started)

    def _finished(self, name: str, score: Score, started: float) -> Score:
        """A score with its component's name and the time that it took."""
        seconds = time.perf_counter() - started
        self._seconds[name].append(seconds)
        return Score(score.outcome, score.value, score.reason, score.extracted, name, seconds)


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
