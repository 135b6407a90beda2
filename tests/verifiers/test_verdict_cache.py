"""What was judged once is not judged again, and nothing grows without bound."""

from __future__ import annotations

from typing import Any

import pytest

from verifiers.math_answer import MathAnswer
from verifiers.math_number import exact_number, plain_number
from verifiers.math_spelling import normalized
from verifiers.types import Task, correct, timeout
from verifiers.verdict_cache import VerdictCache

TASK = Task("t", "", r"1+\sqrt{2}", "math")


class CountingPool:
    """Answers every question with yes, and counts them."""

    def __init__(self) -> None:
        self.num_asked = 0

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        self.num_asked += 1
        return {"verdicts": [[True, "so be it"] for _ in question["questions"]]}

    def counters(self) -> dict[str, int]:
        return {}


@pytest.fixture
def verifier() -> MathAnswer:
    made = MathAnswer()
    made._pool = CountingPool()  # type: ignore[assignment]
    return made


async def test_the_same_answer_in_another_text_asks_no_worker_again(verifier: MathAnswer):
    first = await verifier.score(TASK, r"so \boxed{\sqrt{2}+1}")
    again = verifier.score_now(Task("another", "", TASK.reference, "math"), r"<think>hm</think> It is \boxed{\sqrt{2}+1}!")
    assert again == first
    assert verifier._pool.num_asked == 1  # type: ignore[attr-defined]
    assert verifier.counters() == {"known": 1}
    assert verifier.counters() == {"known": 0}


async def test_another_reference_or_answer_is_judged_anew(verifier: MathAnswer):
    await verifier.score(TASK, r"\boxed{\sqrt{2}+1}")
    assert verifier.score_now(TASK, r"\boxed{\sqrt{2}+2}") is None
    assert verifier.score_now(Task("t", "", r"2+\sqrt{2}", "math"), r"\boxed{\sqrt{2}+1}") is None


async def test_an_answer_beside_other_boxes_is_not_kept(verifier: MathAnswer):
    for _ in range(2):
        await verifier.score(TASK, r"\boxed{\sqrt{3}} and after that \boxed{\sqrt{2}+1}")
    assert verifier._pool.num_asked == 4  # type: ignore[attr-defined]


def test_the_oldest_score_makes_room_and_what_ran_out_of_time_is_not_kept():
    cache = VerdictCache(size=2)
    for key in ("a", "b", "c"):
        cache.keep(key, correct(key))
    cache.keep("d", timeout("slow"))
    assert cache.get("a") is cache.get("d") is None
    assert cache.get("b") == correct("b")
    assert cache.get("c") == correct("c")


@pytest.mark.parametrize(
    "answer", ["42", "-42", "+42", "1,234", "1,234.50", "007", " 7 ", "0.5", "12,34", "0,125", "5.", "½", "1/2", "5x"]
)
def test_a_plain_number_is_what_the_whole_reading_says_of_it(answer: str):
    plain, whole = plain_number(answer), exact_number(normalized(answer))
    if plain is not None:
        assert whole is not None
        assert (plain, whole.unit, whole.is_percent) == (whole.value, "", False)
