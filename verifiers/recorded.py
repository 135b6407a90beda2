"""Judge completions that were recorded in a file, without a model: the engine of `grpo verify`.

Streams: any number of lines, of which only a window is in memory, and writes them in the order they came. A line that cannot be
judged becomes a line out with its cause.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sandbox.config import SandboxConfig
from sandbox.errors import UserError
from sandbox.protocol import Sandbox
from verifiers.options import explain
from verifiers.registry import entries, load_plugins
from verifiers.reward import Component, RewardMix
from verifiers.service import Text, VerifierService
from verifiers.types import Message, Task, Verdict

LINES_PER_WORKER = 32
_WHOLE = re.compile(r"\{(\w+)\}")

# A line out and its verdict, None where it could not be judged; and the same with the size of the line in.
LineOut = tuple[dict[str, Any], Verdict | None]
Verified = tuple[int, LineOut]


class Case(BaseModel):
    """One line in. `prompt` may be missing: most verifiers do not read it. Other fields are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, title="a line")

    id: str | int
    prompt: str | list[dict[str, str]] = ""
    reference: Any
    rewards: str
    completion: str
    num_tokens: int | None = None

    def task(self) -> Task:
        prompt = self.prompt
        if not isinstance(prompt, str):
            prompt = tuple(Message(turn.get("role", ""), turn.get("content", "")) for turn in prompt)
        return Task(str(self.id), prompt, self.reference, self.rewards)


@dataclass(slots=True)
class Summary:
    """What a file held: judged lines, lines without a reward by cause (the first words of it), and the mean reward."""

    num_lines: int = 0
    num_judged: int = 0
    num_correct: int = 0
    sum_rewards: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def mean_reward(self) -> float | None:
        """None when no line was judged."""
        return self.sum_rewards / self.num_judged if self.num_judged else None


