"""How often the verifier `math` agrees with labelled cases of other graders, and where it does not.

    python benchmarks/labelled_math.py CASES.jsonl                      the share, and the disagreements
    python benchmarks/labelled_math.py CASES.jsonl -o docs/math_cases.md     the same as a page

A case is a line {"id", "gold", "answer", "expected": 0 or 1}. The answers are bare ones, sentences and whole completions, and the
graders they come from evaluate what is left unevaluated and round; so they are judged by the mix `math_lenient`, which is made to
stand beside such graders. The page tells ids and reasons, and copies no case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from verifiers.errors import InvalidReference
from verifiers.service import Text, VerifierService
from verifiers.types import Task

MIX = "math_lenient"
FALSE_CHAIN = "It equates two different numbers; which of them is meant, it does not say. Two answers at once are none."
FALSE_EQUATION = "It equates two different numbers. A statement that is false states no value."
ROUGH = "Two digits are too few for a rounded value: 0.33 would also stand for 0.334 and for 0.326."
REGION = "The absolute value of z is a distance in the plane as often as on the line, where the two sets differ."
BROKEN = "The reference opens a box that never closes, so it is refused when tasks are loaded; it also names another variable."
WHY = {
    "c8f69604829f": FALSE_EQUATION,
    "2c9525357ab2": FALSE_EQUATION,
    "9152931f8582": FALSE_CHAIN,
    "53224d814f70": FALSE_CHAIN,
    "fa6a8fd171ec": "The reference itself equates different numbers, so nothing can be said of the answer.",
    "f7cb5e6531f2": ROUGH,
    "211b29f9a988": ROUGH,
    "6641dedc55bf": "An inequality in x equals the interval it describes. The same pair stands in the file with the other verdict.",
    "19d791e6cb4c": "A reference of two boxes with noise between them is read as its last box, not as a set of both.",
    "f11bc887322c": REGION,
    "44dc56e00932": REGION,
    "49b60d3d27fd": BROKEN,
    "013b6e6baad5": BROKEN,
    "1459d8527009": "A function of x and a function of y are different expressions; only that grader's loose mode renames them.",
}


class Judged(NamedTuple):
    """A case and what was made of it. `reward` is None where the reference was refused."""

    case: dict[str, Any]
    reward: float | None
    reason: str

    @property
    def agrees(self) -> bool:
        return bool(self.reward) is bool(self.case["expected"])


async def judge(cases: Sequence[dict[str, Any]], mix: str = MIX) -> list[Judged]:
    """Each case judged on its own, in order."""
    service = VerifierService({})
    try:
        return [await _judged(service, case, mix) for case in cases]
    finally:
        await service.close()


async def _judged(service: VerifierService, case: dict[str, Any], mix: str) -> Judged:
    task = Task(str(case["id"]), "", case["gold"], mix)
    try:
        await service.prepare([task])
    except InvalidReference as error:
        return Judged(case, None, str(error))
    (verdict,) = await service.judge(task, [Text(case["answer"], None)])
    return Judged(case, verdict.reward, verdict.scores[0].reason)


def read_cases(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def page(name: str, judged: Sequence[Judged]) -> str:
    """The disagreements as Markdown."""
    disagreements = [one for one in judged if not one.agrees]
    lines = [
        f"# Where `math` disagrees with `{name}`",
        "",
        f"The mix `{MIX}` gives {summary(judged)}.",
        f"Made by `python benchmarks/labelled_math.py {name} -o docs/math_cases.md`.",
        "",
        "| case | they say | we say | why |",
        "|---|---|---|---|",
    ]
    for one in disagreements:
        ours = "refused" if one.reward is None else "right" if one.reward else "wrong"
        theirs = "right" if one.case["expected"] else "wrong"
        lines.append(f"| `{one.case['id']}` | {theirs} | {ours} | {WHY.get(one.case['id'], 'not looked into yet')} |")
    return "\n".join(lines) + "\n"


def summary(judged: Sequence[Judged]) -> str:
    """How many agree, and how the others are divided."""
    disagreements = [one for one in judged if not one.agrees]
    accepted, agree = sum(bool(one.reward) for one in disagreements), len(judged) - len(disagreements)
    return (
        f"{agree} of {len(judged)} cases the verdict that their authors expect ({agree / len(judged):.1%}); it accepts {accepted} "
        f"that they reject and rejects {len(disagreements) - accepted} that they accept"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, metavar="CASES.jsonl")
    parser.add_argument("-o", "--output", type=Path, metavar="PAGE.md")
    parser.add_argument("--mix", default=MIX, help=f"reward mix (default: {MIX})")
    args = parser.parse_args()
    judged = asyncio.run(judge(read_cases(args.cases), args.mix))
    disagreements = [one for one in judged if not one.agrees]
    for one in disagreements:
        print(f"{one.case['id']}  expected {one.case['expected']}, got {one.reward}: {one.reason}")
    print(summary(judged))
    if args.output is not None:
        args.output.write_text(page(args.cases.name, judged))


if __name__ == "__main__":
    main()
