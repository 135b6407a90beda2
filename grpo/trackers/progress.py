"""What a person sees while a run goes: a live panel in a terminal, plain lines elsewhere, and the curve at the end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from grpo.tracking import Tracker

BLOCKS = " ▁▂▃▄▅▆▇█"


class ProgressTracker(Tracker):
    """Shows a run's progress: one panel in a terminal, elsewhere a line at most every `line_every_s` seconds."""

    def __init__(self, console: Console, *, title: str, total_steps: int, from_step: int, line_every_s: float = 5.0) -> None:
        self._console = console
        self._title = title
        self._total_steps = total_steps
        self._line_every_s = line_every_s
        self._last_line = -line_every_s
        self._rewards: list[float] = []
        self._latest: dict[str, float] = {}
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            speed_estimate_period=120,
        )
        self._bar = self._progress.add_task(title, total=total_steps, completed=from_step)
        self._live = Live(self._panel(), console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        if self._live is not None:
            self._live.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._latest |= metrics
        if "reward/mean" in metrics:
            self._rewards.append(metrics["reward/mean"])
        self._progress.update(self._bar, completed=step)
        if self._live is not None:
            self._live.update(self._panel())
        elif "eval/sampled_accuracy" in metrics:
            self._console.print(evaluation_line(step, metrics), highlight=False, soft_wrap=True)
        elif time.monotonic() - self._last_line >= self._line_every_s or step == self._total_steps:
            self._last_line = time.monotonic()
            self._console.print(step_line(step, metrics), highlight=False, soft_wrap=True)

    def _panel(self) -> Group:
        rows: list[Progress | Text] = [self._progress]
        if self._rewards:
            rows.append(Text(f"  reward   {sparkline(self._rewards[-60:])} {self._rewards[-1]:.2f}"))
        rows.append(Text("  " + (panel_line(self._latest) or "preparing")))
        return Group(*rows)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()


def step_line(step: int, metrics: dict[str, float]) -> str:
    """One step in one line, such as `step 120  reward 0.41 (math 0.39, format 0.97)  flat 12%  1.2 s (rollout 0.6, update 0.5)`."""
    parts = [f"step {step}"]
    verifiers = {name.removeprefix("reward/"): value for name, value in metrics.items() if name.startswith("reward/")}
    components = ", ".join(f"{name} {value:.2f}" for name, value in verifiers.items() if name not in ("mean", "std"))
    if components:
        parts.append(f"reward {metrics.get('reward/mean', 0):.2f} ({components})")
        parts.append(f"flat {metrics.get('group/flat_fraction', 0):.0%}")
        parts.append(f"unscored {metrics.get('verify/unscored_fraction', 0):.0%}")
    else:
        parts.append(f"loss {metrics.get('loss/value', 0):.3f}")
    for name, label in (("policy/kl", "kl"), ("policy/entropy", "entropy")):
        if name in metrics:
            parts.append(f"{label} {metrics[name]:.3f}")
    if metrics.get("policy/clipped_fraction"):
        parts.append(f"clipped {metrics['policy/clipped_fraction']:.1%}")
    if metrics.get("collector/lag_mean"):
        parts.append(f"lag {metrics['collector/lag_mean']:.1f}")
    timing = ", ".join(
        f"{part} {metrics[f'time/{part}_s']:.1f}"
        for part in ("rollout", "update", "load")
        if metrics.get(f"time/{part}_s", 0) >= 0.05
    )
    parts.append(f"{metrics.get('time/step_s', 0):.1f} s ({timing})")
    return "  ".join(parts)


def evaluation_line(step: int, metrics: dict[str, float]) -> str:
    return (
        f"step {step}  held-out accuracy {metrics['eval/sampled_accuracy']:.2f}  greedy {metrics['eval/greedy_accuracy']:.2f}  "
        f"length {metrics['eval/length_mean']:.0f}  {metrics['time/evaluate_s']:.1f} s"
    )


def panel_line(latest: dict[str, float]) -> str:
    shown = [
        ("held-out", "eval/sampled_accuracy", "{:.2f}"),
        ("greedy", "eval/greedy_accuracy", "{:.2f}"),
        ("loss", "loss/value", "{:.3f}"),
        ("entropy", "policy/entropy", "{:.2f}"),
        ("length", "completion/length_mean", "{:.0f}"),
        ("tokens/s", "speed/tokens_per_s", "{:,.0f}"),
    ]
    return "   ".join(f"{label} {form.format(latest[name])}" for label, name, form in shown if name in latest)


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of blocks, 0 at the bottom and 1 at the top."""
    return "".join(BLOCKS[round(min(1.0, max(0.0, value)) * (len(BLOCKS) - 1))] for value in values)


def columns(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values, each the mean of its share of them."""
    num = min(width, len(values))
    edges = [round(i * len(values) / num) for i in range(num + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]


def curve(values: Sequence[float], *, title: str, first_step: int, width: int = 64, height: int = 8) -> str:
    """A chart of values over steps in plain characters; each column is the mean of its share of the steps."""
    means = columns(values, width)
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    levels = [round((mean - low) / span * (height * 8 - 1)) + 1 for mean in means]
    lines = [title]
    for row in range(height - 1, -1, -1):
        label = f"{high:6.2f}" if row == height - 1 else f"{low:6.2f}" if row == 0 else " " * 6
        lines.append(f"{label} │" + "".join(BLOCKS[min(8, max(0, level - row * 8))] for level in levels))
    lines.append(" " * 7 + "└" + "─" * len(means))
    lines.append(" " * 8 + f"step {first_step}".ljust(len(means) - 6) + f"{first_step + len(values) - 1:>6}")
    return "\n".join(lines)
