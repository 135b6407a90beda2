"""Where a verifier that is told its answer looks for it: between tags, or in a box, after the reasoning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from verifiers.extract import Extraction, boxed_answer, final_region, tagged_answer
from verifiers.types import Score, unparseable, wrong

Inside = Annotated[
    Literal["answer_tags", "box"],
    Field(description="Where the answer stands after the reasoning: answer_tags: <answer>…</answer>; box: the last \\boxed{…}."),
]
MAX_SHOWN = 200


def stated_answer(text: str, inside: Inside) -> Extraction | Score:
    """The answer of the final region, or the score of a text that has none, or has several that differ."""
    region = final_region(text)
    found = tagged_answer(region) if inside == "answer_tags" else boxed_answer(region)
    if found is None:
        place = "<answer>…</answer>" if inside == "answer_tags" else "\\boxed{…}"
        return unparseable(f"no {place} after the reasoning" if region.strip() else "nothing after the reasoning")
    if found.others:
        return wrong(f"hedged: another answer says {found.others[0][:MAX_SHOWN]}", found.answer[:MAX_SHOWN])
    return found


def in_its_place(answer: str, inside: Inside) -> str:
    """A completion that states an answer and nothing else."""
    return f"<answer>{answer}</answer>" if inside == "answer_tags" else f"\\boxed{{{answer}}}"
