"""One pool of symbolic workers for all tests that need one: starting sympy is what takes the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from verifiers.math_answer import MathAnswer
from verifiers.types import Score, Task


@pytest.fixture(scope="session")
def math() -> Iterator[MathAnswer]:
    verifier = MathAnswer()
    yield verifier
    asyncio.run(verifier.close())


@pytest.fixture
def judge(math: MathAnswer) -> Callable[[object, str], Score]:
    """Score a text (or, without a box, the boxed text) against a reference."""

    def judge(reference: object, answer: str, verifier: MathAnswer = math) -> Score:
        text = answer if "\\boxed" in answer else "\\boxed{" + answer + "}"
        return asyncio.run(verifier.score(Task("t", "", reference, "math"), text))

    return judge
