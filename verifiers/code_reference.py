"""What a task's reference says about its program: the entry point, and cases or tests in one of four forms.

    {"cases": [{"stdin": "2 3", "stdout": "5"}]}                                    a script that reads stdin
    {"entry_point": "f", "cases": [{"args": [2], "kwargs": {}, "expected": 3}]}     a function, called
    {"entry_point": "f", "test": "def check(candidate): ..."}                       HumanEval
    {"test_list": ["assert f(2) == 3"], "test_setup_code": ""}                      MBPP; the entry point is read from the tests

Any of them may also hold a `prompt` that the program begins with, and a solution (`canonical_solution`, or `code`) to check the
tests with. Cases may hold a `tolerance` for floats, as may the whole; `"typed": true` says that values are in the notation of
sandbox/agent/calls.py. Answers that are not unique have a `checker`, the source of `check(answer, case) -> bool` or the
`module:name` of such a function. `"nan": true` lets tests and checkers see NaN. Other names are left alone: public examples, which
carry no weight, are among them.
"""

from __future__ import annotations

import ast
import builtins
import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sandbox.agent import calls
from sandbox.errors import ProgramError
from sandbox.types import Program
from verifiers.code_compare import shown
from verifiers.code_referee import TrustedTests
from verifiers.errors import InvalidReference
from verifiers.options import did_you_mean

FORMS = ("cases", "test", "test_list")
# Python 3.11 counts the depth of one parse in all threads together, and then refuses one that was right (cpython issue 106905).
_one_parse_at_a_time = threading.Lock()
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class OutputCase:
    """A script gets `stdin` and should write `stdout`."""

    stdin: str
    stdout: str
    tolerance: float


@dataclass(frozen=True, slots=True)
class CallCase:
    """A function gets `question` and should return `expected`. `call` is how a person would write the call."""

    question: str
    expected: Any
    tolerance: float
    call: str


@dataclass(frozen=True, slots=True)
class CodeReference:
    """A reference, understood. One of `outputs`, `returns` and `tests` holds something.

    `reads_stdin` tells scripts from functions; `tests` may concern either. `solution` is None when the reference has none.
    """

    entry_point: str | None
    prompt: str
    solution: str | None
    outputs: tuple[OutputCase, ...] = ()
    returns: tuple[CallCase, ...] = ()
    tests: TrustedTests | None = None

    @property
    def reads_stdin(self) -> bool:
        return self.entry_point is None

    @property
    def num_cases(self) -> int:
        return len(self.outputs) + len(self.returns) + (len(self.tests.tests) if self.tests else 0)


def parse_reference(reference: Any) -> CodeReference:
    """Raises InvalidReference."""
    if not isinstance(reference, Mapping):
        raise InvalidReference(f"the reference is {reference!r:.60}, but unit_tests needs a table with cases, test or test_list.")
    forms = [form for form in FORMS if form in reference]
    if len(forms) != 1:
        names = [str(name) for name in reference]
        hint = next((hint for name in names if (hint := did_you_mean(name, FORMS))), "") if not forms else ""
        told = " and ".join(forms) or f"none of them, but {', '.join(names)[:80] or 'nothing'}"
        raise InvalidReference(
            f"the reference holds {told}; unit_tests needs one of cases, test and test_list.{' ' if hint else ''}{hint}"
        )
    prompt = _text(reference, "prompt", "")
    entry_point = _entry_point(reference, forms[0])
    solution = reference.get("canonical_solution", reference.get("code"))
    if solution is not None and not isinstance(solution, str):
        raise InvalidReference(f"the reference's solution is {solution!r:.60}, but it should be Python source.")
    if forms[0] == "cases":
        return _cases(reference, entry_point, prompt, solution)
    if entry_point is None:
        raise InvalidReference("the reference has a test but no entry_point. Add the name of the function that is tested.")
    make = _check_function if forms[0] == "test" else _assertions
    return CodeReference(entry_point, prompt, solution, tests=make(reference, entry_point, prompt))


