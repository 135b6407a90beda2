"""The command `grpo watch`. Its work is in watch.py, which is imported when it is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Show a run in the terminal while it goes, from any other terminal: reward or loss as a curve, the other metrics as
sparklines with their range, where the time of a step goes, the outcomes of each verifier, and the last warnings.
It reads what the run writes and touches nothing. It ends when no process trains in the folder any more, or with
Ctrl-C. Of a run that is over it shows the end. Not in a terminal, it prints a line for each new step.
"""
EPILOG = """\
  grpo watch runs/quickstart          until the run is over
  grpo watch runs/quickstart --once   as it stands now
"""


def add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `watch` to the command line."""
    watch = commands.add_parser(
        "watch",
        help="show a run in the terminal while it goes",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    watch.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/quickstart")
    watch.add_argument("--once", action="store_true", help="show it as it stands, and end")
    watch.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="how often to look (default: 1)")
    watch.set_defaults(command=_watch)


def _watch(args: argparse.Namespace) -> int:
    from rich.console import Console

    from grpo.watch import watch

    try:
        watch(args.run, Console(), every_s=max(0.05, args.every), once=args.once)
    except KeyboardInterrupt:  # the way to leave; the run goes on
        return 0
    return 0
