"""The commands `grpo report` and `grpo compare`. Their work is in the package report, which is imported when it is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

REPORT = """\
Write one HTML page about a run that needs nothing but a browser: send it, keep it, open it years later. It has
the curves (reward, held-out accuracy and pass@k with intervals, lengths, entropy, KL, clipping, engine against
learner, outcomes of each verifier, where the time went), the config, and the rollouts: filtered by step, outcome,
verifier and text, completions side by side with the reason of every score, a prompt followed across steps. A run
that is still training can be reported on at any time; one that ended has its report.html already.
"""
REPORT_EPILOG = """\
  grpo report runs/quickstart                   writes runs/quickstart/report.html
  grpo report runs/quickstart -o /tmp/it.html   writes it elsewhere
  grpo report runs/quickstart --all             with every completion, whole, however large the page gets

The address of the page holds its filters, so a finding can be sent: report.html#step=40&outcome=wrong&verifier=math&q=carry
"""
COMPARE = """\
Write one HTML page with the curves of several runs over one another, the held-out accuracy of each with its
interval, and the values in which their configs, commits and packages differ.
"""
COMPARE_EPILOG = """\
  grpo compare runs/quickstart runs/dr                  writes comparison.html
  grpo compare runs/* -o /tmp/all.html                  any number of runs
"""


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `report` and `compare` to the command line."""
    report = commands.add_parser(
        "report",
        help="write a run's curves, config and rollouts into one HTML page",
        description=REPORT,
        epilog=REPORT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument("run", type=Path, metavar="RUN", help="folder of a run, such as runs/quickstart")
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the page goes (default: RUN/report.html)")
    amount = report.add_mutually_exclusive_group()
    amount.add_argument(
        "--rollouts-per-step",
        type=_positive,
        metavar="N",
        help="completions of each step in the page (default: as many as make a page that opens at once); where they are too many, "
        "evenly spread steps are taken",
    )
    amount.add_argument("--all", action="store_true", dest="take_all", help="put every completion into the page, whole")
    report.set_defaults(command=_report)
    compare = commands.add_parser(
        "compare",
        help="write the curves of several runs over one another into one HTML page",
        description=COMPARE,
        epilog=COMPARE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of two runs or more")
    compare.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("comparison.html"),
        metavar="FILE",
        help="where the page goes (default: comparison.html)",
    )
    compare.set_defaults(command=_compare)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a number of completions: give 1 or more")
    return number


def _report(args: argparse.Namespace) -> int:
    from grpo.report.page import write_report

    written = write_report(args.run, args.output, per_step=args.rollouts_per_step, take_all=args.take_all)
    print("\n".join([*written.remarks, f"{written.num_bytes / 1e6:.1f} MB -> {written.path}"]))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from grpo.report.page import write_comparison

    written = write_comparison(args.runs, args.output)
    print("\n".join([*written.remarks, f"{written.num_bytes / 1e6:.1f} MB -> {written.path}"]))
    return 0
