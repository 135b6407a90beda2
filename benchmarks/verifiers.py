"""How long the verifier `math` takes for a completion, beside math-verify, on the same pairs, in one run, on one core.

    python benchmarks/verifiers.py                         generated pairs, about a minute
    python benchmarks/verifiers.py --gsm8k gsm8k_test.jsonl    also the solutions of GSM8K's own file
    python benchmarks/verifiers.py --json FILE             the same figures for a program

Ours goes through the whole service (mix, verdict, metrics), eight completions at a time; its workers run on the same core as all
else. math-verify has its references parsed before the clock starts, as ours has. Half of the answers are right. Rounds alternate
between the two; shown are medians over the rounds. What a table says about other machines is in its ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from verifiers.service import Text, VerifierService
from verifiers.types import Task

GROUP_SIZE = 8
WANTED, WANTED_ON_EXPRESSIONS = 20, 1.5  # times as fast as math-verify


class Pair(NamedTuple):
    """A reference and a completion."""

    reference: str
    completion: str
    is_right: bool


class Timed(NamedTuple):
    """Seconds for each pair, and how many verdicts were as the pair says."""

    seconds: list[float]
    num_agreed: int


def answers(rng: random.Random) -> Iterator[Pair]:
    """Worked solutions of sums about everyday things, with a whole number at the end, as in GSM8K."""
    while True:
        a, b, c = rng.randint(2, 900), rng.randint(2, 90), rng.randint(2, 12)
        total = a + b * c
        is_right = rng.random() < 0.5
        given = total if is_right else total + rng.choice([-10, -1, 1, 9, 100])
        story = (
            f"There are {a} apples at first. {c} boxes of {b} are {b}*{c} = <<{b}*{c}={b * c}>>{b * c} more.\n"
            f"Together these are {a}+{b * c} = <<{a}+{b * c}={total}>>{total} apples, so we are done.\n"
        )
        yield Pair(f"{story}#### {total:,}", f"{story}The answer is $\\boxed{{{given:,}}}$.", is_right)


def expressions(rng: random.Random) -> Iterator[Pair]:
    """Fractions, radicals, polynomials, intervals, sets and matrices, in this order."""
    while True:
        for make in (_fraction, _radical, _polynomial, _interval, _set, _matrix):
            is_right = rng.random() < 0.5
            reference, answer = make(rng, 0 if is_right else rng.randint(1, 3))
            yield Pair(reference, f"After all this, the result is $\\boxed{{{answer}}}$.", is_right)


def _fraction(rng: random.Random, off: int) -> tuple[str, str]:
    a, b, c = rng.randint(2, 400), rng.randint(2, 400), rng.randint(2, 9)
    return rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a * c + off}}}{{{b * c}}}"


def _radical(rng: random.Random, off: int) -> tuple[str, str]:
    a, b = rng.randint(2, 60), rng.choice([2, 3, 5, 6, 7, 10, 11, 13, 14, 15])
    return rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b + off}}}"


def _polynomial(rng: random.Random, off: int) -> tuple[str, str]:
    a, b = rng.randint(2, 90), rng.randint(2, 90)
    return f"(x+{a})(x-{b})", f"x^2{a - b:+d}x-{a * b + off}" if a - b else f"x^2-{a * b + off}"


def _interval(rng: random.Random, off: int) -> tuple[str, str]:
    a, b = rng.randint(-90, 90), rng.randint(100, 900)
    return f"[{a}, {b})", rf"\left[{a}, {b + off}\right)"


def _set(rng: random.Random, off: int) -> tuple[str, str]:
    a, b, c = rng.sample(range(2, 900), 3)
    return rf"\{{{a}, \sqrt{{{b}}}, {c}\}}", rf"\{{{c}, {a + off}, \sqrt{{{b}}}\}}"


def _matrix(rng: random.Random, off: int) -> tuple[str, str]:
    a, b, c = (rng.randint(2, 900) for _ in range(3))
    reference = rf"\begin{{pmatrix}} {a} & \frac{{1}}{{{b}}} \\ {c} & 1 \end{{pmatrix}}"
    return reference, rf"\begin{{bmatrix}} {a + off} & \frac{{2}}{{{2 * b}}} \\ {c} & 1.0 \end{{bmatrix}}"


def gsm8k(path: Path, rng: random.Random) -> Iterator[Pair]:
    """The file's own solutions with their answer in a box, or with another number."""
    for line in path.read_text().splitlines():
        solution = json.loads(line)["answer"]
        text, _, answer = solution.rpartition("####")
        is_right = rng.random() < 0.5
        given = answer.strip() if is_right else str(rng.randint(1, 9999)) + "5"
        yield Pair(solution, f"{text}\nThe answer is \\boxed{{{given}}}.", is_right)


