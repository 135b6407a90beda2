"""The conformance kit: what every verifier must keep to, tried on one.

Reference answers get full marks and mutants of them do not; whatever a completion holds, a score comes back in time; the same text
gets the same score, alone and among others, here and in another process; what cannot be judged is infra and never a zero.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from sandbox.config import SandboxConfig
from sandbox.pool import open_sandbox
from sandbox.protocol import Sandbox
from verifiers.audit_samples import Sample, missing_options, mutants, samples_of
from verifiers.audit_subject import DEADLINE_S, Finding, Subject
from verifiers.errors import InvalidReference, VerifierError
from verifiers.hostile_texts import few_hostile_texts
from verifiers.plugin_verifier import PluginRule, PluginVerifier
from verifiers.protocol import Probed, StatesReference, Verifier
from verifiers.registry import Entry, find
from verifiers.types import Outcome, Score

MAX_SHOWN = 3
T = TypeVar("T")
KILL_EVERY_S = 0.02
AT_ONCE = 4  # of what is judged in any order

Check = Callable[[Sequence[Subject]], Awaitable[Finding]]


def audit(
    name: str, *, samples: Sequence[Sample] = (), options: Mapping[str, Any] | None = None, sandbox: SandboxConfig | None = None
) -> list[Finding]:
    """Try every check on the verifier `name`, with its own samples and those given; `options` come on top of those of each.

    One that runs programs is tried where `sandbox` says, and not at all without it; nor is one whose samples leave out options that
    it needs, such as an address, unless `options` has them. Raises VerifierError for an unknown name, and SystemFault where what
    a verifier depends on is not there.
    """
    entry, given = find(name), dict(options or {})
    if missing := missing_options(entry, given):
        return [Finding("builds", None, f"it needs {', '.join(missing)}, and no config gave them (--config)")]
    tried = [replace(each, options={**each.options, **given}) for each in (*samples_of(name), *samples)]
    return asyncio.run(_audit_in_sandbox(entry, tried, sandbox))


async def _audit_in_sandbox(entry: Entry, samples: Sequence[Sample], config: SandboxConfig | None) -> list[Finding]:
    if "sandbox" not in entry.provided:
        return await _audit(entry, samples, None)
    if config is None:
        return [Finding("builds", None, "it needs a sandbox, and none was given")]
    sandbox = open_sandbox(config)
    try:
        return await _audit(entry, samples, sandbox)
    finally:
        await sandbox.close()


async def _audit(entry: Entry, samples: Sequence[Sample], sandbox: Sandbox | None) -> list[Finding]:
    subjects: list[Subject] = []
    try:
        for each in samples or (Sample(None, {}, (), ()),):
            verifier = entry.build(each.options, workers=1, sandbox=sandbox)
            subjects.append(Subject(entry, each, verifier, sandbox))
            await asyncio.to_thread(verifier.prepare, each.reference)
            if isinstance(verifier, Probed):
                await verifier.probe()
        findings = [Finding("builds", True, f"{len(samples)} samples" if samples else "no samples: nothing says what is right")]
        return findings + [await _tried(check, subjects) for check in CHECKS]
    except (VerifierError, InvalidReference) as error:
        return [Finding("builds", False, f"{error} Give a sample whose options and reference it takes.")]
    finally:
        for subject in subjects:
            await subject.verifier.close()


async def _tried(check: Check, subjects: Sequence[Subject]) -> Finding:
    try:
        return await check(subjects)
    except Exception as error:  # whatever the verifier raises is what the check was to find
        return Finding(check.__name__.replace("_", " "), False, f"it raised {type(error).__name__}: {error}"[:300])


async def right_answers_get_full_marks(subjects: Sequence[Subject]) -> Finding:
    async def judge(subject: Subject, text: str) -> str | None:
        score = await subject.score(text)
        return None if score.outcome is Outcome.CORRECT else f"{text[:80]!r}: {told(score)}"

    count, bad = await _judged(subjects, lambda subject: subject.right, judge)
    return _verdict("right answers get full marks", count, bad)


async def wrong_answers_do_not(subjects: Sequence[Subject]) -> Finding:
    async def judge(subject: Subject, text: str) -> str | None:
        score = await subject.score(text)
        return f"{text[:80]!r}: {told(score)}" if score.value in (None, 1.0) else None

    count, bad = await _judged(subjects, lambda subject: subject.sample.wrong, judge)
    return _verdict("wrong answers and hacks do not", count, bad)


async def mutants_of_the_reference_do_not(subjects: Sequence[Subject]) -> Finding:
    bad, count = [], 0
    async for subject, right in _each(subjects, lambda subject: [subject.right]):
        for mutant in mutants(subject.sample.reference):
            text = await _stated(subject, mutant)
            if text is not None and text not in right:
                count += 1
                score = await subject.score(text)
                bad += [f"{text[:80]!r}: {told(score)}"] if score.value in (None, 1.0) else []
    return _verdict("mutants of the reference do not", count, bad)


async def any_text_gets_a_score_in_time(subjects: Sequence[Subject]) -> Finding:
    bad, count = [], 0
    for subject in subjects[:: max(1, len(subjects) // 3)]:
        for name, text in few_hostile_texts(2):
            count += 1
            started = time.perf_counter()
            try:
                score = await subject.score(text)
                late = time.perf_counter() - started > DEADLINE_S
                bad += [f"{name}: {told(score)}"] if late or not isinstance(score, Score) or score.outcome is Outcome.INFRA else []
            except Exception as error:
                bad.append(f"{name}: it raised {type(error).__name__}: {error}"[:200])
    return _verdict("any text gets a score in time", count, bad)


async def the_same_text_gets_the_same_score(subjects: Sequence[Subject]) -> Finding:
    bad, count = [], 0
    async for subject, texts in _each(subjects, lambda subject: [(*subject.right[:10], *subject.sample.wrong[:10])]):
        alone = [await subject.score(text) for text in texts]
        order = random.Random(0).sample(range(len(texts)), len(texts))
        async with _fresh(subject) as fresh:
            together = await asyncio.gather(*(subject.score(texts[i], fresh) for i in order))
        again = dict(zip(order, together, strict=True))
        count += len(texts)
        bad += [repr(text[:80]) for i, text in enumerate(texts) if not _same(alone[i], again[i], await subject.score(text))]
    return _verdict("the same text gets the same score, in any order", count, bad)


async def another_process_says_the_same(subjects: Sequence[Subject]) -> Finding:
    check = "another process says the same"
    entry = subjects[0].entry
    module = entry.plugin or entry.target.__module__
    if "sandbox" in entry.provided or (entry.plugin is None and not module.startswith("verifiers.")):
        return Finding(check, None, "it cannot be built there")
    bad, count = [], 0
    async for subject, texts in _each(subjects[:2], lambda subject: [(*subject.right, *subject.sample.wrong[:5])]):
        kind = PluginVerifier if isinstance(entry.target, type) else PluginRule
        options = json.loads(entry.validated(subject.sample.options).model_dump_json())
        there = kind(module, entry.name, options, workers=1, deadline_s=DEADLINE_S)
        try:
            for text in texts:
                count += 1
                bad += [] if _same(await subject.score(text), await subject.score(text, there)) else [repr(text[:80])]
        finally:
            await there.close()
    return _verdict(check, count, bad)


async def scores_survive_pickling(subjects: Sequence[Subject]) -> Finding:
    async def judge(subject: Subject, text: str) -> str | None:
        score = await subject.score(text)
        return None if pickle.loads(pickle.dumps(score)) == score else told(score)

    count, bad = await _judged(subjects, lambda subject: (*subject.right[:5], *subject.sample.wrong[:5], ""), judge)
    return _verdict("scores survive pickling", count, bad)


async def a_killed_worker_is_never_a_zero(subjects: Sequence[Subject]) -> Finding:
    check = "a killed worker is never a zero"
    bad, killed = [], 0
    async for subject, text in _each(subjects, lambda subject: subject.right[:3]):
        async with _fresh(subject) as verifier:
            pids = getattr(verifier, "pids", list)
            scoring = asyncio.create_task(_scored_or_raised(subject, text, verifier))
            while not scoring.done():
                killed += _kill(pids())
                await asyncio.sleep(KILL_EVERY_S)
            score = await scoring
        bad += [f"{text[:80]!r}: {told(score)}"] if score is not None and score.value not in (None, 1.0) else []
    return _verdict(check, killed, bad) if killed else Finding(check, None, "its right answers need no worker")


CHECKS: tuple[Check, ...] = (
    right_answers_get_full_marks,
    wrong_answers_do_not,
    mutants_of_the_reference_do_not,
    any_text_gets_a_score_in_time,
    the_same_text_gets_the_same_score,
    another_process_says_the_same,
    scores_survive_pickling,
    a_killed_worker_is_never_a_zero,
)


def told(score: Score) -> str:
    return f"{score.outcome.value}, {score.reason}"[:200]


def _same(*scores: Score) -> bool:
    """Whether scores agree in all but the time they took."""
    return len({(score.outcome, score.value, score.extracted) for score in scores}) == 1


def _verdict(check: str, count: int, bad: Sequence[str]) -> Finding:
    if not count:
        return Finding(check, None, "no sample to try it on")
    if not bad:
        return Finding(check, True, f"{count} tried")
    more = f" and {len(bad) - MAX_SHOWN} more" if len(bad) > MAX_SHOWN else ""
    return Finding(check, False, f"{len(bad)} of {count}: {'; '.join(bad[:MAX_SHOWN])}{more}")


@asynccontextmanager
async def _fresh(subject: Subject) -> AsyncIterator[Verifier]:
    """The same verifier made anew, which remembers nothing."""
    verifier = subject.entry.build(subject.sample.options, workers=1, sandbox=subject.sandbox)
    try:
        yield verifier
    finally:
        await verifier.close()


async def _each(subjects: Sequence[Subject], texts: Callable[[Subject], Sequence[T]]) -> AsyncIterator[tuple[Subject, T]]:
    for subject in subjects:
        # A verifier of a plugin waits for its worker when it writes an example.
        for text in await asyncio.to_thread(texts, subject):
            yield subject, text


async def _judged(
    subjects: Sequence[Subject], texts: Callable[[Subject], Sequence[str]], judge: Callable[[Subject, str], Awaitable[str | None]]
) -> tuple[int, list[str]]:
    """How many texts there are, and what `judge` has against them, in their order; some are under way at one time."""
    pairs = [pair async for pair in _each(subjects, texts)]
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(subject: Subject, text: str) -> str | None:
        async with turns:
            return await judge(subject, text)

    told = await asyncio.gather(*(one(*pair) for pair in pairs))
    return len(pairs), [each for each in told if each is not None]


async def _stated(subject: Subject, reference: str) -> str | None:
    """A completion that states another reference; None where the verifier writes none, or refuses that reference."""
    if not isinstance(subject.verifier, StatesReference):
        return None
    try:
        await asyncio.to_thread(subject.verifier.prepare, reference)
        return await asyncio.to_thread(subject.verifier.example, reference)
    except InvalidReference:
        return None


async def _scored_or_raised(subject: Subject, text: str, verifier: Verifier) -> Score | None:
    """None for an exception: the service makes infra of it."""
    try:
        return await subject.score(text, verifier)
    except Exception:
        return None


def _kill(pids: Sequence[int]) -> int:
    killed = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue
    return killed
