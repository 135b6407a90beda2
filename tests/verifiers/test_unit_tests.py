"""Programs judged by their cases and tests: right ones pass, others do not, and each way to fail has its own outcome and reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from code_cases import CALLS, CHECKED, FORMS, SCRIPT, SCRIPTS, TEST, TEST_LIST

from sandbox.types import Limits
from tests.fakes import FakeSandbox
from verifiers.code_referee import BrokenTests
from verifiers.errors import InvalidReference
from verifiers.registry import find
from verifiers.types import Outcome, Score, Task
from verifiers.unit_tests import UnitTests

Judge = Callable[..., Awaitable[Score]]

CORRECT, WRONG, PARTIAL = Outcome.CORRECT, Outcome.WRONG, Outcome.PARTIAL
UNPARSEABLE, TIMEOUT, CRASH = Outcome.UNPARSEABLE, Outcome.TIMEOUT, Outcome.CRASH


@pytest.fixture
def sandbox() -> FakeSandbox:
    return FakeSandbox()


@pytest.fixture
async def judge(sandbox: FakeSandbox) -> Any:
    """Score a program (or, with raw=True, a text) against a reference."""
    made: list[UnitTests] = []

    async def judge(reference: Any, program: str, *, raw: bool = False, **options: Any) -> Score:
        limits = options.pop("limits", Limits(cpu_s=1, wall_s=15))
        made.append(UnitTests(sandbox=sandbox, limits=limits, **options))
        made[-1].prepare(reference)
        text = program if raw else f"```python\n{program}\n```"
        return await made[-1].score(Task("t", "", reference, "code"), text)

    yield judge
    for verifier in made:
        await verifier.close()


@pytest.mark.parametrize("reference", FORMS.values(), ids=FORMS.keys())
async def test_a_right_function_passes_in_every_form(judge: Judge, reference: Any):
    score = await judge(reference, "def f(x):\n    print('noise')\n    return x + 1")
    assert (score.outcome, score.value) == (CORRECT, 1.0)
    assert "the last code block that defines f" in score.reason
    assert score.extracted == "def f(x):\n    print('noise')\n    return x + 1\n"


FAULTS = [
    ("def f(x): return x + 2", WRONG),
    ("def f(x): return x + 1 if x < 3 else 0", WRONG),
    ("def f(x): return None", WRONG),
    ("def f(x): pass", WRONG),
    ("def f(x): return str(x + 1)", WRONG),
    ("def f(x): raise ValueError('no')", CRASH),
    ("def f(x): return x + 1 if x < 3 else 1 / 0", CRASH),
    ("def f(): return 2", CRASH),
    ("def f(x): return (x + 1 for _ in '1')", WRONG),
    ("def f(x): return 'x' * 10**10", CRASH),
    ("x = [0] * 10**10\ndef f(x): return x + 1", CRASH),
    ("def f(x): import os; os._exit(0)", CRASH),
    ("def f(x): import sys; sys.exit(0)", CRASH),
    ("import sys; sys.exit(0)\ndef f(x): return x + 1", CRASH),
    ("def f(x): import os; os.kill(os.getpid(), 11)", CRASH),
    ("def f(x): return f(x)", CRASH),
    ("def f(x) return x + 1", CRASH),
    ("def f(x): return x + 1\n\0", CRASH),
    ("def f(x): return x + 1 # \ud800", CRASH),
    ("import no_such_module\ndef f(x): return x + 1", CRASH),
    ("if False:\n    def f(x): return x + 1", CRASH),
    ("def g(x): return x + 1", CRASH),
    ("f = 3", CRASH),
    ("", CRASH),
]


@pytest.mark.parametrize(
    "reference", [pytest.param(form, id=name, marks=() if name == "calls" else pytest.mark.slow) for name, form in FORMS.items()]
)
@pytest.mark.parametrize(("program", "outcome"), FAULTS, ids=[program[:40] for program, _ in FAULTS])
async def test_a_function_that_is_not_right_scores_0(judge: Judge, reference: Any, program: str, outcome: Outcome):
    score = await judge(reference, program)
    assert (score.outcome, score.value) == (outcome, 0.0), score.reason
    assert score.reason


@pytest.mark.parametrize("reference", [CALLS, pytest.param(TEST, marks=pytest.mark.slow)], ids=["calls", "test"])
@pytest.mark.parametrize("program", ["while True: pass\ndef f(x): return x + 1", "def f(x):\n    while True: pass"])
async def test_a_function_that_never_ends_is_stopped(judge: Judge, reference: Any, program: str):
    score = await judge(reference, program)
    assert (score.outcome, score.value) == (TIMEOUT, 0.0)
    assert "the program takes more than 1 s of CPU" in score.reason


async def test_a_function_that_sleeps_is_stopped_by_the_clock_on_the_wall(judge: Judge):
    score = await judge(CALLS, "def f(x): import time; time.sleep(60)", limits=Limits(cpu_s=1, wall_s=0.5))
    assert score.outcome is TIMEOUT
    assert "case 1 of 3: the program takes more than 0.5 s" in score.reason


REASONS = [
    (CALLS, "def f(x): return 2", "case 2 of 3: f(2) returned 2, expected 3 (the last code block that defines f)"),
    (CALLS, "def f(x): raise KeyError(x)", "case 1 of 3: f(1) raised KeyError: 1 ("),
    (CALLS, "def f(x): raise IndexError", "case 1 of 3: f(1) raised IndexError ("),
    (CALLS, "def f(x): return f", "case 1 of 3: f(1) did not return plain data: function is no plain data ("),
    (CALLS, "def f(x): return 'a' * 2000", f"f(1) returned '{'a' * 116}..., expected 2 ("),
    (CALLS, "def f(x): return 10**5000", "f(1) returned a very large int, expected 2 ("),
    (CALLS, "x = 'x' * 10**10\ndef f(x): 1", "case 1 of 3: the program takes more than 256 MiB of memory ("),
    (CALLS, "def f(x) 1", "case 1 of 3: the program ended with exit code 1: SyntaxError: "),
    (CALLS, "def g(x): 1", "case 1 of 3: the program ended with exit code 1: the program defines no function f ("),
    (CALLS, "import sys; sys.exit(0)\ndef f(x): 1", "case 1 of 3: the program ended with exit code 0 ("),
    (CALLS, "def f(x): import os; os.kill(os.getpid(), 11)", "case 1 of 3: the program was ended by signal 11 ("),
    (TEST, "def f(x): return 2", "case 1 of 1: AssertionError at assert candidate(n) == n + 1 ("),
    (TEST_LIST, "def f(x): return 2", "case 2 of 3: AssertionError at assert f(2) == 3 ("),
    (TEST_LIST, "def f(x): return [].pop()", "case 1 of 3: IndexError: pop from empty list at assert f(1) == 2 ("),
    (TEST_LIST, "def f(x): return float('nan')", "case 1 of 3: the answer is NaN or holds one ("),
    (CHECKED, "def f(x): return 2", "case 2 of 3: AssertionError at assert check(candidate("),
    (SCRIPT, "print(2)", "case 2 of 3: token 1 is '2', expected '3' (the last code block)"),
    (
        SCRIPT,
        "print(int(input()) + 1)\n1 / 0",
        "case 1 of 3: the program ended with exit code 1: ZeroDivisionError: division by zero (",
    ),
    (SCRIPT, "while True: print('x' * 1000)", "case 1 of 3: the program writes more than is kept of its output ("),
]


@pytest.mark.parametrize(("reference", "program", "reason"), REASONS, ids=[reason[:60] for _, _, reason in REASONS])
async def test_the_reason_tells_what_happened(judge: Judge, reference: Any, program: str, reason: str):
    assert reason in (await judge(reference, program)).reason


@pytest.mark.parametrize("reference", SCRIPTS.values(), ids=SCRIPTS.keys())
@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("print(int(input()) + 1)", CORRECT),
        ("import sys\nsys.stdout.write(str(int(sys.stdin.read()) + 1))\nprint('note', file=sys.stderr)", CORRECT),
        ("print(int(input()))", WRONG),
        ("print(2)", WRONG),
        ("print(int(input()) + 1)\nimport sys; sys.exit(1)", CRASH),
        ("print(int(input()) + 1)\nwhile True: pass", TIMEOUT),
        ("print int(input()) + 1", CRASH),
    ],
)
async def test_a_script_is_judged_by_what_it_writes(judge: Judge, reference: Any, program: str, outcome: Outcome):
    score = await judge(reference, program)
    assert score.outcome is outcome, score.reason


async def test_an_empty_script_is_right_only_where_nothing_is_expected(judge: Judge):
    assert (await judge(SCRIPT, "")).outcome is WRONG
    assert (await judge({"cases": [{"stdout": ""}]}, "pass")).outcome is CORRECT


TEXTS = [
    ("", UNPARSEABLE, "nothing was written"),
    ("<think>```python\ndef f(x): return x + 1\n```", UNPARSEABLE, "nothing after the reasoning"),
    ("Add one to it.", UNPARSEABLE, "no code block, and the text itself does not define f"),
    ("```cpp\nint f(int x) { return x + 1; }\n```", UNPARSEABLE, "no Python code block (found cpp)"),
    ("def f(x): return x + 1", CORRECT, "(the whole text)"),
    ("def f(x): return x + 1\nThis adds one.", CRASH, "SyntaxError"),
    ("<think>hm</think>```python\ndef f(x): return x + 1\n```\nThat is it.", CORRECT, "defines f"),
    ("```python\ndef f(x): return 0\n```\nNo:\n```python\ndef f(x): return x + 1\n```", CORRECT, "defines f"),
    ("```python\ndef f(x): return x + 1\n```\nNo:\n```python\ndef f(x): return 0\n```", WRONG, "defines f"),
    ("\x7fELF\x02\x01" + "\x00\ud800" * 100, UNPARSEABLE, "no code block"),
    (
        "```python\n" + "#" * 10_000_000 + "\ndef f(x): return x + 1\n```",
        TIMEOUT,
        "the program has 10,000,024 bytes; at most 1,048,576",
    ),
]


@pytest.mark.parametrize(("text", "outcome", "reason"), TEXTS, ids=[text[:40] for text, _, _ in TEXTS])
async def test_the_program_is_taken_out_of_the_text_and_each_bad_text_is_told(
    judge: Judge, sandbox: FakeSandbox, text: str, outcome: Outcome, reason: str
):
    score = await judge(CALLS, text, raw=True)
    assert (score.outcome, score.value) == (outcome, 1.0 if outcome is CORRECT else 0.0), score.reason
    assert reason in score.reason
    if outcome is UNPARSEABLE:
        assert sandbox.programs == []


async def test_a_prompt_is_continued_or_written_anew(judge: Judge):
    prompt = 'import math\n\ndef up(x):\n    return x + 1\n\ndef f(x):\n    """One more."""\n'
    reference = {"entry_point": "f", "prompt": prompt, "test": "def check(candidate):\n    assert candidate(1) == up(1)"}
    assert (await judge(reference, "    return math.floor(x) + 1", raw=True)).outcome is CORRECT
    assert (await judge(reference, "def f(x):\n    return up(x)")).outcome is CORRECT
    assert (await judge(reference, "    pass", raw=True)).outcome is WRONG


async def test_a_method_is_judged_like_a_function(judge: Judge):
    reference = CALLS | {"entry_point": "Solution.f"}
    assert (await judge(reference, "class Solution:\n    def f(self, x): return x + 1")).outcome is CORRECT
    assert (await judge(reference, "class Solution:\n    def f(self, x): return x")).outcome is WRONG


async def test_arguments_and_answers_keep_their_types(judge: Judge):
    args, expected = [{"tuple": [1, {"set": ["a"]}]}, {"bytes": "ff"}], {"dict": [[1, {"tuple": [True, None]}]]}
    reference = {"entry_point": "f", "typed": True, "cases": [{"args": args, "expected": expected}]}
    program = "def f(x, y):\n    assert x == (1, {'a'}) and y == b'\\xff'\n    return {1: (True, None)}"
    assert (await judge(reference, program)).outcome is CORRECT
    assert (await judge(reference, program.replace("(True, None)}", "(1, None)}"))).outcome is WRONG
    assert (await judge(reference, program.replace("(True, None)}", "[True, None]}"))).outcome is WRONG


async def test_a_tolerance_holds_where_it_is_declared(judge: Judge):
    exact = {"entry_point": "f", "cases": [{"expected": 0.3}]}
    assert (await judge(exact, "def f(): return 0.1 + 0.2")).outcome is WRONG
    assert (await judge(exact | {"tolerance": 1e-9}, "def f(): return 0.1 + 0.2")).outcome is CORRECT
    assert (await judge(exact | {"tolerance": 1e-9}, "def f(): return float('nan')")).outcome is WRONG


# How many cases


HALF = "def f(x): return x + 1 if x != 2 else 0"


async def test_the_first_failure_is_the_end_unless_all_are_wanted(judge: Judge):
    assert (await judge(CALLS, HALF)).reason.startswith("case 2 of 3: f(2) returned 0, expected 3 (")
    score = await judge(CALLS, HALF, count="all")
    assert (score.outcome, score.value) == (WRONG, 0.0)
    assert score.reason.startswith("2 of 3 cases pass: case 2 of 3: f(2) returned 0, expected 3 (")


@pytest.mark.parametrize("reference", [CALLS, TEST_LIST, CHECKED], ids=["calls", "test_list", "checker"])
async def test_the_fraction_is_a_score_only_where_the_option_asks_for_it(judge: Judge, reference: Any):
    assert (await judge(reference, HALF)).value == 0.0
    assert (await judge(reference, HALF, count="all")).value == 0.0
    score = await judge(reference, HALF, count="fraction")
    assert (score.outcome, score.value) == (PARTIAL, pytest.approx(2 / 3))
    none = await judge(reference, "def f(x): return 0", count="fraction")
    assert (none.outcome, none.value) == (WRONG, 0.0)
    every = await judge(reference, "def f(x): return x + 1", count="fraction")
    assert (every.outcome, every.value) == (CORRECT, 1.0)


@pytest.mark.parametrize("reference", [CALLS, TEST_LIST, CHECKED], ids=["calls", "test_list", "checker"])
async def test_cases_that_a_dead_program_did_not_reach_are_not_passed(judge: Judge, reference: Any):
    score = await judge(reference, "import os\ndef f(x): return x + 1 if x == 1 else os._exit(0)", count="fraction")
    assert (score.outcome, score.value) == (PARTIAL, pytest.approx(1 / 3))
    assert "1 of 3 cases pass, 1 were not reached: case 2 of 3: the program ended with exit code 0" in score.reason


@pytest.mark.slow
async def test_the_limits_hold_for_all_cases_together(judge: Judge):
    burn = "import time\ndef f(x):\n    while time.process_time() < x * 0.45: pass\n    return x + 1"
    assert (await judge(CALLS, burn)).reason.startswith("case 3 of 3: the program takes more than 1 s of CPU")
    script = "import time\nwhile time.process_time() < 0.6: pass\nprint(int(input()) + 1)"
    score = await judge(SCRIPT, script)
    assert (score.outcome, score.reason.split(":")[0]) == (TIMEOUT, "case 3 of 3")


async def test_broken_tests_are_infra_not_0(judge: Judge):
    with pytest.raises(BrokenTests, match="name 'undefined' is not defined"):
        await judge({"entry_point": "f", "test": "def check(candidate):\n    undefined(candidate(1))"}, "def f(x): return 1")
    with pytest.raises(BrokenTests, match="asked nothing"):
        await judge({"entry_point": "f", "test": "def check(candidate): pass"}, "def f(x): return 1")


@pytest.mark.parametrize("reference", [{"entry_point": "f", "cases": []}, {"test_list": []}, {}])
async def test_without_cases_a_task_is_refused(sandbox: FakeSandbox, reference: Any):
    with pytest.raises(InvalidReference):
        UnitTests(sandbox=sandbox).prepare(reference)


async def test_no_expected_value_and_no_test_reaches_the_program(judge: Judge, sandbox: FakeSandbox):
    secrets = [{"entry_point": "f", "cases": [{"args": [1], "expected": "s3cret"}]}, TEST_LIST | {"test_setup_code": "s3cret = 1"}]
    for reference in secrets:
        await judge(reference, "def f(x): return x + 1")
    look = """
