"""Hostile completions: none raises, none hangs, none runs code, none is right."""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verifiers.deadline import WorkerPool
from verifiers.math_answer import SYMBOLIC, MathAnswer
from verifiers.service import Text, VerifierService
from verifiers.types import Outcome, Score, Task

SYMBOLIC_TASK = Task("t", "", r"1+\sqrt{2}", "math")
NUMBER_TASK = Task("t", "", "42", "math")

CODE = [
    "__import__('os').system('touch /tmp/owned')",
    "exec(chr(49))",
    "(lambda: 42)()",
    "().__class__.__bases__[0].__subclasses__()",
    "print(42) or 42",
    "eval('1')",
    "42 if True else 0",
    r"\sqrt{2}+__import__('os').getpid()",
    r"\text{__import__('os')}+\sqrt{2}",
    "Symbol('x')",
    "S.Reals",
    "lambda",
    "E1.subs",
    r"1+\sqrt{2}",
    r"\sqrt{2}+1",
    r"\frac{x^2-1}{x-1}",
]

# Patched after the imports and before the first question; a call with text ends the worker, which the test sees.
GUARDED = """
import builtins, importlib.util, os, sys
import sympy, sympy.parsing.sympy_parser
spec = importlib.util.spec_from_file_location("symbolic", {symbolic!r})
symbolic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(symbolic)
symbolic.answer({{"questions": [["equal", ["x+1"], ["1+x"], "0"]], "tolerance": 0}})
sympify_module = sys.modules["sympy.core.sympify"]
real_sympify = sympify_module.sympify
def stop(*args, **kwargs):
    os._exit(66)
def guarded_sympify(value, *args, **kwargs):
    if isinstance(value, str):
        os._exit(67)
    return real_sympify(value, *args, **kwargs)
builtins.eval = builtins.exec = stop
sympy.parsing.sympy_parser.parse_expr = sympy.parse_expr = stop
for module in list(sys.modules.values()):
    if getattr(module, "sympify", None) is real_sympify:
        module.sympify = guarded_sympify
answer = symbolic.answer
"""


class FakePool:
    """Fails the test that reaches it: what it stands in for should not have been asked."""

    async def ask(self, question: Any) -> Any:
        raise AssertionError(f"asked {question}")

    async def close(self) -> None: ...


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MathAnswer]:
    program = tmp_path_factory.mktemp("guarded") / "guarded.py"
    program.write_text(GUARDED.format(symbolic=str(SYMBOLIC)))
    verifier = MathAnswer()
    verifier._pool = WorkerPool(program, size=1)
    yield verifier
    asyncio.run(verifier.close())


def score(verifier: MathAnswer, task: Task, text: str) -> Score:
    return asyncio.run(verifier.score(task, text))


@pytest.mark.parametrize("code", CODE)
def test_no_text_reaches_eval_exec_sympify_or_parse_expr(guarded: MathAnswer, monkeypatch: pytest.MonkeyPatch, code: str):
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("text was evaluated")

    asyncio.run(guarded.score(SYMBOLIC_TASK, r"\boxed{\sqrt{2}+1}"))  # everything is imported by now
    with monkeypatch.context() as patched:
        patched.setattr(builtins, "eval", forbidden)
        patched.setattr(builtins, "exec", forbidden)
        for task in (SYMBOLIC_TASK, NUMBER_TASK):
            judged = score(guarded, task, "\\boxed{" + code + "}")  # a dead worker would raise WorkerLost here
            assert (judged.value == 1.0) is (task is SYMBOLIC_TASK and code in (r"1+\sqrt{2}", r"\sqrt{2}+1"))
    assert not Path("/tmp/owned").exists()