# Cases


def _cases(reference: Mapping[str, Any], entry_point: str | None, prompt: str, solution: str | None) -> CodeReference:
    cases = _some(reference, "cases")
    for number, case in enumerate(cases, 1):
        if not isinstance(case, Mapping):
            raise InvalidReference(f"case {number} is {case!r:.60}, but it should be a table.")
    if entry_point is None and any("args" in case or "kwargs" in case for case in cases):
        raise InvalidReference("the cases have args but the reference has no entry_point. Add the name of the function to call.")
    if "checker" in reference:
        tests = _checked(reference, entry_point, cases)
        return CodeReference(entry_point, prompt, solution, tests=tests)
    if entry_point is None:
        outputs = tuple(_output_case(reference, case, number) for number, case in enumerate(cases, 1))
        return CodeReference(None, prompt, solution, outputs=outputs)
    returns = tuple(_call_case(reference, entry_point, case, number) for number, case in enumerate(cases, 1))
    return CodeReference(entry_point, prompt, solution, returns=returns)


def _output_case(reference: Mapping[str, Any], case: Mapping[str, Any], number: int) -> OutputCase:
    if "stdout" not in case:
        hint = "an entry_point beside the cases" if "expected" in case else "what the program should write"
        raise InvalidReference(f"case {number} has no stdout. Add {hint}.")
    return OutputCase(_text(case, "stdin", ""), _text(case, "stdout", ""), _tolerance(reference, case))


def _call_case(reference: Mapping[str, Any], entry_point: str, case: Mapping[str, Any], number: int) -> CallCase:
    args, kwargs = _arguments(reference, case, number)
    if "expected" not in case:
        raise InvalidReference(f"case {number} has no expected value. Add expected, or a checker for all cases.")
    written = ", ".join([*map(shown, args), *(f"{name}={shown(value)}" for name, value in kwargs.items())])
    try:
        question = calls.encode_call(tuple(args), kwargs)
        expected = _value(reference, case["expected"])
        calls.encode(expected)
    except ValueError as error:
        raise InvalidReference(f"case {number} cannot be used: {error}.") from None
    return CallCase(question, expected, _tolerance(reference, case), f"{entry_point}({written})"[:200])


def _arguments(reference: Mapping[str, Any], case: Mapping[str, Any], number: int) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = case.get("args", []), case.get("kwargs", {})
    if not isinstance(args, list) or not isinstance(kwargs, Mapping):
        raise InvalidReference(f"case {number}: args should be a list and kwargs a table.")
    try:
        return [_value(reference, arg) for arg in args], {str(name): _value(reference, value) for name, value in kwargs.items()}
    except ValueError as error:
        raise InvalidReference(f"case {number}: the arguments are not in the typed notation: {error}.") from None


def _value(reference: Mapping[str, Any], written: Any) -> Any:
    """Raises ValueError."""
    return calls.from_tree(written) if reference.get("typed") is True else written


def _checked(reference: Mapping[str, Any], entry_point: str | None, cases: Sequence[Mapping[str, Any]]) -> TrustedTests:
    """One test for each case: the checker, given the answer and the case."""
    checker = _text(reference, "checker", "")
    if _FUNCTION.fullmatch(checker):
        module, name = checker.split(":")
        # As `grpo` itself finds a plugin's module: installed, or in the folder it was started from.
        setup = f"import sys\nsys.path.append({os.getcwd()!r})\nfrom {module} import {name} as check\n"
    else:
        _must_define_check(checker, "checker")
        setup = checker
    given: list[Any] = []
    for number, case in enumerate(cases, 1):
        args, kwargs = _arguments(reference, case, number) if entry_point is not None else ([_text(case, "stdin", "")], {})
        given.append({**case, "args": args, "kwargs": kwargs})
        if "expected" in case:
            given[-1]["expected"] = _value(reference, case["expected"])
    try:
        calls.encode(given)
    except ValueError as error:
        raise InvalidReference(f"the cases cannot be given to the checker: {error}.") from None
    tests = (f"assert check(candidate(*cases[{i}]['args'], **cases[{i}]['kwargs']), cases[{i}]) is True" for i in range(len(cases)))
    return TrustedTests((setup,), tuple(tests), entry_point or "main", tuple(given), nan=reference.get("nan") is True)


