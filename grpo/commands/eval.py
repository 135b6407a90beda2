"""The command `grpo eval`. Its work is in evaluation/run.py, which is imported when it is asked for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FAULT, INTERRUPTED = 1, 130

DESCRIPTION = """\
Sample completions of tasks, judge them by the tasks' verifiers, and tell pass@k with 95% confidence intervals. The
policy is a run, a model folder, a hub name, or a model behind an OpenAI-compatible endpoint. Every completion is
stored as soon as it is judged: the same command goes on where it was interrupted, and a larger -n adds to what is
there.
"""
EPILOG = """\
  grpo eval runs/quickstart                             its newest checkpoint, on the held-out tasks of its config
  grpo eval runs/quickstart --step best -n 16 --k 1,8   pass@1 and pass@8 of the best checkpoint
  grpo eval my-model --tasks tasks.jsonl --config configs/gsm8k_grpo.toml
  grpo eval --base-url http://127.0.0.1:8000/v1 --model my-model --tasks 'reasoning_gym:chain_sum?size=200'

pass@k is the unbiased estimate of arXiv:2107.03374; its interval is Wilson's, for tasks as drawn from all such tasks.
In the folder of -o: results.json, completions.parquet (every score with its reason), completions.jsonl.
Exit code 0: every completion is there; 1: some are missing, type the same command again.
"""


def add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `eval` to the command line."""
    evaluate = commands.add_parser(
        "eval",
        help="pass@k of a run, a model or an endpoint, with confidence intervals",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.add_argument("policy", nargs="?", metavar="MODEL|RUN", help="folder of a run or a model, or a name on the hub")
    evaluate.add_argument("--step", metavar="N|best", help="which checkpoint of a run (default: the newest)")
    _add_tasks(evaluate)
    _add_sampling(evaluate)
    _add_endpoint(evaluate)
    evaluate.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="where it is stored (default: RUN/evals/ or evals/, by model, endpoint, tasks)",
    )
    evaluate.set_defaults(command=_eval)


def _add_tasks(evaluate: argparse.ArgumentParser) -> None:
    group = evaluate.add_argument_group("tasks")
    group.add_argument("--tasks", metavar="SOURCE", help="all rows of FILE.jsonl, hf:..., reasoning_gym:..., python:...")
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="take tasks, rewards, sampling and engine from it (default: the run's own)"
    )
    group.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="change one value, e.g. tasks.reference=gold"
    )
    group.add_argument("--limit", type=int, metavar="N", help="only the first N tasks")


def _add_sampling(evaluate: argparse.ArgumentParser) -> None:
    group = evaluate.add_argument_group("sampling")
    group.add_argument("-n", type=int, default=4, dest="num_samples", metavar="N", help="completions of each task (default: 4)")
    group.add_argument("--k", type=_numbers, default=(), metavar="K,...", help="the k of pass@k (default: 1, 2, 4, ... up to N)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy, with -n 1 (default: the config's)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="tokens of a completion, at most (default: the config's)")


def _add_endpoint(evaluate: argparse.ArgumentParser) -> None:
    group = evaluate.add_argument_group("an OpenAI-compatible endpoint instead of a model of ours")
    group.add_argument("--base-url", metavar="URL", help="such as http://127.0.0.1:8000/v1")
    group.add_argument("--model", metavar="NAME", help="the model that the endpoint shall use")
    group.add_argument("--key-variable", metavar="NAME", help="environment variable that holds the key (default: no key)")
    group.add_argument("--concurrency", type=int, default=16, metavar="N", help="requests at a time (default: 16)")
    group.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds for one answer (default: 600)")
    group.add_argument(
        "--max-retries", type=int, default=5, metavar="N", help="how often a request is repeated that may yet succeed (default: 5)"
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers, such as 1,8") from None


def _eval(args: argparse.Namespace) -> int:
    from rich.console import Console

    from grpo.evaluation.plan import Wish, make_plan
    from grpo.evaluation.results import remarks, results_table
    from grpo.evaluation.run import evaluate_plan

    plan = make_plan(
        Wish(
            model=args.policy,
            step=args.step,
            tasks=args.tasks,
            limit=args.limit,
            config=args.config,
            overrides=args.overrides,
            num_samples=args.num_samples,
            ks=args.k,
            temperature=args.temperature,
            max_tokens=args.max_tokens,
            endpoint=_endpoint(args),
            concurrency=args.concurrency,
            output=args.output,
        )
    )
    try:
        evaluated = evaluate_plan(plan, Console(stderr=True))
    except KeyboardInterrupt:
        print(f"interrupted; what was judged is kept in {plan.output}. Type the same command to go on.", file=sys.stderr)
        return INTERRUPTED
    console = Console(highlight=False, soft_wrap=True)
    console.print(results_table(evaluated.found))
    for line in [*remarks(evaluated.found), f"-> {plan.output}"]:
        console.print(line, markup=False)
    for cause, count in evaluated.missing.most_common(3):
        print(f"{count} completions are missing: {cause}", file=sys.stderr)
    return FAULT if evaluated.found["num_missing"] else 0


def _endpoint(args: argparse.Namespace):
    from grpo.evaluation.plan import Endpoint, checked_endpoint
    from sandbox.errors import UserError

    if (args.base_url is None) != (args.model is None):
        raise UserError("--base-url and --model go together: the address of an endpoint, and the model that it shall use.")
    if args.base_url is None:
        return None
    if not (args.timeout > 0 and args.max_retries >= 0):
        raise UserError(f"--timeout is {args.timeout:g} and --max-retries {args.max_retries}: give more than 0 s, and 0 or more.")
    return checked_endpoint(
        Endpoint(args.base_url, args.model, key_variable=args.key_variable, timeout_s=args.timeout, max_retries=args.max_retries)
    )