def time_ours(pairs: Sequence[Pair]) -> Timed:
    """Through a new service, so that nothing is remembered from another round."""
    return asyncio.run(_time_ours(pairs))


async def _time_ours(pairs: Sequence[Pair]) -> Timed:
    service = VerifierService({}, workers=1)
    tasks = [Task(str(i), "", pair.reference, "math") for i, pair in enumerate(pairs)]
    await service.prepare(tasks)
    # The worker starts before the clock does.
    await service.judge(Task("", "", "x+1", "math"), [Text(r"\boxed{1+x}", None)])
    seconds, num_agreed = [], 0
    for at in range(0, len(pairs), GROUP_SIZE):
        group = list(zip(tasks[at : at + GROUP_SIZE], pairs[at : at + GROUP_SIZE], strict=True))
        started = time.perf_counter()
        verdicts = await asyncio.gather(*(service.judge(task, [Text(pair.completion, None)]) for task, pair in group))
        seconds += [(time.perf_counter() - started) / len(group)] * len(group)
        num_agreed += sum(verdict.is_correct is pair.is_right for (verdict,), (_, pair) in zip(verdicts, group, strict=True))
    await service.close()
    return Timed(seconds, num_agreed)


def time_math_verify(pairs: Sequence[Pair]) -> Timed:
    from math_verify import parse, verify

    references = [parse(f"\\boxed{{{pair.reference.rpartition('####')[2].strip()}}}") for pair in pairs]
    seconds, num_agreed = [], 0
    for reference, pair in zip(references, pairs, strict=True):
        started = time.perf_counter()
        is_correct = verify(reference, parse(pair.completion))
        seconds.append(time.perf_counter() - started)
        num_agreed += is_correct is pair.is_right
    return Timed(seconds, num_agreed)


def measure(pairs: Sequence[Pair], rounds: int) -> dict[str, Any]:
    """Medians over alternating rounds, in milliseconds for one completion."""
    ways: dict[str, Callable[[Sequence[Pair]], Timed]] = {"ours": time_ours, "math-verify": time_math_verify}
    timed = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            timed[name].append(run(pairs))
    figures: dict[str, Any] = {"pairs": len(pairs)}
    for name, results in timed.items():
        figures[name] = {
            "mean_ms": 1000 * statistics.median(statistics.mean(result.seconds) for result in results),
            "p50_ms": 1000 * statistics.median(statistics.median(result.seconds) for result in results),
            "p99_ms": 1000 * statistics.median(statistics.quantiles(result.seconds, n=100)[98] for result in results),
            "agreed": results[0].num_agreed / len(pairs),
        }
    figures["ratio"] = figures["math-verify"]["mean_ms"] / figures["ours"]["mean_ms"]
    return figures


def show(figures: dict[str, dict[str, Any]]) -> None:
    table = Table(title="milliseconds for one completion, one core")
    for column in ("pairs", "", "mean", "p50", "p99", "right verdicts", "times as fast"):
        table.add_column(column, justify="left" if column in ("pairs", "") else "right")
    for workload, figure in figures.items():
        for name in ("ours", "math-verify"):
            one = figure[name]
            label = f"{workload} ({figure['pairs']:,})" if name == "ours" else ""
            ratio = f"{figure['ratio']:.1f}" if name == "ours" else "1"
            numbers = (f"{one[key]:.3f}" for key in ("mean_ms", "p50_ms", "p99_ms"))
            table.add_row(label, name, *numbers, f"{one['agreed']:.1%}", ratio)
    console = Console(width=120, highlight=False)
    console.print(table)
    for workload, figure in figures.items():
        wanted = WANTED_ON_EXPRESSIONS if workload == "expressions" else WANTED
        console.print(f"verifiers, {workload}: {figure['ratio']:.1f} x as fast as math-verify (wanted {wanted})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, metavar="FILE", help="a JSONL file with `answer` on each line")
    parser.add_argument("--pairs", type=int, default=600, help="generated pairs of each kind (default: 600)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # workers inherit it
    workloads = {"GSM8K-like answers": answers(random.Random(0)), "expressions": expressions(random.Random(1))}
    if args.gsm8k is not None:
        workloads["GSM8K"] = gsm8k(args.gsm8k, random.Random(2))
    figures = {name: measure(list(islice(pairs, args.pairs)), args.rounds) for name, pairs in workloads.items()}
    show(figures)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
