"""The verifier `judge`: a language model says how well a completion keeps to written principles (arXiv:2212.08073, section 4).

The questions and the grammar of verdicts live in judge_question.py, the endpoint in judge_client.py, what options must keep to in
judge_options.py. A judge that does not answer, or whose answer is no verdict, leaves the completion unscored: never a zero.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from sandbox.errors import SystemFault
from verifiers.errors import InvalidReference
from verifiers.extract import final_region
from verifiers.judge_client import Budget, ChatClient, NoAnswer
from verifiers.judge_options import ENGINE, ENGINE_KEY, ENGINE_URL, address, extra_fields, principles_of, variable_with_key
from verifiers.judge_question import Ballot, NoVerdict, Values, ask, grades, preference, read, thought
from verifiers.options import shown
from verifiers.registry import verifier
from verifiers.types import Score, Task, correct, infra, partial, timeout, unparseable, wrong
from verifiers.verdict_cache import VerdictCache

# Less than the service's deadline for one score: the reason for giving up is then known.
PATIENCE_S = 240.0
PROBE_PATIENCE_S = 60.0
NO_ENGINE = "http://no-run.invalid/v1"  # never asked: references can be checked without a run
MAX_THOUGHT = 300
MAX_SHOWN = 500
MAX_KNOWN = 16384  # each with a reason and a part of the text: some 25 MB

Mode = Literal["score", "score_each", "pairwise"]


Principles = Annotated[
    tuple[str, ...] | str,
    AfterValidator(principles_of),
    Field(description="The constitution: sentences, or a text file with one on each line."),
]
Address = Annotated[
    str,
    AfterValidator(address),
    Field(description="Address of the API, up to and with /v1; or engine: the run's own, so that the policy itself judges."),
]
KeyVariable = Annotated[
    str | None,
    AfterValidator(variable_with_key),
    Field(description="Environment variable that holds the key. None: the API wants none."),
]
Extra = Annotated[
    dict[str, Any] | None,
    AfterValidator(extra_fields),
    Field(description="More fields of a request, or others in place of ours, such as max_completion_tokens."),
]


class JudgeUnavailable(SystemFault):
    """A judge that does not answer when it is tried before a run."""


@verifier("judge", apart=False)
class Judge:
    """How well the answer keeps to written principles, by the word of a language model behind an OpenAI-compatible API.

    `score` and `score_each` give grade / max_grade, the mean over the principles. `pairwise` compares with the task's reference, a
    text, in both orders: 1 when the completion is better, 0 when the reference is. Without preference, and when the two orders
    disagree, it is 1/2: what changes with the order says nothing about the texts (arXiv:2306.05685, section 3.4).
    """

    def __init__(
        self,
        *,
        principles: Principles,
        base_url: Address,
        model: Annotated[str, Field(min_length=1, description="The judge's name there.")],
        key_variable: KeyVariable = None,
        mode: Annotated[
            Mode,
            Field(description="score: one grade; score_each: one for each principle; pairwise: against the reference, twice."),
        ] = "score",
        max_grade: Annotated[int, Field(ge=1, le=100, description="Grades go from 0 to this.")] = 10,
        whole: Annotated[bool, Field(description="Judge the reasoning too, not only what follows it.")] = False,
        structured: Annotated[
            bool,
            Field(description="Let the API force the verdict's form (JSON schema). The judge then writes no thought before it."),
        ] = False,
        temperature: Annotated[float, Field(ge=0, le=2, description="The judge's temperature.")] = 0.0,
        max_tokens: Annotated[int, Field(ge=1, description="Tokens of one answer. What is cut off there is no verdict.")] = 1024,
        extra: Extra = None,
        max_characters: Annotated[int, Field(ge=1, description="A longer completion is not judged: timeout.")] = 50_000,
        timeout_s: Annotated[float, Field(gt=0, le=PATIENCE_S, description="Time for one request.")] = 60.0,
        max_retries: Annotated[int, Field(ge=0, description="More requests after no connection, 429, 5xx or a broken answer.")] = 5,
        max_concurrent: Annotated[int, Field(ge=1, description="Requests at one time.")] = 16,
        max_calls: Annotated[
            int | None, Field(ge=0, description="Budget of requests for the run; then completions are unscored. None: no end.")
        ] = None,
        max_total_tokens: Annotated[
            int | None, Field(ge=0, description="Budget of tokens, prompts too, as the API counts them. None: no end.")
        ] = None,
    ) -> None:
        self._principles = principles_of(principles)
        self._model, self._mode, self._max_grade = model, mode, max_grade
        self._whole, self._structured, self._max_characters = whole, structured, max_characters
        self.max_at_once = max_concurrent
        is_pairwise = mode == "pairwise"
        self._ballot: Ballot = preference() if is_pairwise else grades(len(self._principles), max_grade, each=mode == "score_each")
        request = {"model": model, "temperature": temperature, "max_tokens": max_tokens, **(extra or {})}
        if "max_completion_tokens" in request:
            del request["max_tokens"]
        self._is_engine = base_url == ENGINE
        if self._is_engine:
            base_url, key_variable = os.environ.get(ENGINE_URL, NO_ENGINE), ENGINE_KEY
        self._client = ChatClient(
            address(base_url),
            None if key_variable is None else os.environ.get(key_variable),
            request,
            timeout_s=timeout_s,
            max_retries=max_retries,
            max_concurrent=max_concurrent,
            budget=Budget(max_calls, max_total_tokens),
        )
        self._known = VerdictCache(MAX_KNOWN)
        self._counts: Counter[str] = Counter()

    def prepare(self, reference: Any) -> object:
        """Takes any reference, unless completions are compared with it: then it must be a text."""
        return self._other(reference) if self._mode == "pairwise" else None

    async def probe(self) -> None:
        """Ask the judge one question. What it says to it does not matter, only that it answers."""
        if self._is_engine:  # it comes with the run
            return
        question = ask(self._ballot, self._principles, "Say hello.", {"completion": "Hello."}, bare=self._structured)
        try:
            await self._client.ask(question.messages, schema=question.schema, give_up_at=time.monotonic() + PROBE_PATIENCE_S)
        except NoAnswer as error:
            raise JudgeUnavailable(f"the judge {self._model} does not answer: {error}.") from None

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        judged = text if self._whole else final_region(text)
        if not judged.strip():
            return unparseable("nothing to judge" if self._whole else "nothing after the reasoning")
        if len(judged) > self._max_characters:
            told = f"{len(judged):,} characters; at most {self._max_characters:,} are judged (max_characters)"
            return timeout(told, judged[:MAX_SHOWN])
        reference = self._other(task.reference) if self._mode == "pairwise" else None
        key = hashlib.blake2b(repr((task.prompt, reference, judged)).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        known = None if self._is_engine else self._known.get(key)  # the policy learns, and may think otherwise by now
        if known is not None:
            return known
        try:
            score = await self._judged(task, judged, reference, time.monotonic() + PATIENCE_S)
        except NoAnswer as error:
            return infra(f"the judge {self._model} gave no verdict: {error}.")
        self._known.keep(key, score)
        return score

    def counters(self) -> dict[str, int]:
        """Since the last call: requests, those repeated, tokens, answers without a verdict, orders that disagreed, scores known."""
        counts, self._counts = self._counts, Counter()
        return dict(counts) | self._client.counters() | self._known.counters()

    async def close(self) -> None:
        await self._client.close()

    def _other(self, reference: Any) -> str:
        if not isinstance(reference, str) or not reference.strip():
            raise InvalidReference(f"the reference is {shown(reference)}, but mode is pairwise: give a text to compare with.")
        return reference

    async def _judged(self, task: Task, text: str, reference: str | None, give_up_at: float) -> Score:
        if self._is_engine and ENGINE_URL not in os.environ:
            raise NoAnswer(f"base_url is {ENGINE}, but no run is here whose engine could judge. Give the address of an API")
        if reference is None:
            values, words = await self._verdict(task, {"completion": text}, give_up_at)
            return self._graded(values, words, text)
        first, words = await self._verdict(task, {"completion A": text, "completion B": reference}, give_up_at)
        second, more = await self._verdict(task, {"completion A": reference, "completion B": text}, give_up_at)
        return self._compared(str(first["better"]), str(second["better"]), f"{words} / {more}", text)

    def _graded(self, values: Values, words: str, text: str) -> Score:
        given = [int(grade) for grade in values.values()]
        told = f"{', '.join(map(str, given))} of {self._max_grade}: {words}".rstrip(": ")
        best = self._max_grade * len(given)
        if sum(given) == best:
            return correct(told, text[:MAX_SHOWN])
        return partial(sum(given) / best, told, text[:MAX_SHOWN]) if sum(given) else wrong(told, text[:MAX_SHOWN])

    def _compared(self, first: str, second: str, words: str, text: str) -> Score:
        """The score from both orders; the completion was A in the first and B in the second."""
        extracted = text[:MAX_SHOWN]
        if (first, second) == ("A", "B"):
            return correct(f"better than the reference in both orders: {words}", extracted)
        if (first, second) == ("B", "A"):
            return wrong(f"worse than the reference in both orders: {words}", extracted)
        if (first, second) == ("tie", "tie"):
            return partial(0.5, f"as good as the reference: {words}", extracted)
        self._counts["disagreed"] += 1
        return partial(0.5, f"no preference, as it changes with the order ({first}, then {second}): {words}", extracted)

    async def _verdict(self, task: Task, texts: Mapping[str, str], give_up_at: float) -> tuple[Values, str]:
        """What the verdict says, and the words before it; an answer without one is asked for once more. Raises NoAnswer."""
        question = ask(self._ballot, self._principles, task.prompt, texts, bare=self._structured)
        messages, fault, said = question.messages, "", ""
        for _ in range(2):
            reply = await self._client.ask(messages, schema=question.schema, give_up_at=give_up_at)
            said = reply.text
            try:
                if reply.is_cut:
                    raise NoVerdict("it was cut off at max_tokens")
                return read(said, question), "" if self._structured else thought(said, MAX_THOUGHT)
            except NoVerdict as error:
                fault = str(error)
                self._counts["unreadable"] += 1
                messages = question.again(said, fault)
        raise NoAnswer(f"{fault}, twice. It ended with {said[-100:]!r}")
