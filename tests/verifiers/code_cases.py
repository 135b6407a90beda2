"""References for one task, `f(x) = x + 1`, in every form there is."""

from __future__ import annotations

CALLS = {"entry_point": "f", "cases": [{"args": [n], "expected": n + 1} for n in (1, 2, 3)]}
TEST = {"entry_point": "f", "test": "def check(candidate):\n    for n in (1, 2, 3):\n        assert candidate(n) == n + 1\n"}
TEST_LIST = {"test_list": [f"assert f({n}) == {n + 1}" for n in (1, 2, 3)]}
CHECKED = {
    "entry_point": "f",
    "cases": [{"args": [n]} for n in (1, 2, 3)],
    "checker": "def check(answer, case):\n    return answer - case['args'][0] == 1",
}
FORMS = {"calls": CALLS, "test": TEST, "test_list": TEST_LIST, "checker": CHECKED}
SCRIPT = {"cases": [{"stdin": f"{n}\n", "stdout": f"{n + 1}\n"} for n in (1, 2, 3)]}
CHECKED_SCRIPT = {
    "cases": [{"stdin": str(n), "sum": n + 1} for n in (1, 2, 3)],
    "checker": "def check(answer, case):\n    return int(answer) == case['sum']",
}
SCRIPTS = {"stdout": SCRIPT, "checker": CHECKED_SCRIPT}