NUL, SURROGATE = "\x00", "\ud800"
HOSTILE = {
    "empty": "",
    "a megabyte of digits": "\\boxed{" + "9" * 2**20 + "}",
    "a megabyte of prose": "word " * 200_000,
    "a megabyte of boxes": "\\boxed{41}" * 100_000,
    "NUL": f"{NUL} \\boxed{{4{NUL}2}}",
    "lone surrogates": f"{SURROGATE} \\boxed{{4{SURROGATE}2}}",
    "ten thousand openers": "\\boxed{" * 10_000,
    "ten thousand braces": "\\boxed{" + "{" * 10_000 + "42" + "}" * 10_000 + "}",
    "ten thousand fractions": "\\boxed{" + "\\frac{1}{" * 200 + "2" + "}" * 200 + "}",
    "unopened": "\\boxed{}}}}}}" + "}" * 10_000,
    "a tower": "\\boxed{9^{9^{9^{9}}}}",
    "a tower without braces": "\\boxed{9^9^9^9^9}",
    "a factorial": "\\boxed{(10!)!}",
    "a factorial of a factorial": "\\boxed{100!!!}",
    "a great power": "\\boxed{123456789^{9999}}",
    "a great binomial": "\\boxed{\\binom{99999999}{4999999}}",
    "many terms": "\\boxed{" + "+".join(["\\sqrt{2}"] * 180) + "}",
    "many elements": "\\boxed{" + ",".join(map(str, range(5000))) + "}",
    "a set of many": "\\boxed{\\{" + ",".join(map(str, range(200))) + "\\}}",
    "commas": "\\boxed{" + "," * 1900 + "}",
    "minus signs": "\\boxed{" + "-" * 1900 + "42}",
    "scripts": "\\boxed{" + "x_" * 900 + "}",
    "plus-minus": "\\boxed{" + "\\pm" * 600 + "}",
    "matrices": "\\boxed{" + "\\begin{pmatrix}" * 100 + "}",
    "spaces": "\\boxed{" + " " * 1900 + "}",
    "dollars": "$" * 100_000 + "\\boxed{$$$$$}",
    "combining marks": "\\boxed{4" + "\u0301" * 1500 + "2}",
    "right to left": "\\boxed{\u202e24\u202c}",
    "think tags": "<think>" * 50_000 + "\\boxed{42}",
    "formulas that never close": "\\boxed{" + "\\(" * 300_000 + "}",
    "formulas that never close, bare": "answer: " + "\\[" * 300_000,
    "formulas and numbers": "the answer is " + "$n$ is 41 is " * 50_000,
    "connectives": "\\boxed{41}" + " and" * 200_000 + "\\boxed{41}",
    "a format string": "\\boxed{{0.__class__} %s %n {}}",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("task", [NUMBER_TASK, SYMBOLIC_TASK], ids=["number", "expression"])
def test_a_hostile_completion_is_judged_and_is_not_right(math: MathAnswer, name: str, task: Task):
    started = time.perf_counter()
    judged = score(math, task, HOSTILE[name])
    assert judged.value == 0.0
    assert judged.outcome is not Outcome.INFRA
    assert time.perf_counter() - started < 8


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_completion_is_judged_leniently_too(name: str):
    lenient = MathAnswer(lenient=True)
    lenient._pool = FakePool()  # type: ignore[assignment]
    assert score(lenient, NUMBER_TASK, HOSTILE[name]).value in (0.0, 1.0)


PIECES = [
    "\\boxed{",
    "}",
    "{",
    "42",
    "\\frac",
    "\\sqrt",
    "^",
    "_",
    "(",
    ")",
    "[",
    "]",
    "\\{",
    "\\}",
    ",",
    ";",
    "=",
    "<",
    "\\leq",
    "\\in",
    "\\cup",
    "\\pm",
    "\\text{and}",
    "x",
    "\\mid",
    "|",
    "$",
    " ",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "&",
    "\\\\",
    "%",
    "°",
    "!",
    "/",
    "\x00",
    "\ud800",
    "½",
    "²",
    "\\infty",
    ".",
    "-",
    "or",
    "\\approx",
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join), st.sampled_from(["42", "(1,2)", r"\{1,2\}", "x=5", "[0,1)", "1,2"])
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gets_a_score(text: str, reference: str):
    class Unequal:
        async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
            return {"verdicts": [[False, "no"] for _ in question["questions"]]}

    verifier = MathAnswer(lenient=True)
    verifier._pool = Unequal()  # type: ignore[assignment]
    for completion in (text, "\\boxed{" + text + "}"):
        assert isinstance(score(verifier, Task("t", "", reference, "math"), completion), Score)


ENDLESS = """
import importlib.util, time
spec = importlib.util.spec_from_file_location("symbolic", {symbolic!r})
symbolic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(symbolic)
def answer(question):
    if "z" in str(question["questions"]):
        while True: pass
    if "w" in str(question["questions"]):
        time.sleep(0.5)
    return symbolic.answer(question)
"""


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[MathAnswer]:
    """A verifier whose comparisons never end when a z is in them, and take half a second when a w is."""
    program = tmp_path / "endless.py"
    program.write_text(ENDLESS.format(symbolic=str(SYMBOLIC)))
    verifier = MathAnswer()
    verifier._pool = WorkerPool(program, size=1, deadline_s=0.8)
    yield verifier
    asyncio.run(verifier.close())


@pytest.mark.slow
def test_a_comparison_that_never_ends_becomes_a_timeout_and_the_next_succeeds(endless: MathAnswer):
    stuck = score(endless, SYMBOLIC_TASK, r"\boxed{\sqrt{z}}")
    assert (stuck.outcome, stuck.value) == (Outcome.TIMEOUT, 0.0)
    assert "longer than 0.8 s" in stuck.reason
    assert score(endless, SYMBOLIC_TASK, r"\boxed{\sqrt{2}+1}").value == 1.0


def test_a_worker_killed_from_outside_changes_no_verdict(endless: MathAnswer):
    async def judge() -> Score:
        await endless.score(SYMBOLIC_TASK, r"\boxed{\sqrt{2}+1}")
        judging = asyncio.create_task(endless.score(Task("t", "", "w+1", "math"), r"\boxed{1+w}"))
        await asyncio.sleep(0.2)
        for pid in endless._pool.pids():
            os.kill(pid, signal.SIGKILL)
        return await judging

    assert asyncio.run(judge()).value == 1.0


async def test_a_worker_that_keeps_dying_is_infra_and_never_a_zero(tmp_path: Path):
    program = tmp_path / "dying.py"
    program.write_text("import os\ndef answer(question):\n    os._exit(9)\n")
    service = VerifierService({})
    verifier: Any = service._verifiers["math"]["math"]
    verifier._pool = WorkerPool(program, size=1)
    (verdict,) = await service.judge(SYMBOLIC_TASK, [Text(r"\boxed{\sqrt{2}+1}", None)])
    assert verdict.reward is None
    assert "exit status 9" in str(verdict.cause)
    await service.close()


async def test_scoring_is_the_same_three_times_and_in_any_order(math: MathAnswer):
    texts = [r"\boxed{1+\sqrt2}", r"\boxed{\sqrt2}", r"\boxed{2.414}", "none", r"\boxed{\frac{2+\sqrt8}{2}}"]
    runs = [await asyncio.gather(*(math.score(SYMBOLIC_TASK, text) for text in order)) for order in (texts, texts, texts[::-1])]
    assert runs[0] == runs[1] == runs[2][::-1]
    assert [judged.value for judged in runs[0]] == [1.0, 0.0, 0.0, 0.0, 1.0]
