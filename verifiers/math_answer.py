"""The verifier `math`: is the boxed answer equal to the reference? VERIFIERS.md's order, from extraction to comparison."""

from __future__ import annotations

from typing import Any

from verifiers.errors import InvalidReference
from verifiers.extract import boxed_answer, final_region
from verifiers.registry import verifier
from verifiers.types import Score, Task, correct, unparseable, wrong


@verifier("math")
class MathAnswer:
    """Whether the last box of the final region equals the reference."""

    def __init__(self, *, workers: int = 2) -> None:
        self._workers = workers

    def prepare(self, reference: Any) -> str:
        if not isinstance(reference, (str, int, float)):
            raise InvalidReference(f"{reference!r} is not an answer.")
        return str(reference).rpartition("####")[2].strip()

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        found = boxed_answer(final_region(text))
        if found is None:
            return unparseable("no \\boxed{…} after the reasoning")
        same = found.answer.strip() == self.prepare(task.reference)
        return correct("equal", found.answer) if same else wrong("different", found.answer)

    async def close(self) -> None:
        pass
