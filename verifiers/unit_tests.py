"""The verifier `unit_tests`: does the program that a model wrote do what the task's cases and tests ask for?

The program runs in the sandbox and answers questions, one at a time; it never holds an expected value or the source of a test. What
is judged is the plain data it answered, in a process that never ran it: values and texts here (code_compare.py), tests and
checkers in the referee (code_referee.py). No exit code, no printed sentence and no silence ever counts as a pass.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from sandbox.agent import calls
from sandbox.protocol import Sandbox, Session
from sandbox.types import MAX_SOURCE_BYTES, Ending, Execution, Limits, Program, ProgramEnded
from verifiers.code_compare import equal, output_difference, shown
from verifiers.code_extract import Fence, extract_code
from verifiers.code_referee import Ask, Referee, RefereeOverrun, Refused, TrustedTests
from verifiers.code_reference import CallCase, CodeReference, parse_reference
from verifiers.registry import verifier
from verifiers.types import Outcome, Score, Task, correct, partial, timeout, unparseable

MAX_KEPT = 256
MAX_SHOWN = 500
MAX_FAILURES_SHOWN = 5
MAX_OUTPUT_KB = 16384

Count = Literal["until_failure", "all", "fraction"]


class CaseResult(NamedTuple):
    """What one case or test came to."""

    outcome: Outcome
    reason: str


PASSED = CaseResult(Outcome.CORRECT, "passes")


@verifier("unit_tests")
class UnitTests:
    """Whether the program in the completion passes all cases of the reference, in the sandbox.

    The program is the last code block that defines the entry point, else the last code block, else the whole text. Its limits hold
    for all cases of a completion together.
    """

    def __init__(
        self,
        *,
        limits: Annotated[Limits, Field(description="What the program may use, for all cases together.")] = Limits(),  # noqa: B008
        count: Annotated[
            Count,
            Field(
                description="until_failure: stop at the first; all: run every case, for the reason; fraction: and let the share "
                "that passes be the score."
            ),
        ] = "until_failure",
        fence: Annotated[Fence, Field(description="Whether the program must stand in a code block.")] = "optional",
        sandbox: Sandbox,
        workers: int = 2,
    ) -> None:
        self._limits, self._sandbox = limits, sandbox
        self._count: Count = count
        self._fence: Fence = fence
        # Its processes mostly wait for the sandbox, so there are as many as programs may run at one time.
        self._referee = Referee(size=max(workers, len(os.sched_getaffinity(0))))
        self._references: OrderedDict[int, tuple[Any, CodeReference]] = OrderedDict()

    def prepare(self, reference: Any) -> object:
        """Refuses what holds no test, or tests that are not Python."""
        return parse_reference(reference)

    def example(self, reference: Any) -> str | None:
        """The task's own solution, where it has one."""
        parsed = parse_reference(reference)
        return None if parsed.solution is None else f"```python\n{parsed.prompt}{parsed.solution}\n```"

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        reference = self._parsed(task.reference)
        code = extract_code(text, entry_point=reference.entry_point, prompt=reference.prompt, fence=self._fence)
        if code.source is None:
            return unparseable(code.place)
        size = len(code.source.encode("utf-8", "surrogatepass"))
        if size > MAX_SOURCE_BYTES:
            return timeout(f"the program has {size:,} bytes; at most {MAX_SOURCE_BYTES:,} are run", code.written[:MAX_SHOWN])
        results: list[CaseResult] = []
        async with contextlib.aclosing(self._results(reference, Program(code.source, reference.entry_point))) as judged:
            async for result in judged:
                results.append(result)
                if result.outcome is not Outcome.CORRECT and self._count == "until_failure":
                    break
        return _combined(results, reference.num_cases, self._count, f"({code.place})", code.written[:MAX_SHOWN])

    def pids(self) -> list[int]:
        """The processes of the referee."""
        return self._referee.pids()

    async def close(self) -> None:
        await self._referee.close()

    def _parsed(self, reference: Any) -> CodeReference:
        """Parsed once for each reference object: the completions of a group share theirs."""
        kept = self._references.get(id(reference))
        if kept is None or kept[0] is not reference:
            kept = self._references[id(reference)] = (reference, parse_reference(reference))
            if len(self._references) > MAX_KEPT:
                self._references.popitem(last=False)
        return kept[1]

    def _results(self, reference: CodeReference, program: Program) -> AsyncGenerator[CaseResult]:
        """What each case came to, in order. When the program ends, the case that was under way is the last."""
        if reference.tests is not None:
            return self._tested(reference, reference.tests, program)
        return self._written(reference, program) if reference.reads_stdin else self._returned(reference, program)

    async def _written(self, reference: CodeReference, program: Program) -> AsyncGenerator[CaseResult]:
        """A script, run once for each case."""
        script = _Script(self._sandbox, program, self._limits, max(len(case.stdout) for case in reference.outputs))
        for case in reference.outputs:
            try:
                output = await script.output(case.stdin)
            except ProgramEnded as ended:
                yield _ended(ended.execution, self._limits)
                continue
            difference = output_difference(case.stdout, output, tolerance=case.tolerance)
            yield PASSED if difference is None else CaseResult(Outcome.WRONG, difference)

    async def _returned(self, reference: CodeReference, program: Program) -> AsyncGenerator[CaseResult]:
        """A function, called once for each case."""
        async with self._sandbox.open(program, limits=self._limits) as session:
            for case in reference.returns:
                try:
                    line = await session.ask(case.question)
                except ProgramEnded as ended:
                    yield _ended(ended.execution, self._limits)
                    return
                yield _compared(case, line)

    async def _tested(self, reference: CodeReference, tests: TrustedTests, program: Program) -> AsyncGenerator[CaseResult]:
        """A function or a script, asked by tests in the referee."""
        async with contextlib.AsyncExitStack() as opened:
            if reference.reads_stdin:
                ask: Ask = _Script(self._sandbox, program, self._limits, 0).answer
            else:
                ask = _LateSession(self._sandbox.open(program, limits=self._limits), opened).ask
            failures = self._referee.run(tests, ask, stop=self._count == "until_failure")
            try:
                async for failure in await opened.enter_async_context(contextlib.aclosing(failures)):
                    yield PASSED if failure is None else CaseResult(_KINDS[failure.kind], failure.reason)
            except ProgramEnded as ended:
                yield _ended(ended.execution, self._limits)
            except Refused as error:
                yield CaseResult(Outcome.WRONG, str(error))
            except RefereeOverrun as error:
                yield CaseResult(Outcome.TIMEOUT, str(error))


