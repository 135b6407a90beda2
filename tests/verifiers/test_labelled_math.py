"""The labelled cases of other graders, which are not part of the project."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CASES = ROOT.parent / "shared" / "data" / "math_cases_dev.jsonl"

sys.path.insert(0, str(ROOT / "benchmarks"))
import labelled_math  # noqa: E402

needs_cases = pytest.mark.skipif(not CASES.exists(), reason="needs the labelled cases, which are not part of the project")


@needs_cases
async def test_the_lenient_mix_agrees_with_the_labels_of_96_percent_and_the_page_tells_the_rest():
    judged = await labelled_math.judge(labelled_math.read_cases(CASES))
    assert sum(one.agrees for one in judged) / len(judged) >= 0.96
    assert sum(bool(one.reward) and not one.agrees for one in judged) <= 1
    assert labelled_math.page(CASES.name, judged) == (ROOT / "docs" / "math_cases.md").read_text()


@needs_cases
async def test_a_disagreement_has_a_reason_that_somebody_wrote_down():
    judged = await labelled_math.judge(labelled_math.read_cases(CASES))
    assert {one.case["id"] for one in judged if not one.agrees} == set(labelled_math.WHY)


async def test_a_page_counts_and_explains():
    cases = [
        {"id": "a", "gold": "42", "answer": "so it is 42", "expected": 1},
        {"id": "b", "gold": "42", "answer": "41", "expected": 1},
        {"id": "c", "gold": "42", "answer": "42", "expected": 0},
        {"id": "d", "gold": "(", "answer": "42", "expected": 1},
    ]
    judged = await labelled_math.judge(cases)
    assert [one.agrees for one in judged] == [True, False, False, False]
    page = labelled_math.page("cases.jsonl", judged)
    assert "1 of 4 cases the verdict that their authors expect (25.0%); it accepts 1 that they reject and rejects 2" in page
    assert "| `d` | right | refused | not looked into yet |" in page