# Tests


def _check_function(reference: Mapping[str, Any], entry_point: str, prompt: str) -> TrustedTests:
    test = _text(reference, "test", "")
    _must_define_check(test, "test")
    setup = (_as_module(prompt), test) if prompt else (test,)
    return TrustedTests(setup, ("check(candidate)",), entry_point, nan=reference.get("nan") is True)


def _assertions(reference: Mapping[str, Any], entry_point: str, prompt: str) -> TrustedTests:
    tests = _some(reference, "test_list")
    for test in tests:
        _parsed(test, "test")
    setup = (_as_module(prompt), _setup_code(reference)) if prompt else (_setup_code(reference),)
    return TrustedTests(setup, tuple(tests), entry_point, nan=reference.get("nan") is True)


def _entry_point(reference: Mapping[str, Any], form: str) -> str | None:
    entry_point = reference.get("entry_point")
    if entry_point is None and form == "test_list":
        entry_point = _called_in(_some(reference, "test_list"), _setup_code(reference))
    if entry_point is None:
        return None
    try:
        Program("", entry_point=str(entry_point))
    except ProgramError as error:
        raise InvalidReference(str(error)) from None
    return str(entry_point)


def _called_in(tests: Iterable[Any], setup: str) -> str:
    """The one function that every test calls and that neither Python nor the setup defines."""
    known = {*vars(builtins), *_bound(_parsed(setup, "test_setup_code"))}
    called: set[str] | None = None
    for test in tests:
        tree = _parsed(test, "test")
        names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        names -= known | _bound(tree)
        called = names if called is None else called & names
    if called is None or len(called) != 1:
        told = ", ".join(sorted(called or ())) or "no function"
        raise InvalidReference(f"the tests call {told} in common, so what they test is unclear. Add entry_point to the reference.")
    return called.pop()


def _bound(tree: ast.Module) -> set[str]:
    """Names that the statements of a module bind."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _setup_code(reference: Mapping[str, Any]) -> str:
    return _text(reference, "test_setup_code", "")


def _must_define_check(source: str, name: str) -> None:
    if "check" not in _bound(_parsed(source, name)):
        raise InvalidReference(f"the {name} defines no function check. It should hold def check(...).")


def _as_module(prompt: str) -> str:
    """The prompt alone, with a body for its last function when it has none: tests may use the helpers that it defines."""
    try:
        _parsed(prompt, "prompt")
    except InvalidReference:
        prompt = f"{prompt}\n    pass\n"
        _parsed(prompt, "prompt")
    return prompt


def _parsed(source: Any, name: str) -> ast.Module:
    """The syntax of a source of ours; a model's is never parsed here."""
    try:
        with _one_parse_at_a_time:
            return ast.parse(source)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InvalidReference(f"the {name} {shown(source)} is not Python: {error}. Mend it.") from None


# Fields


def _text(table: Mapping[str, Any], name: str, default: str) -> str:
    value = table.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise InvalidReference(f"{name} is {value!r:.60}, but it should be text.")
    return value


def _some(reference: Mapping[str, Any], name: str) -> list[Any]:
    values = reference[name]
    if not isinstance(values, list):
        raise InvalidReference(f"{name} is {values!r:.60}, but it should be a list.")
    if not values:
        raise InvalidReference(f"{name} is empty, so every program would pass. Give at least one, or drop the task.")
    return values


def _tolerance(reference: Mapping[str, Any], case: Mapping[str, Any]) -> float:
    tolerance = case.get("tolerance", reference.get("tolerance", 0.0))
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise InvalidReference(f"tolerance is {tolerance!r:.60}, but it should be a number from 0 to below 1.")
    return float(tolerance)
