"""The command line. Heavy imports happen inside the commands, so that --help and mistakes answer at once."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from grpo.commands.doctor import add_doctor
from grpo.commands.eval import add_eval
from grpo.commands.export import add_export
from grpo.commands.jobs import add_jobs
from grpo.commands.report import add_report
from grpo.commands.rescore import add_rescore
from grpo.commands.tasks import add_tasks
from grpo.commands.watch import add_watch
from grpo.exit_codes import ExitCode, table
from grpo.jobs.driver import kept_log
from sandbox.cli import LEVELS, add_sandbox
from sandbox.errors import SystemFault, UserError
from verifiers.cli import add_verifiers

DESCRIPTION = """\
Teach a language model to reason, with rewards that can be checked.

  grpo train configs/quickstart.toml     train a tiny model on sums, on any machine
  grpo check configs/gsm8k_grpo.toml     see what a run would do, without a model or a GPU
  grpo report runs/quickstart            see what a run did: curves, config, every rollout, in one page
  grpo verify CASES.jsonl -o OUT.jsonl   judge recorded completions, without training
  grpo sandbox build                     make the Docker image that untrusted programs run in
  grpo launch CONFIG --run-dir DIR       train on a Ray cluster, as a job
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; what its exit code says stands in exit_codes.py."""
    args = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return args.command(args)
    except UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ExitCode.USER_ERROR
    except SystemFault as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return ExitCode.FAULT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return ExitCode.STOPPED


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="grpo",
        description=DESCRIPTION,
        epilog=f"exit codes:\n{table()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_check(commands)
    _add_verify(commands)
    add_doctor(commands)
    add_export(commands)
    add_eval(commands)
    add_watch(commands)
    add_report(commands)
    add_jobs(commands)
    add_rescore(commands)
    add_verifiers(commands)
    add_tasks(commands)
    add_sandbox(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser(
        "train",
        help="train, or resume, the run of a config",
        description="Train the run of a config file. A folder that holds checkpoints is resumed from the newest whole one. The "
        "stages a config starts from are trained first when they have not been. Ctrl-C ends after the step under way, with a "
        "checkpoint; a second Ctrl-C ends at once.",
    )
    _add_config(train)
    train.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="folder of the run (default: runs/NAME, from the config's file name)"
    )
    train.add_argument(
        "--fresh", action="store_true", help="start over; refuses to touch an existing run unless --overwrite is given"
    )
    train.add_argument("--overwrite", action="store_true", help="with --fresh: delete the existing run")
    train.add_argument(
        "--allow-changes",
        "--allow",
        action="store_true",
        help="resume although the config differs from the one the run began with in what it learns",
    )
    train.set_defaults(command=_train)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "check",
        help="print the resolved config, the batch arithmetic, and what the tasks' own references score",
        description="Check a config without training: every value it resolves to, how prompts become optimizer steps, and each "
        "task's reference judged by its own verifiers.",
    )
    _add_config(check)
    check.set_defaults(command=_check)


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser(
        "verify",
        help="judge recorded completions",
        description="Judge recorded completions, without a model. Every line in gives a line out, also one that cannot be judged.",
        epilog='in:  {"id": ..., "prompt": ..., "reference": ..., "rewards": "math", "completion": ...}  '
        'out: {"id": ..., "reward": 0 to 1 or null, "cause": ..., "scores": [...]}',
    )
    verify.add_argument("cases", type=Path, metavar="CASES.jsonl", help="recorded completions, one JSON object a line")
    verify.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.jsonl", help="where the verdicts go")
    verify.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=TEMPLATE",
        help="make a field of other fields of the line: reference={gold}, rewards=math_lenient, 'completion=\\boxed{{{answer}}}'",
    )
    verify.add_argument("--config", type=Path, metavar="FILE", help="take reward mixes and plugins from this config")
    verify.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="X",
        help="a plugin: dotted module, FILE.py or FILE.py:name; each of its verifiers is also a mix of its own name",
    )
    verify.add_argument("--workers", type=int, default=2, metavar="N", help="processes for verifiers that need any (default: 2)")
    verify.add_argument(
        "--level", choices=LEVELS, help="where programs run: `grpo sandbox doctor` names what there is (default: warm)"
    )
    verify.set_defaults(command=_verify)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="TOML file; configs/ holds examples")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=C",
        help="override one value, e.g. learner.learning_rate=1e-5",
    )


def _train(args: argparse.Namespace) -> int:
    from rich.console import Console

    from grpo.plan import plan
    from grpo.stages import Interrupted, run_stages

    if args.overwrite and not args.fresh:
        raise UserError("--overwrite deletes a run only together with --fresh. Add --fresh, or leave --overwrite out to resume.")
    stages = plan(args.config, args.overrides, args.run_dir)
    with kept_log(stages[-1].folder.path):
        try:
            run_stages(
                stages,
                fresh=args.fresh,
                overwrite=args.overwrite,
                allow_changes=args.allow_changes,
                console=Console(file=sys.stdout),
                command=_resuming(args),
            )
        except Interrupted as stop:
            print(f"{stop}. Type the same command to resume.", file=sys.stderr)
            return ExitCode.STOPPED
        except UserError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return ExitCode.USER_ERROR
        except Exception as error:
            if not isinstance(error, SystemFault):
                logging.getLogger(__name__).exception("a fault of ours")
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            _print_log_ends(stage.folder.logs for stage in stages)
            return ExitCode.FAULT
    return ExitCode.DONE


def _resuming(args: argparse.Namespace) -> list[str]:
    """The words that go on with this run."""
    place = [] if args.run_dir is None else ["--run-dir", str(args.run_dir)]
    return ["train", str(args.config), *place, *(word for override in args.overrides for word in ("--set", override))]


def _check(args: argparse.Namespace) -> int:
    from rich.console import Console

    from grpo.commands.check import check
    from grpo.config import load_config

    return check(load_config(args.config, args.overrides), args.config, Console())


def _verify(args: argparse.Namespace) -> int:
    from sandbox.config import SandboxConfig
    from verifiers.recorded import verify_file
    from verifiers.reward import built_in_mixes

    fields = dict(field.split("=", 1) for field in args.field if "=" in field)
    if len(fields) < len(args.field):
        raise UserError("--field takes NAME=TEMPLATE, each name once, such as --field reference={gold}.")
    mixes, plugins, sandbox = built_in_mixes(), tuple(args.plugin), SandboxConfig()
    if args.config is not None:
        from grpo.config import load_config

        config = load_config(args.config)
        mixes, plugins, sandbox = config.mixes, (*config.plugins, *plugins), config.sandbox
    if args.level is not None:
        sandbox = sandbox.model_copy(update={"level": args.level})
    summary = verify_file(
        args.cases, args.output, mixes=mixes, plugins=plugins, workers=args.workers, sandbox=sandbox, fields=fields
    )
    mean = "" if summary.mean_reward is None else f", mean reward {summary.mean_reward:.3f}"
    faults = "".join(f"; {count} without a reward: {cause}" for cause, count in summary.faults.most_common())
    print(f"{summary.num_lines} lines, {summary.num_judged} judged, {summary.num_correct} correct{mean}{faults} -> {args.output}")
    return 0


def _print_log_ends(folders: Iterable[Path], *, lines: int = 15) -> None:
    """The last lines of what the run's processes wrote, newest stage only."""
    logs = [log for folder in folders for log in sorted(folder.glob("*.log")) if log.stat().st_size]
    for log in logs[-3:]:
        print(f"--- the end of {log}", file=sys.stderr)
        print("\n".join(log.read_text(errors="replace").splitlines()[-lines:]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
