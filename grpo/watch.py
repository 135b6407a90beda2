"""A run in the terminal while it goes: what `grpo watch` shows, and how it follows metrics.jsonl. Nothing of the run is touched."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grpo.notices import Notices
from grpo.report.chart_specs import OUTCOMES
from grpo.report.estimates import accuracy_interval
from grpo.report.recorded_run import RecordedRun, by_step, read_run
from grpo.trackers.progress import columns, curve, evaluation_line, sparkline, step_line

SHOWN = {
    "reward": "reward/mean",
    "held-out, sampled": "eval/sampled_accuracy",
    "held-out, greedy": "eval/greedy_accuracy",
    "flat groups": "group/flat_fraction",
    "length": "completion/length_mean",
    "truncated": "completion/truncated_fraction",
    "entropy": "policy/entropy",
    "KL": "policy/kl",
    "clipped": "policy/clipped_fraction",
    "gradient norm": "policy/grad_norm",
    "|learner - engine|": "mismatch/abs_mean",
    "lag": "collector/lag_mean",
    "tokens/s": "speed/tokens_per_s",
    "loss": "loss/value",
}
PHASES = {"waiting for groups": "time/rollout_s", "update": "time/update_s", "load": "time/load_s"}
PHASE_COLORS = ("blue", "yellow", "cyan", "bright_black")
OUTCOME_COLORS = {
    "correct": "green",
    "partial": "bright_green",
    "wrong": "red",
    "unparseable": "magenta",
    "timeout": "yellow",
    "crash": "bright_red",
    "infra": "bright_black",
}
RECENT = 10  # steps that the times are the mean of
MAX_WARNINGS = 5
QUIET_LOOKS = 3  # in a row without a process that trains, and the run is over


class MetricsFollower:
    """The lines of a metrics.jsonl as they come. A run that is resumed writes the file anew: then all of it comes again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] = (0, 0)
        self._read = 0

    def look(self) -> tuple[list[dict[str, Any]], bool]:
        """The whole lines since the last look, and whether they are those of a new file. Damaged ones are left out."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                is_new = (status.st_dev, status.st_ino) != self._file or status.st_size < self._read
                self._file, self._read = (status.st_dev, status.st_ino), 0 if is_new else self._read
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return [], False
        self._read += len(whole) + bool(whole)
        return [line for text in whole.split(b"\n") if (line := _parsed(text)) is not None], is_new


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


class Watch:
    """A run and its warnings, as far as they have been seen."""

    def __init__(self, path: Path) -> None:
        self.run = read_run(path)
        self._follower = MetricsFollower(self.run.folder.metrics)
        self._follower.look()  # what read_run has read as well
        self.warnings: deque[str] = deque(maxlen=MAX_WARNINGS)
        self._notices = Notices(self.run.folder.logs, self.warnings.append, most=10_000, from_start=True)
        self._notices.look()

    def look(self) -> list[dict[str, Any]]:
        """See what is new, and return it."""
        lines, is_new = self._follower.look()
        steps = {} if is_new else dict(self.run.steps)
        for step, metrics in by_step(lines).items():
            steps[step] = steps.get(step, {}) | metrics
        self._notices.look()
        self.run = dataclasses.replace(self.run, steps=steps, is_training=self.run.folder.is_in_use)
        return lines


def watch(path: Path, console: Console, *, every_s: float, once: bool) -> None:
    """Show a run until it is over: a display in a terminal, elsewhere a line for each new step, and the display at the end."""
    watched = Watch(path)
    quiet = 0 if watched.run.is_training and not once else QUIET_LOOKS
    with Live(view(watched, console.width), console=console, auto_refresh=False, transient=True) as live:
        while quiet < QUIET_LOOKS:
            time.sleep(every_s)
            lines = watched.look()
            quiet = 0 if watched.run.is_training else quiet + 1
            if console.is_terminal:
                live.update(view(watched, console.width), refresh=True)
            for line in () if console.is_terminal else lines:
                show = evaluation_line if "eval/sampled_accuracy" in line else step_line
                console.print(show(line["step"], line), highlight=False, soft_wrap=True, markup=False)
    console.print(view(watched, console.width))


def view(watched: Watch, width: int) -> RenderableType:
    """Everything at a glance."""
    run = watched.run
    parts: list[RenderableType] = [_head(run), *_bar(run, width)]
    if not run.steps:
        return Group(*parts, Text("no step was logged yet", style="dim"))
    main = next((name for name in ("reward/mean", "loss/value") if len(run.series(name)) > 1), None)
    if main is not None:
        series = run.series(main)
        title = {"reward/mean": "mean reward, higher is better", "loss/value": "loss"}[main]
        drawn = curve([v for _, v in series], title=title, first_step=series[0][0], width=min(96, width - 10), height=6)
        parts += [Text(drawn, no_wrap=True)]
    spark, bar = max(8, min(48, width - 54)), max(8, min(40, width - 70))  # what the words beside them leave
    parts += [_sparklines(run, spark), *_phases(run, bar), *_outcomes(run, bar)]
    parts += [Text(f"! {warning}", style="yellow", overflow="ellipsis", no_wrap=True) for warning in watched.warnings]
    return Group(*parts)


def _head(run: RecordedRun) -> Text:
    seconds = [value for _, value in run.series("time/step_s")]
    spent = sum(seconds) + sum(value for _, value in run.series("time/evaluate_s"))
    head = Text.assemble((run.name, "bold"), "  ", run.status, f"  {spent / 60:.1f} min", no_wrap=True, overflow="ellipsis")
    if run.is_training and run.total_steps and seconds:
        recent = seconds[-RECENT:]
        head.append(f", about {(run.total_steps - run.last_step) * sum(recent) / len(recent) / 60:.1f} min left")
    return head


def _bar(run: RecordedRun, width: int) -> Iterator[RenderableType]:
    if run.total_steps:
        line = Table.grid()  # a bar alone does not end its line
        line.add_row(ProgressBar(total=run.total_steps, completed=run.last_step, width=max(10, min(106, width - 1))))
        yield line


def _sparklines(run: RecordedRun, width: int) -> Table:
    """A row for each metric: its course, from its own least to its greatest value, and where it stands."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True, min_width=18)
    table.add_column(no_wrap=True, min_width=10)
    table.add_column(justify="right", no_wrap=True, min_width=8)
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis")
    for label, name in SHOWN.items():
        values = [value for _, value in run.series(name)]
        if values and (any(values) or name == "reward/mean"):
            low, high = min(values), max(values)
            about = _interval(run, name) or f"{_number(low)} to {_number(high)}"
            table.add_row(label, _spark(values, width), _number(values[-1]), about)
    return table


