"""From a run's numbers to the charts of a page: plain data that page.js draws."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from grpo.evaluation.pass_at_k import Tally, mean_pass_at_k
from grpo.metric_table import meaning_of
from grpo.report.chart_specs import SECTIONS, Chart
from grpo.report.estimates import Interval, accuracy_interval, ends, reward_interval, shown_ks
from grpo.report.recorded_run import RecordedRun
from grpo.report.rollout_selection import GroupCount

REST_TITLE = "Everything else"
DERIVED = {
    "rest of step": "seconds of a step that none of the three account for: checkpoints, storing rollouts, credit",
}
PASS_AT = "the chance that at least one of {} completions of a training prompt is correct, by the unbiased estimator"


class Curve(NamedTuple):
    """Values at steps, with an interval for each, or none."""

    steps: list[int]
    values: list[float]
    intervals: list[Interval | None]


class NamedCurve(NamedTuple):
    """A curve of a chart with its label and its meaning. `color` is the number of its run, None where a chart shows one run."""

    label: str
    meaning: str
    curve: Curve
    color: int | None = None


Curves = Mapping[str, Curve]


def all_curves(run: RecordedRun, counts: Sequence[GroupCount]) -> dict[str, Curve]:
    """Everything of a run that can be drawn: its metrics, and what follows from them and from its stored groups."""
    curves = {name: _plain(run.series(name)) for name in run.metric_names}
    if "time/step_s" in curves:
        curves["rest of step"] = _plain(_rest_of_step(run))
    for name in ("eval/sampled_accuracy", "eval/greedy_accuracy"):
        if name in curves:
            curves[name] = _accuracy(run, name)
    by_step: dict[int, list[GroupCount]] = {}
    for count in counts:
        by_step.setdefault(count.step, []).append(count)
    if "reward/mean" in curves:
        curves["reward/mean"] = _reward(curves["reward/mean"], by_step)
    return curves | _pass_at_k_curves(by_step)


def _plain(series: Sequence[tuple[int, float]]) -> Curve:
    return Curve([step for step, _ in series], [value for _, value in series], [None] * len(series))


def _rest_of_step(run: RecordedRun) -> list[tuple[int, float]]:
    parts = ("time/rollout_s", "time/update_s", "time/load_s")
    return [
        (step, max(0.0, metrics["time/step_s"] - sum(metrics.get(part, 0.0) for part in parts)))
        for step, metrics in run.steps.items()
        if "time/step_s" in metrics
    ]


def _accuracy(run: RecordedRun, name: str) -> Curve:
    """With the interval that the number of tasks gives, which older runs say in their config alone."""
    series, asked = run.series(name), run.config.get("evaluation.num_tasks")
    sizes = [run.steps[step].get("eval/num_tasks", asked) for step, _ in series]
    intervals = [
        accuracy_interval(value, int(size)) if isinstance(size, int | float) and size >= 1 and 0 <= value <= 1 else None
        for (_, value), size in zip(series, sizes, strict=True)
    ]
    return _plain(series)._replace(intervals=intervals)


def _reward(curve: Curve, by_step: Mapping[int, Sequence[GroupCount]]) -> Curve:
    """With the interval that the prompts of each step give, where its rollouts were stored."""
    intervals = []
    for step in curve.steps:
        groups = by_step.get(step, ())
        intervals.append(reward_interval([group.reward_total for group in groups], [group.num_scored for group in groups]))
    return curve._replace(intervals=intervals)


def _pass_at_k_curves(by_step: Mapping[int, Sequence[GroupCount]]) -> dict[str, Curve]:
    """For each k the mean over the prompts of a step of which at least k completions were scored."""
    ks = shown_ks(max((group.num_scored for groups in by_step.values() for group in groups), default=0))
    curves = {f"pass@{k}": Curve([], [], []) for k in ks}
    for step, groups in sorted(by_step.items()):
        for k in ks:
            estimate = mean_pass_at_k([Tally(group.num_scored, group.num_correct) for group in groups], k)
            if estimate is not None:
                curve = curves[f"pass@{k}"]
                curve.steps.append(step)
                curve.values.append(estimate.value)
                curve.intervals.append(ends(estimate))
    return curves


def sections_of_run(curves: Curves) -> list[dict[str, Any]]:
    """The sections of the report of one run: each chart with all of its curves, and at the end what no chart shows.

    A chart that would only show zeros (of a clip that never clips, say) leaves its metrics to the end, too.
    """
    shown: set[str] = set()
    sections = []
    for section in SECTIONS:
        charts = []
        for spec in section.charts:
            for title, names in _charts_of(spec, curves):
                lines = [NamedCurve(label, _meaning(name), curves[name]) for name, label in names.items()]
                if spec.top is not None or any(any(line.curve.values) for line in lines):
                    shown.update(names)
                    charts.append(_drawn(spec, title, lines))
        sections.append({"title": section.title, "charts": charts})
    rest = {name: [NamedCurve(name, _meaning(name), curve)] for name, curve in curves.items() if name not in shown}
    return [section for section in [*sections, _rest(rest)] if section["charts"]]


def sections_of_runs(runs: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """The same sections with a chart for each metric, and a curve in it for each run."""
    together: dict[str, Curve] = {name: curve for curves in runs.values() for name, curve in curves.items()}
    each = {name: _of_each_run(name, runs) for name in together}
    shown: set[str] = set()
    sections = []
    for section in SECTIONS:
        charts = []
        for spec in section.charts:
            for title, names in _charts_of(spec, together):
                for name, label in names.items():
                    own = title if len(names) == 1 and not spec.each else f"{title}: {label}"
                    if any(any(line.curve.values) for line in each[name]):
                        shown.add(name)
                        charts.append(_drawn(spec, own, each[name], kind="lines"))
        sections.append({"title": section.title, "charts": charts})
    rest = {name: lines for name, lines in each.items() if name not in shown}
    return [section for section in [*sections, _rest(rest)] if section["charts"]]


def _of_each_run(name: str, runs: Mapping[str, Curves]) -> list[NamedCurve]:
    numbered = enumerate(runs.items())
    return [NamedCurve(run, _meaning(name), curves[name], number) for number, (run, curves) in numbered if name in curves]


def _charts_of(spec: Chart, curves: Curves) -> list[tuple[str, dict[str, str]]]:
    """The charts that a description stands for: title, and the curves that are there with their labels."""
    if not spec.each:
        names = {name: label for name, label in spec.lines.items() if name in curves}
        return [(spec.title, names)] if names else []
    charts: dict[str, dict[str, str]] = {}
    for name in curves:
        if (match := re.fullmatch(spec.each, name)) is not None:
            *subject, label = match.groups()
            charts.setdefault(spec.title.format(*subject), {})[name] = label
    return sorted(charts.items())


def _rest(curves: Mapping[str, Sequence[NamedCurve]]) -> dict[str, Any]:
    charts = [_drawn(Chart(name, unit=_unit(name)), name, lines) for name, lines in sorted(curves.items())]
    return {"title": REST_TITLE, "closed": True, "charts": charts}


def _unit(name: str) -> str:
    if name.endswith(("_fraction", "accuracy")):
        return "share"
    return "s" if name.endswith("_s") else ""


def _meaning(name: str) -> str:
    if name.startswith("pass@"):
        return PASS_AT.format(name.removeprefix("pass@"))
    return DERIVED.get(name) or meaning_of(name)


def _drawn(spec: Chart, title: str, lines: Sequence[NamedCurve], *, kind: str = "") -> dict[str, Any]:
    has_band = any(interval is not None for line in lines for interval in line.curve.intervals)
    return {
        "title": title,
        "unit": spec.unit,
        "better": spec.better,
        "kind": kind or spec.kind,
        "about": spec.about if has_band or not spec.about.startswith("band:") else "",
        "top": spec.top,
        "series": [_series(line) for line in lines],
    }


def _series(line: NamedCurve) -> dict[str, Any]:
    steps, values, intervals = line.curve
    series: dict[str, Any] = {
        "name": line.label,
        "meaning": line.meaning,
        "color": line.color,
        "steps": steps,
        "values": [_short(value) for value in values],
    }
    if any(interval is not None for interval in intervals):
        series["low"] = [None if interval is None else _short(interval.low) for interval in intervals]
        series["high"] = [None if interval is None else _short(interval.high) for interval in intervals]
    return series


def _short(value: float) -> float:
    """Six digits are more than a chart can show."""
    return float(f"{value:.6g}")