def verify_file(
    cases: Path,
    out: Path,
    *,
    mixes: Mapping[str, RewardMix] | None = None,
    plugins: Sequence[str] = (),
    workers: int = 2,
    sandbox: SandboxConfig | Sandbox = SandboxConfig(),  # noqa: B008  # frozen
    fields: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Summary:
    """Judge every line of a JSONL file and write a line for each, in order.

    `mixes` come on top of the built-in ones and those of the plugins; `workers` is how many processes each verifier that needs any
    may keep, `sandbox` where programs run. `fields` are templates that make the fields of a Case of a line's own, such as
    `{"reference": "{gold}"}`. Raises UserError when a file cannot be opened; no content of a line raises.
    """
    if not cases.is_file():
        raise UserError(f"there is no file {cases}. Give a JSONL file with id, reference, rewards and completion on each line.")
    if out.exists() and out.samefile(cases):
        raise UserError(f"{out} is also the file to read. Write to another one.")
    service = VerifierService(mixes_of_plugins(plugins) | dict(mixes or {}), workers=workers, sandbox=sandbox)
    try:
        with cases.open("rb") as lines, out.open("w", encoding="ascii") as written, _bar(cases, show=progress) as advance:
            verified = _in_order(service, lines, workers * LINES_PER_WORKER, fields or {})
            return asyncio.run(_verify_all(service, verified, written.write, advance))
    except OSError as error:
        raise UserError(f"{error.filename or out}: {error.strerror}.") from None


def mixes_of_plugins(plugins: Sequence[str]) -> dict[str, RewardMix]:
    """Each verifier of a plugin as a mix of its own name that holds it alone, so that none needs a config to be tried.

    Those that need options are left out: only a config has them.
    """
    load_plugins(plugins)
    tried = [entry for entry in entries() if entry.plugin is not None]
    needs_options = {entry.name for entry in tried if any(each.is_required() for each in entry.options.model_fields.values())}
    return {entry.name: RewardMix({entry.name: Component()}) for entry in tried if entry.name not in needs_options}


async def _verify_all(service: VerifierService, verified: AsyncIterator[Verified], write: Any, advance: Any) -> Summary:
    summary = Summary()
    try:
        async for size, (verdict_line, verdict) in verified:
            write(json.dumps(verdict_line) + "\n")
            advance(size)
            _count(summary, verdict_line, verdict)
    finally:
        await service.close()
    summary.metrics = await service.metrics()
    return summary


async def _in_order(service: VerifierService, lines: BinaryIO, window: int, fields: Mapping[str, str]) -> AsyncIterator[Verified]:
    """Lines out in the order of lines in, with at most `window` of them under way."""
    under_way: deque[tuple[int, asyncio.Task[LineOut]]] = deque()
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                under_way.append((len(line), asyncio.create_task(_verify_line(service, number, line, fields))))
            if len(under_way) >= window:
                size, judged = under_way.popleft()
                yield size, await judged
        while under_way:
            size, judged = under_way.popleft()
            yield size, await judged
    finally:
        for _, judged in under_way:
            judged.cancel()


async def _verify_line(service: VerifierService, number: int, line: bytes, fields: Mapping[str, str]) -> LineOut:
    """The line out for one line in, and its verdict when there is one."""
    record: Any = None
    try:
        record = json.loads(line.decode("utf-8"))
        case = Case.model_validate(filled(record, fields) if isinstance(record, dict) else record)
        task = case.task()
        await service.prepare([task])
        (verdict,) = await service.judge(task, [Text(case.completion, case.num_tokens)])
    except UnicodeDecodeError as error:
        return _fault(record, f"line {number}: not UTF-8: byte {error.start} is {error.object[error.start]:#04x}"), None
    except ValidationError as error:
        cause = explain(error, Case, noun="field").replace("\n", " ") if isinstance(record, dict) else "not a JSON object"
        return _fault(record, f"line {number}: {cause}"), None
    except (ValueError, RecursionError) as error:  # also numbers of more digits than Python reads
        return _fault(record, f"line {number}: not JSON: {error}"), None
    except UserError as error:
        return _fault(record, f"line {number}: {error}"), None
    scores = [
        {
            "verifier": score.verifier,
            "outcome": score.outcome.value,
            "value": score.value,
            "reason": score.reason,
            "extracted": score.extracted,
            "seconds": round(score.seconds, 6),
        }
        for score in verdict.scores
    ]
    return {"id": case.id, "reward": verdict.reward, "cause": verdict.cause, "scores": scores}, verdict


def filled(record: dict[str, Any], fields: Mapping[str, str]) -> dict[str, Any]:
    """A line with the fields that templates make of it. `{gold}` alone keeps what it is; in other text it is written out."""
    made: dict[str, Any] = {}
    for name, template in fields.items():
        whole = _WHOLE.fullmatch(template)
        try:
            made[name] = record[whole[1]] if whole else template.format_map(record)
        except KeyError as error:
            raise UserError(f"it has no field {error}, which {name} is made of: {template}") from None
        except (ValueError, AttributeError, IndexError, TypeError) as error:
            raise UserError(f"{name} cannot be made of {template}: {error}. Double the braces that are none.") from None
    return record | made


def _fault(record: Any, cause: str) -> dict[str, Any]:
    return {"id": record.get("id") if isinstance(record, dict) else None, "reward": None, "cause": cause, "scores": []}


def _count(summary: Summary, line: dict[str, Any], verdict: Verdict | None) -> None:
    summary.num_lines += 1
    if verdict is None or verdict.reward is None:
        summary.faults["bad line" if verdict is None else str(line["cause"]).partition(":")[0]] += 1
        return
    summary.num_judged += 1
    summary.num_correct += verdict.is_correct
    summary.sum_rewards += verdict.reward


@contextmanager
def _bar(cases: Path, *, show: bool) -> Iterator[Any]:
    """A progress bar over the bytes of the file, so that its lines need not be counted first. On standard error."""
    columns = (TextColumn("verifying"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show, transient=True) as bar:
        shown = bar.add_task("verifying", total=max(1, cases.stat().st_size))
        yield lambda size: bar.advance(shown, size)