def _spark(values: Sequence[float], width: int) -> str:
    means = columns(values, width)
    low, high = min(means), max(means)
    return sparkline([0.125 + 0.875 * (mean - low) / (high - low) if high > low else 0.5 for mean in means])  # never blank


def _interval(run: RecordedRun, name: str) -> str:
    """The 95 % interval of the last evaluation, over its tasks; empty for what is no accuracy."""
    step, value = run.series(name)[-1]
    num_tasks = run.steps[step].get("eval/num_tasks", run.config.get("evaluation.num_tasks"))
    if (
        name not in ("eval/sampled_accuracy", "eval/greedy_accuracy")
        or not isinstance(num_tasks, int | float)
        or num_tasks < 1
        or not 0 <= value <= 1
    ):
        return ""
    low, high = accuracy_interval(value, int(num_tasks))
    return f"95 %: {low:.2f} to {high:.2f}"


def _number(value: float) -> str:
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _phases(run: RecordedRun, width: int) -> Iterator[Text]:
    """Where the last steps spent their time."""
    recent = [metrics for metrics in run.steps.values() if "time/step_s" in metrics][-RECENT:]
    if not recent:
        return
    means = {label: sum(metrics.get(name, 0.0) for metrics in recent) / len(recent) for label, name in PHASES.items()}
    whole = sum(metrics["time/step_s"] for metrics in recent) / len(recent)
    means["the rest"] = max(0.0, whole - sum(means.values()))
    shares = [(label, value, color) for (label, value), color in zip(means.items(), PHASE_COLORS, strict=True)]
    words = ", ".join(f"{label} {value:.2f} s" for label, value, _ in shares if value >= 0.005)
    yield _stacked(f"a step, {whole:.2f} s", shares, words, width)


def _outcomes(run: RecordedRun, width: int) -> Iterator[Text]:
    """What became of the last step's completions, for each verifier."""
    last = next((metrics for metrics in reversed(run.steps.values()) if any(name.startswith("outcome/") for name in metrics)), {})
    verifiers: dict[str, dict[str, float]] = {}
    for name, share in last.items():
        if match := re.fullmatch(rf"outcome/(.+)_({OUTCOMES})", name):
            verifiers.setdefault(match[1], {})[match[2]] = share
    for verifier, shares in sorted(verifiers.items()):
        ordered = [(outcome, shares[outcome], color) for outcome, color in OUTCOME_COLORS.items() if outcome in shares]
        yield _stacked(verifier, ordered, ", ".join(f"{outcome} {share:.0%}" for outcome, share, _ in ordered), width)


def _stacked(title: str, parts: Sequence[tuple[str, float, str]], words: str, width: int) -> Text:
    """Parts of a whole as one bar, with their figures after it."""
    line = Text(f"{title[:18]:<19}", style="dim", no_wrap=True, overflow="ellipsis")
    total, drawn, end = sum(value for _, value, _ in parts) or 1.0, 0, 0.0
    for (_, value, color), block in zip(parts, itertools.cycle("█▓▒░"), strict=False):  # which tell without colors too
        end += value
        upto = round(width * end / total)
        line.append(block * (upto - drawn), style=f"not dim {color}")
        drawn = upto
    return line.append(" " * (width - drawn) + f" {words}", style="not dim")