import gc, sys
def f(x):
    seen = repr([o for o in gc.get_objects() if type(o) in (str, dict, list, tuple)])
    frame = sys._getframe()
    while frame:
        seen += repr((frame.f_locals, frame.f_globals))
        frame = frame.f_back
    return "terc3s"[::-1] in seen or "(f tressa"[::-1] in seen"""
    for reference in (
        {"entry_point": "f", "cases": [{"args": [1], "expected": False}, {"args": [2], "expected": "s3cret"}]},
        {"entry_point": "f", "test_setup_code": "s3cret = 1", "test_list": ["assert f(1) is False"]},
    ):
        score = await judge(reference, look, count="fraction")
        assert score.value, score.reason  # it returned False: nothing was seen
    assert all("s3cret" not in program.source for program in sandbox.programs)


def test_the_options_are_checked():
    entry = find("unit_tests")
    assert set(entry.options.model_fields) == {"limits", "count", "fence"}
    assert entry.provided == ("workers", "sandbox")
    with pytest.raises(Exception, match=r"limits.cpu_sec is not an? \w+ of .*Did you mean cpu_s\?"):
        entry.validated({"limits": {"cpu_sec": 1}})
    with pytest.raises(Exception, match="count is 'some', which is not one of until_failure, all, fraction"):
        entry.validated({"count": "some"})


def test_a_solution_in_the_reference_is_its_own_example(sandbox: FakeSandbox):
    verifier = UnitTests(sandbox=sandbox)
    assert verifier.example(CALLS) is None
    assert verifier.example(TEST_LIST | {"code": "def f(x): return x + 1"}) == "```python\ndef f(x): return x + 1\n```"
