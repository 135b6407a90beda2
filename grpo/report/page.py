"""Writing a page: one HTML file that loads nothing, with its data deflated inside.

Whatever a model wrote stands in it as base64, and is shown as text: no byte of it is ever HTML or script. A content security policy
lets the page run its own script alone, and load nothing.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from grpo.report.charts import all_curves, sections_of_run, sections_of_runs
from grpo.report.recorded_run import RecordedRun, read_run
from grpo.report.rollout_selection import choose, chosen_groups, count_groups, mean_text_bytes
from grpo.report.summary import (
    config_table,
    differences_table,
    facts,
    headline,
    meanings_table,
    notes,
    rollouts_sentence,
    tile,
    tiles,
)
from sandbox.errors import UserError

SCRIPTS = ("elements.js", "charts.js", "rollouts.js", "page.js")


class Written(NamedTuple):
    """A page that was written, and what one should know of it."""

    path: Path
    num_bytes: int
    remarks: list[str]


def write_report(run_path: Path, out: Path | None = None, *, per_step: int | None = None, take_all: bool = False) -> Written:
    """The page of one run, by default RUN/report.html. Raises UserError when there is no run, or no place to write."""
    run = read_run(run_path)
    problems: list[str] = []
    counts = count_groups(run.rollout_files, problems)
    text_bytes = mean_text_bytes(run.rollout_files)
    chosen = choose(counts, per_step=per_step, text_bytes=text_bytes, take_all=take_all)
    curves = all_curves(run, counts)
    sentence = rollouts_sentence(counts, chosen)
    page = {
        "status": run.status,
        "tiles": tiles(run, curves),
        "notes": [*notes(run, counts), *problems],
        "headline": headline(run),
        "facts": facts(run),
        "sections": sections_of_run(curves),
        "rollouts": sentence,
        "tables": [config_table({run.name: run}), meanings_table(curves)],
        "footer": _footer("grpo report"),
    }
    groups = chosen_groups(run.rollout_files, chosen)
    path = out or run.folder.report
    num_bytes = _write(path, title=run.name, page=page, groups=groups)
    return Written(path, num_bytes, [*page["notes"], *([sentence] if sentence else [])])


def write_comparison(run_paths: Sequence[Path], out: Path) -> Written:
    """One page with the curves of several runs over one another, and what differs in their configs."""
    runs = _named([read_run(path) for path in run_paths])
    problems: list[str] = []
    curves = {name: all_curves(run, count_groups(run.rollout_files, problems)) for name, run in runs.items()}
    together = {metric: curve for own in curves.values() for metric, curve in own.items()}
    page = {
        "status": f"{len(runs)} runs",
        "tiles": [tile(name, *_headline(run, curves[name])) for name, run in runs.items()],
        "notes": [f"{name}: {problem}" for name, run in runs.items() for problem in run.problems] + problems,
        "headline": "",
        "facts": [],
        "sections": sections_of_runs(curves),
        "rollouts": "",
        "tables": [differences_table(runs), config_table(runs), meanings_table(together)],
        "footer": _footer("grpo compare"),
    }
    return Written(
        out,
        _write(out, title=" and ".join(runs) if len(runs) < 4 else f"{len(runs)} runs", page=page, groups=()),
        list(page["notes"]),
    )


def _headline(run: RecordedRun, curves: Any) -> tuple[str, str]:
    """The figure that a run is compared by: held-out accuracy where it was measured, else the reward."""
    found = tiles(run, curves)
    best = next((figure for figure in found if figure["label"].startswith("Held-out")), found[0] if found else None)
    if best is None:
        return "-", run.status
    return best["value"], f"{best['label'].lower()}; {best['detail'] or run.status}"


def _named(runs: Sequence[RecordedRun]) -> dict[str, RecordedRun]:
    """Runs by their folder's name, by their path where two have the same."""
    names = [run.name for run in runs]
    named = {run.name if names.count(run.name) == 1 else str(run.folder.path): run for run in runs}
    if len(named) < 2:
        raise UserError("compare needs two runs or more, each named once. `grpo report RUN` shows a single one.")
    return named


def _footer(command: str) -> str:
    return f"Written by {command}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC."


def _write(path: Path, *, title: str, page: dict[str, Any], groups: Iterable[dict[str, Any]]) -> int:
    """The file appears when it is whole. Rollouts go through one at a time."""
    pieces = {
        "{{policy}}": [_policy()],
        "{{title}}": [html.escape(title)],
        "{{style}}": [_asset("page.css")],
        "{{script}}": [_script()],
        "{{page}}": packed([page]),
        "{{rollouts}}": packed(groups),
    }
    beside = path.with_name(path.name + ".partial")
    try:
        with beside.open("w", encoding="utf-8", errors="backslashreplace") as file:
            for part in _parts(_asset("page.html"), pieces):
                file.writelines(pieces.get(part, [part]))
            num_bytes = file.tell()
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: the page cannot be written: {error.strerror}. Say with -o where it shall go.") from None
    return num_bytes


def _parts(template: str, names: Iterable[str]) -> Iterator[str]:
    """The template cut at the names, which come between what stands around them."""
    places = sorted((at, name) for name in names for at in _places(template, name))
    end = 0
    for at, name in places:
        yield template[end:at]
        yield name
        end = at + len(name)
    yield template[end:]


def _places(text: str, part: str) -> Iterator[int]:
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def packed(objects: Iterable[Any]) -> Iterator[str]:
    """A line of JSON for each object, deflated, in base64, in pieces. It holds no character that means anything in HTML."""
    deflate, left = zlib.compressobj(6), b""
    for value in objects:
        left += deflate.compress((json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n").encode("ascii"))
        whole = len(left) - len(left) % 3
        yield base64.b64encode(left[:whole]).decode("ascii")
        left = left[whole:]
    yield base64.b64encode(left + deflate.flush()).decode("ascii")


def _policy() -> str:
    """What the page may do: run this script, use this style, load nothing."""
    script, style = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (_script(), _asset("page.css")))
    return f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"


def _script() -> str:
    return "\n".join(_asset(name) for name in SCRIPTS)


def _asset(name: str) -> str:
    return resources.files("grpo.report").joinpath(name).read_text(encoding="utf-8")
