"""Which references are understood, and what is said of the others when tasks are loaded."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sandbox.agent.calls import Call, decode_call
from verifiers.code_reference import CallCase, OutputCase, parse_reference
from verifiers.errors import InvalidReference

CASE = {"args": [1], "expected": 2}
CHECK = "def check(candidate):\n    assert candidate(1) == 2\n"


def test_calls_have_arguments_and_an_expected_value():
    reference = parse_reference({"entry_point": "f", "cases": [CASE, {"kwargs": {"x": "a"}, "expected": None, "tolerance": 0.1}]})
    assert [decode_call(case.question) for case in reference.returns] == [Call((1,), {}), Call((), {"x": "a"})]
    assert [(case.expected, case.tolerance, case.call) for case in reference.returns] == [(2, 0.0, "f(1)"), (None, 0.1, "f(x='a')")]
    assert (reference.num_cases, reference.reads_stdin, reference.solution) == (2, False, None)


def test_without_an_entry_point_cases_are_about_a_script():
    reference = parse_reference({"cases": [{"stdin": "1", "stdout": "2"}, {"stdout": "x"}], "tolerance": 1e-6})
    assert reference.outputs == (OutputCase("1", "2", 1e-6), OutputCase("", "x", 1e-6))
    assert reference.reads_stdin


def test_values_that_json_cannot_say_are_written_in_the_typed_notation():
    cases = [{"args": [{"set": [1]}], "kwargs": {"x": {"dict": [[1, {"tuple": []}]]}}, "expected": {"tuple": [1, {"bytes": "ff"}]}}]
    typed = parse_reference({"entry_point": "f", "typed": True, "cases": cases}).returns[0]
    assert decode_call(typed.question) == Call(({1},), {"x": {1: ()}})
    assert typed.expected == (1, b"\xff")
    plain = parse_reference({"entry_point": "f", "cases": cases}).returns[0]
    assert plain.expected == {"tuple": [1, {"bytes": "ff"}]}  # a table like any other


def test_a_humaneval_row_is_a_reference_as_it_stands():
    prompt = "def f(x):\n    "
    row = {"task_id": "HumanEval/0", "prompt": prompt, "entry_point": "f", "canonical_solution": "    return x + 1", "test": CHECK}
    reference = parse_reference(row)
    assert reference.tests is not None
    assert reference.tests.setup == (prompt + "\n    pass\n", CHECK)
    assert reference.tests.tests == ("check(candidate)",)
    assert (reference.prompt, reference.solution, reference.num_cases) == (prompt, "    return x + 1", 1)


@pytest.mark.parametrize(
    ("tests", "setup", "entry_point"),
    [
        (["assert add(1, 2) == 3"], "", "add"),
        (["assert set(both((1, 2), (2, 3))) == set((2,))", "assert both((1,), ()) == ()"], "", "both"),
        (["import math\nassert math.isclose(area(2), 4.0)"], "", "area"),
        (["assert near(f(1), 2)"], "def near(a, b): return abs(a - b) < 1", "f"),
        (["assert isclose(f(1), 2)"], "from math import isclose", "f"),
        (["x = 3\nassert f(x) == sorted(y for y in g(x))", "assert f(1) == 1"], "", "f"),
    ],
)
def test_the_function_that_mbpp_tests_is_read_from_its_tests(tests: list[str], setup: str, entry_point: str):
    row = {"task_id": 2, "text": "?", "code": "def ...", "test_list": tests, "test_setup_code": setup, "challenge_test_list": []}
    reference = parse_reference(row)
    assert (reference.entry_point, reference.solution) == (entry_point, "def ...")
    assert reference.tests is not None
    assert reference.tests.tests == tuple(tests)


def test_a_checker_is_a_source_or_the_name_of_a_function():
    checker = "def check(answer, case):\n    return answer == case['args'][0]"
    reference = parse_reference({"entry_point": "f", "checker": checker, "cases": [{"args": [1]}, {"args": [2], "limit": 3}]})
    assert reference.tests is not None
    assert reference.tests.setup == (checker,)
    assert reference.tests.cases == ({"args": [1], "kwargs": {}}, {"args": [2], "limit": 3, "kwargs": {}})
    named = parse_reference({"cases": [{"stdin": "1"}], "checker": "my_lab.checkers:is_path"})
    assert named.tests is not None
    assert "from my_lab.checkers import is_path as check" in named.tests.setup[0]
    assert named.reads_stdin


BAD: list[tuple[Any, str]] = [
    ("42", "the reference is '42', but unit_tests needs a table with cases, test or test_list."),
    (None, "the reference is None"),
    ([CASE], "the reference is [{'args'"),
    ({}, "the reference holds none of them, but nothing; unit_tests needs one of cases, test and test_list."),
    ({"case": [CASE]}, "holds none of them, but case; unit_tests needs one of cases, test and test_list. Did you mean cases?"),
    ({"cases": [CASE], "test": CHECK, "entry_point": "f"}, "the reference holds cases and test;"),
    ({"entry_point": "f", "cases": []}, "cases is empty, so every program would pass. Give at least one, or drop the task."),
    ({"test_list": []}, "test_list is empty"),
    ({"entry_point": "f", "cases": {}}, "cases is {}, but it should be a list."),
    ({"entry_point": "f", "cases": [1]}, "case 1 is 1, but it should be a table."),
    ({"cases": [CASE]}, "the cases have args but the reference has no entry_point."),
    ({"cases": [{"expected": 2}]}, "case 1 has no stdout. Add an entry_point beside the cases."),
    ({"cases": [{"stdin": "1"}]}, "case 1 has no stdout. Add what the program should write."),
    ({"cases": [{"stdin": 1, "stdout": "1"}]}, "stdin is 1, but it should be text."),
    (
        {"entry_point": "f", "cases": [CASE, {"args": []}]},
        "case 2 has no expected value. Add expected, or a checker",
    ),
    ({"entry_point": "f", "cases": [{"args": 1, "expected": 1}]}, "case 1: args should be a list and kwargs a table."),
    ({"entry_point": "f", "cases": [{"kwargs": [], "expected": 1}]}, "case 1: args should be a list and kwargs a table."),
    ({"entry_point": "f", "cases": [{"expected": "x" * 2**20}]}, "case 1 cannot be used: the data is larger than 1,048,576 bytes."),
    ({"entry_point": "f", "typed": True, "cases": [{"expected": {"a": 1}}]}, "case 1 cannot be used: 'a' is no type of plain data"),
    (
        {"entry_point": "f", "typed": True, "cases": [{"args": [{"set": [[]]}]}]},
        "case 1: the arguments are not in the typed nota",
    ),
    ({"entry_point": "f", "cases": [CASE], "tolerance": 1}, "tolerance is 1, but it should be a number from 0 to below 1."),
    ({"entry_point": "f", "cases": [CASE | {"tolerance": -1}]}, "tolerance is -1"),
    ({"entry_point": "f", "cases": [CASE | {"tolerance": True}]}, "tolerance is True"),
    ({"entry_point": "f", "cases": [CASE | {"tolerance": float("nan")}]}, "tolerance is nan"),
    ({"entry_point": "import os", "cases": [CASE]}, "the entry point 'import os' is not the name of a function."),
    ({"entry_point": "", "cases": [CASE]}, "the entry point '' is not the name of a function."),
    ({"entry_point": 7, "cases": [CASE]}, "the entry point '7' is not the name of a function."),
    ({"test": CHECK}, "the reference has a test but no entry_point."),
    ({"entry_point": "f", "test": "def check(candidate"}, "is not Python: '(' was never closed"),
    ({"entry_point": "f", "test": "assert f(1) == 2"}, "the test defines no function check. It should hold def check(...)."),
    ({"entry_point": "f", "test": 7}, "test is 7, but it should be text."),
    ({"entry_point": "f", "test": CHECK, "prompt": "def f(x"}, "the prompt 'def f(x\\n    pass\\n' is not Python"),
    (
        {"entry_point": "f", "test": CHECK, "canonical_solution": 7},
        "the reference's solution is 7, but it should be Python",
    ),
    ({"test_list": ["assert 1 +"]}, "the test 'assert 1 +' is not Python: invalid syntax"),
    ({"test_list": [7]}, "the test 7 is not Python"),
    ({"entry_point": "f", "test_list": ["assert f(1", "assert f(1) == 2"]}, "the test 'assert f(1' is not Python"),
    ({"test_list": ["assert True"]}, "the tests call no function in common, so what they test is unclear. Add entry_point"),
    ({"test_list": ["assert f(g(1)) == 2"]}, "the tests call f, g in common"),
    ({"test_list": ["assert f(1)", "assert g(1)"]}, "the tests call no function in common"),
    ({"cases": [{"stdin": ""}], "checker": "return True"}, "the checker defines no function check."),
    ({"cases": [{"stdin": ""}], "checker": "module:"}, "the checker 'module:' is not Python"),
    ({"cases": [{"x": object()}], "checker": "a:b"}, "the cases cannot be given to the checker: object is no plain data."),
    ({"cases": [], "checker": "a:b"}, "cases is empty"),
]


@pytest.mark.parametrize(("reference", "message"), BAD, ids=[message[:50] for _, message in BAD])
def test_a_reference_that_cannot_be_meant_is_told(reference: Any, message: str):
    with pytest.raises(InvalidReference) as caught:
        parse_reference(reference)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "reference",
    [
        {"entry_point": "f", "cases": [{"args": ["\x00" * 100, "\ud800"], "expected": "\ud800"}]},
        {"entry_point": "f", "cases": [{"expected": [[[]]] * 1000}]},
        {"cases": [{"stdin": "\x00\ud800", "stdout": "\x00\ud800"}]},
    ],
)
def test_any_text_may_stand_in_a_case(reference: Any):
    assert parse_reference(reference).num_cases == 1


def test_a_call_is_shown_short():
    (case,) = parse_reference({"entry_point": "f", "cases": [{"args": ["x" * 1000] * 9, "expected": 1}]}).returns
    assert isinstance(case, CallCase)
    assert len(case.call) <= 200


@pytest.mark.slow
def test_references_are_parsed_in_several_threads_at_one_time():
    # Where a collection of garbage lets another thread parse, Python 3.11 may refuse what is right: a SystemError about depth.
    row = {"entry_point": "f", "test": "def check(candidate):\n" + "    assert candidate((1, [2])) == {'a': [1, (2, 3)]}\n" * 200}
    thresholds = gc.get_threshold()
    gc.callbacks.append(let_others_run := lambda *_: time.sleep(0))
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(8) as threads:
            assert {parsed.num_cases for parsed in threads.map(parse_reference, [row] * 20)} == {1}
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(let_others_run)
