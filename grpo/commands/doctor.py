"""The command `grpo doctor`. Its work is in doctor.py and the files beside it, which are imported when it is asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

MISSING = 1

DESCRIPTION = """\
Look at this machine: versions, memory, GPU, disk, shared memory, ports, limits, Docker, W&B, the model hub. For each:
whether it works, and if not, what to type. Takes at most some seconds, whatever hangs; changes nothing.
"""
EPILOG = """\
  grpo doctor                            could the quickstart run here?
  grpo doctor configs/gsm8k_grpo.toml    could this run? its devices, model, tasks, verifiers, disk, cluster, tracking
  grpo doctor --json                     the same for a program

works: nothing to do. limited: something more would be possible. missing: it keeps from training.
Exit code 0: nothing is missing. `grpo sandbox doctor` proves the sandbox by attacks; `grpo check` tries a config's tasks.
"""


def add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor` to the command line."""
    doctor = commands.add_parser(
        "doctor",
        help="say what this machine has and lacks for training, and what to type",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    doctor.add_argument("config", nargs="?", type=Path, metavar="CONFIG", help="look also for what this config needs")
    doctor.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="override one value of the config"
    )
    doctor.add_argument("--json", action="store_true", dest="as_json", help="print JSON instead of a table")
    doctor.set_defaults(command=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    import time

    from rich.console import Console

    from grpo.doctor.checks import conclusion, examine, told
    from grpo.doctor.machine import machine_checks

    started = time.perf_counter()
    what, needs_vllm, more = "the quickstart", True, {}
    if args.config is not None:
        from grpo.doctor.config import config_checks
        from grpo.plan import plan

        stages = plan(args.config, args.overrides, None)
        what, needs_vllm, more = str(args.config), stages[-1].config.engine.kind == "vllm", config_checks(stages)
    console = Console(highlight=False, soft_wrap=True)
    findings = []
    for finding in examine(machine_checks(needs_vllm=needs_vllm) | more):
        findings.append(finding)
        if not args.as_json:
            console.print(told(finding))
    can_run = all(finding.status != "missing" for finding in findings)
    if args.as_json:
        answer = {"can_run": can_run, "what": what, "seconds": round(time.perf_counter() - started, 2)}
        print(json.dumps(answer | {"findings": [finding._asdict() for finding in findings]}, indent=1))
    else:
        console.print(conclusion(findings, what), markup=False)
    return 0 if can_run else MISSING
