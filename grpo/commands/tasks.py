"""The command `grpo tasks`: which of reasoning-gym's datasets can be trained on, and what the tasks of any source look like."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from rollout.rows import Row
    from verifiers.reasoning_gym_admission import Admission

MAX_SHOWN = 1200
JUDGES = {"scorer": "its own scorer", "comparison": "our comparison", "nobody": "nobody: not safe"}
SCHEME = "reasoning_gym:"

DESCRIPTION = """\
List the datasets of reasoning-gym that one can train on. The scorers of most passed the admission test: they
give full marks to the references and to nothing else that was tried, raise nothing, and never run an answer.
Some others are judged by our own comparison with the reference. With a name or a source: some of its tasks,
and how a config asks for them.
"""
EPILOG = """\
  grpo tasks                          the datasets that can be trained on
  grpo tasks --all                    the others too, who judges each, and what its own scorer does wrong
  grpo tasks sudoku                   some of its tasks, and the lines of a config that trains on it
  grpo tasks 'chain_sum?min_terms=5'  the same with options of your own, which are tried at once
  grpo tasks my_tasks.jsonl           the rows of any other source: a JSONL file, hf:..., python:...
"""


def add_tasks(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tasks` to the command line."""
    tasks = commands.add_parser(
        "tasks",
        help="list the datasets one can train on, or show some tasks of a source",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks.add_argument("source", nargs="?", metavar="NAME", help="a dataset of reasoning-gym, or any other source of tasks")
    tasks.add_argument("--all", action="store_true", dest="also_refused", help="list also those that are not safe, and why")
    tasks.add_argument("-n", type=int, default=2, dest="num_tasks", metavar="N", help="tasks to show (default: 2)")
    tasks.add_argument(
        "--admit",
        action="store_true",
        help="try all datasets of the installed reasoning-gym again, and write the table that training goes by (about a minute)",
    )
    tasks.set_defaults(command=_tasks)


def _tasks(args: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=not args.admit and args.source is not None)
    if args.admit:
        _admit(console)
    elif args.source is None:
        _list(console, also_refused=args.also_refused)
    else:
        _show(console, args.source, args.num_tasks)
    return 0


def _admit(console: Console) -> None:
    from verifiers.reasoning_gym_admission import TABLE, admit_all, installed_version, table, write_table

    found: dict[str, Admission] = {}
    for name, admission in admit_all():
        found[name] = admission
        console.print(f"{name}: {JUDGES[admission.judge]}{admission.reason and ': '}{admission.reason}", markup=False)
    write_table(found)
    table.cache_clear()
    num_safe = sum(admission.is_safe for admission in found.values())
    console.print(
        f"{num_safe} of {len(found)} datasets of reasoning-gym {installed_version()} are safe -> {TABLE}",
        markup=False,
        soft_wrap=True,
    )


def _list(console: Console, *, also_refused: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from verifiers.reasoning_gym_admission import installed_version, table

    known = table()
    safe = [name for name, admission in known.items() if admission.is_safe]
    if also_refused:
        shown = Table("dataset", "judged by", "what its own scorer does wrong")
        for name, admission in known.items():
            shown.add_row(Text(name), JUDGES[admission.judge], Text(admission.reason))
        console.print(shown)
    else:
        console.print("\n".join(safe))
    console.print(
        f"{len(safe)} of {len(known)} datasets of reasoning-gym {installed_version()} are safe to train on. "
        f"{'' if also_refused else '--all says why the others are not. '}grpo tasks NAME shows one.",
        soft_wrap=True,
    )


def _show(console: Console, source: str, num_tasks: int) -> None:
    """Print some tasks of a source; of a dataset of reasoning-gym also whether it is safe, and how a config asks for it."""
    from rollout.rows import read_rows

    name = _dataset(source)
    rows = read_rows(source if name is None else _sized(source, max(num_tasks, 1)))
    shown = list(itertools.islice(rows, num_tasks))
    lines = _row_lines(source, shown) if name is None else _dataset_lines(name, source.removeprefix(SCHEME), shown)
    for line in lines:
        console.print(line, markup=False)


def _dataset(source: str) -> str | None:
    """The dataset of reasoning-gym that a source names, with or without its scheme; None for any other source."""
    if source.startswith(SCHEME):
        return source.removeprefix(SCHEME).partition("?")[0]
    name = source.partition("?")[0]
    return None if ":" in name or "/" in name or "." in name or Path(source).exists() else name


def _sized(source: str, size: int) -> str:
    """The source with its scheme, and with this size where it says none."""
    path = SCHEME + source.removeprefix(SCHEME)
    return path if "size=" in path else f"{path}{'&' if '?' in path else '?'}size={size}"


def _dataset_lines(name: str, path: str, rows: list[Row]) -> Iterator[str]:
    from rollout.rows import OF_REASONING_GYM
    from verifiers.errors import InvalidReference
    from verifiers.reasoning_gym import ReasoningGym
    from verifiers.reasoning_gym_admission import table

    verifier = ReasoningGym(workers=1)
    refusal = None
    try:
        for row in rows:
            verifier.prepare(row.fields["entry"])
    except InvalidReference as error:
        refusal = str(error)
    finally:
        asyncio.run(verifier.close())
    for row in rows:
        yield f"--- {row.where}"
        yield f"prompt:    {_short(OF_REASONING_GYM['prompt'].format_map(row.fields))}"
        yield f"reference: {_short(str(row.fields['answer']))}"
    yield ""
    if refusal is not None:
        yield f"Not safe to train on. {refusal}"
        return
    admission = table()[name]
    if admission.judge == "scorer":
        partial = f"with partial = true, garbage got up to {admission.garbage:g}"
        yield f"Safe to train on. Judged by its own scorer: below full marks is wrong; {partial}."
    else:
        yield f"Safe to train on. Judged by our own comparison with the reference, because of its scorer: {admission.reason}."
    yield "In a config:\n"
    yield f'[tasks]\nsource = "{_sized(path, 8000)}"'
    yield "\n# which means, unless you say otherwise:"
    yield from (f"# {key} = {json.dumps(value)}" for key, value in OF_REASONING_GYM.items())


def _row_lines(source: str, rows: list[Row]) -> Iterator[str]:
    for row in rows:
        yield f"--- {row.where}"
        yield from (f"{field}: {_short(_text(value))}" for field, value in row.fields.items())
    yield ""
    yield f"{source}: its fields can stand in tasks.prompt, {{in braces}}, and one of them is tasks.reference."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _short(text: str) -> str:
    """A text of bounded length that no terminal takes for a command."""
    clean = "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)
    return clean if len(clean) <= MAX_SHOWN else f"{clean[:MAX_SHOWN]}… ({len(clean):,} characters)"