_KINDS = {"wrong": Outcome.WRONG, "raised": Outcome.CRASH, "exhausted": Outcome.TIMEOUT}


class _LateSession:
    """A session that is opened by the first question: whoever waits for a place in the sandbox holds one in the referee already."""

    def __init__(self, session: AbstractAsyncContextManager[Session], opened: contextlib.AsyncExitStack) -> None:
        self._opening, self._opened = session, opened
        self._session: Session | None = None

    async def ask(self, question: str) -> str:
        if self._session is None:
            self._session = await self._opened.enter_async_context(self._opening)
        return await self._session.ask(question)


class _Script:
    """A program that is run anew for each text on stdin; its CPU time adds up. At least `length` characters of output are kept."""

    def __init__(self, sandbox: Sandbox, program: Program, limits: Limits, length: int) -> None:
        self._sandbox, self._program = sandbox, program
        output_kb = min(MAX_OUTPUT_KB, max(limits.output_kb, 4 * length // 1024 + 1))
        self._limits = limits.model_copy(update={"output_kb": output_kb})
        self._left_s = limits.cpu_s

    async def output(self, stdin: str) -> str:
        """What it wrote to stdout. Raises ProgramEnded unless it ended by itself, well, having written no more than is kept."""
        if self._left_s <= 0:
            raise ProgramEnded(Execution(Ending.CPU_TIME))
        limits = self._limits.model_copy(update={"cpu_s": self._left_s, "wall_s": self._limits.wall_clock_s})
        execution = await self._sandbox.run(self._program, stdin=stdin, limits=limits)
        self._left_s -= execution.cpu_s
        if not execution.ok or execution.stdout_truncated:
            raise ProgramEnded(execution)
        return execution.stdout

    async def answer(self, question: str) -> str:
        """The same as an answer to a call with one argument."""
        return calls.encode_answer(calls.Returned(await self.output(calls.decode_call(question).args[0])))


def _compared(case: CallCase, line: str) -> CaseResult:
    try:
        answer = calls.decode_answer(line)
    except ValueError as error:
        return CaseResult(Outcome.WRONG, f"what was written in answer to {case.call} is no answer: {error}")
    if isinstance(answer, calls.Raised):
        return CaseResult(Outcome.CRASH, f"{case.call} raised {f'{answer.name}: {answer.text}'.rstrip(': ')}")
    if isinstance(answer, calls.NotPlain):
        return CaseResult(Outcome.WRONG, f"{case.call} did not return plain data: {answer.what}")
    if equal(case.expected, answer.value, tolerance=case.tolerance):
        return PASSED
    return CaseResult(Outcome.WRONG, f"{case.call} returned {shown(answer.value)}, expected {shown(case.expected)}")


def _ended(execution: Execution, limits: Limits) -> CaseResult:
    """What it means for a case that the program ended before it had answered; the exit code is only told."""
    ending = execution.ending
    if ending is Ending.CPU_TIME:
        return CaseResult(Outcome.TIMEOUT, f"the program takes more than {limits.cpu_s:g} s of CPU")
    if ending is Ending.WALL_TIME:
        return CaseResult(Outcome.TIMEOUT, f"the program takes more than {limits.wall_clock_s:g} s")
    if ending is Ending.REFUSED:
        return CaseResult(Outcome.TIMEOUT, execution.reason)
    if ending is Ending.MEMORY:
        return CaseResult(Outcome.CRASH, f"the program takes more than {limits.memory_mb} MiB of memory")
    if ending is Ending.OUTPUT or (execution.ok and execution.stdout_truncated):
        return CaseResult(Outcome.CRASH, "the program writes more than is kept of its output")
    if ending is Ending.PROTOCOL:
        return CaseResult(Outcome.CRASH, "the program wrote where answers are expected, out of turn or too much")
    if ending is Ending.KILLED:
        return CaseResult(Outcome.CRASH, f"the program was ended by signal {execution.signal}")
    last_line = execution.stderr.rstrip().rpartition("\n")[2][:200]
    return CaseResult(
        Outcome.CRASH, f"the program ended with exit code {execution.exit_code}{': ' if last_line else ''}{last_line}"
    )


def _combined(results: list[CaseResult], total: int, count: Count, place: str, extracted: str) -> Score:
    """The score of a completion: 1 when every case passes, else what the first failure was, and how many pass if that is known."""
    failures = [(number, result) for number, result in enumerate(results, 1) if result.outcome is not Outcome.CORRECT]
    if not failures:
        assert len(results) == total > 0, f"{len(results)} of {total} cases were judged, and none of them failed"
        return correct(f"all {total} cases pass {place}" if total > 1 else f"the case passes {place}", extracted)
    told = "; ".join(f"case {number} of {total}: {result.reason}" for number, result in failures[:MAX_FAILURES_SHOWN])
    if count == "until_failure":
        return Score(failures[0][1].outcome, 0.0, f"{told} {place}", extracted)
    num_passed, num_missing = len(results) - len(failures), total - len(results)
    missing = f", {num_missing} were not reached" if num_missing else ""
    reason = f"{num_passed} of {total} cases pass{missing}: {told} {place}"
    if count == "fraction" and num_passed:
        return partial(num_passed / total, reason, extracted)
    return Score(failures[0][1].outcome, 0.0, reason, extracted)
