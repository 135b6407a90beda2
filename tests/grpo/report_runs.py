"""Small runs as `grpo train` leaves them, and what a page of the report holds."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.config import RunConfig
from grpo.folder import RunFolder
from grpo.tracking import JsonlTracker, RolloutStore
from rollout.types import Completion, Group, VersionSpan
from verifiers.types import Message, Outcome, Score, Task, Verdict

METRICS = {
    "reward/mean": 0.5,
    "reward/math": 0.5,
    "outcome/math_correct": 0.5,
    "outcome/math_wrong": 0.5,
    "group/flat_fraction": 0.0,
    "completion/length_mean": 12.0,
    "completion/tokens": 96,
    "policy/entropy": 0.3,
    "time/rollout_s": 1.0,
    "time/update_s": 0.5,
    "time/step_s": 1.75,
}


def verdict(value: float | None, *, reason: str = "as it is", verifier: str = "math", extracted: str | None = None) -> Verdict:
    """Of one verifier, named as the service names it."""
    if value is None:
        return Verdict(None, False, (Score(Outcome.INFRA, None, reason, None, verifier, 0.5),), cause=f"{verifier}: {reason}")
    outcome = {0.0: Outcome.WRONG, 1.0: Outcome.CORRECT}.get(value, Outcome.PARTIAL)
    return Verdict(value, value == 1.0, (Score(outcome, value, reason, extracted, verifier, 0.01),))


def group(
    values: Sequence[float | None],
    *,
    task: str = "t",
    texts: Sequence[str] | None = None,
    prompt: str | tuple[Message, ...] = "1+1=",
) -> Group:
    """One completion for each value."""
    texts = texts or [f"text {i} of {task}" for i in range(len(values))]
    completions = tuple(
        Completion(i, (1, 2), (3, 4, 5), text, "stop", (-0.5,) * 3, (VersionSpan(7, 3),), 99) for i, text in enumerate(texts)
    )
    return Group(Task(task, prompt, "2", "math"), completions, tuple(verdict(value) for value in values))


def make_run(
    folder: Path,
    *,
    metrics: Mapping[int, Mapping[str, float]] | None = None,
    groups: Mapping[int, Sequence[Group]] | None = None,
    **config: Any,
) -> Path:
    """A run that has logged these metrics, and stored these groups."""
    settings = {"tasks": {"source": "tasks.jsonl"}, "steps": 3} | config
    run = RunFolder(folder)
    run.acquire()
    run.record(RunConfig.model_validate(settings))
    run.release()
    tracker = JsonlTracker(run.metrics, from_step=0)
    for step, values in (metrics if metrics is not None else dict.fromkeys((1, 2, 3), METRICS)).items():
        tracker.log(step, dict(values))
    tracker.close()
    for step, stored in (groups or {}).items():
        RolloutStore(run.rollouts, every=1).write(step, stored)
    return folder


def page_data(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What stands in a page: everything but the rollouts, and the rollouts."""
    held = dict(re.findall(r'<script type="application/octet-stream" id="([a-z-]+)">([A-Za-z0-9+/=]*)</script>', path.read_text()))
    page, rollouts = (zlib.decompress(base64.b64decode(held[name])).decode() for name in ("page-data", "rollout-data"))
    return json.loads(page), [json.loads(line) for line in rollouts.splitlines()]


def charts(page: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The charts of a page by their titles."""
    return {chart["title"]: chart for section in page["sections"] for chart in section["charts"]}
