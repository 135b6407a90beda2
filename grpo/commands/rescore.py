"""The command `grpo rescore`. Its work is in rescore.py, which is imported when it is asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

MAX_SHOWN = 20


def add_rescore(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `rescore` to the command line."""
    rescore = commands.add_parser(
        "rescore",
        help="judge a run's rollouts again and list what flipped",
        description="Judge the stored rollouts of a run again, with the reward mixes and plugins it began with, or with those of "
        "another config, and list every completion whose reward is not what the run learnt from. Nothing in the run is changed.",
    )
    rescore.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/quickstart")
    rescore.add_argument("-o", "--output", type=Path, metavar="OUT.jsonl", help="where all flips go, a line each")
    rescore.add_argument("--config", type=Path, metavar="FILE", help="take reward mixes, plugins and sandbox from this config")
    rescore.add_argument("--rewards", metavar="MIX", help="judge by this mix instead of the one each rollout was judged by")
    rescore.add_argument("--plugin", action="append", default=[], metavar="X", help="one more plugin")
    rescore.add_argument("--workers", type=int, default=2, metavar="N", help="processes for verifiers that need any (default: 2)")
    rescore.set_defaults(command=_rescore)


def _rescore(args: argparse.Namespace) -> int:
    import asyncio

    from grpo.rescore import rescore, rules_of, told

    rules = rules_of(args.run, args.config)
    rules = rules._replace(plugins=(*rules.plugins, *args.plugin))
    flips: list[dict[str, Any]] = []
    rescored = asyncio.run(rescore(args.run, rules, flips, rewards=args.rewards, workers=args.workers))
    for flip in flips[:MAX_SHOWN]:
        print(told(flip))
    if len(flips) > MAX_SHOWN:
        print(f"and {len(flips) - MAX_SHOWN} more" + ("" if args.output else "; -o FILE writes them all"))
    changes = "".join(f"; {count} {change}" for change, count in rescored.changes.most_common())
    print(f"{rescored.num_rows} completions judged again, {rescored.num_flips} flipped{changes}")
    if args.output is not None:
        args.output.write_text("".join(json.dumps(flip) + "\n" for flip in flips), encoding="ascii")
    return 0
