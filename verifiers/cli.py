"""`grpo verifiers`, `grpo verifiers new` and `grpo audit`. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.errors import SystemFault, UserError

if TYPE_CHECKING:
    from verifiers.audit import Finding
    from verifiers.reward import RewardMix

FAULT = 1


def add_verifiers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `verifiers` and `audit` to the command line."""
    _add_list(commands)
    _add_audit(commands)


def _add_list(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verifiers = commands.add_parser(
        "verifiers",
        help="list the verifiers and their options, or begin a new one",
        description="List every verifier: where it comes from, what it judges, and its options. With names, only those. "
        "`grpo verifiers new NAME` writes NAME.py, a rule to change, and test_NAME.py, which passes.",
    )
    verifiers.add_argument("names", nargs="*", metavar="NAME", help="verifiers to list; or: new NAME")
    verifiers.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help="where `new` writes (default: here)")
    _add_plugin(verifiers)
    verifiers.set_defaults(command=_verifiers)


def _add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = commands.add_parser(
        "audit",
        help="try whether a verifier can be trusted",
        description="Run the conformance kit: right answers get full marks and hacks do not, any text gets a score in time, the "
        "same text gets the same score here and in another process, and a killed worker is never a zero. Without names: all "
        "verifiers. Exit code 1 when a check failed.",
    )
    audit.add_argument("names", nargs="*", metavar="NAME", help="verifiers to audit (default: all)")
    audit.add_argument(
        "--sandbox", action="store_true", help="also those that run programs; needs the sandbox (grpo sandbox doctor)"
    )
    audit.add_argument(
        "--config", type=Path, metavar="FILE", help="take what a verifier needs (judge: its endpoint) from the mixes of this config"
    )
    _add_plugin(audit)
    audit.set_defaults(command=_audit)


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="X", help="a plugin: dotted module, FILE.py or FILE.py:name"
    )


def _verifiers(args: argparse.Namespace) -> int:
    from verifiers.listing import described
    from verifiers.registry import entries, find, load_plugins
    from verifiers.scaffold import write_scaffold

    load_plugins(args.plugin)
    if args.names[:1] == ["new"]:
        if len(args.names) != 2:
            raise UserError("grpo verifiers new takes one name, such as few_words.")
        files = write_scaffold(args.names[1], args.folder)
        print(f"{files.rule} holds the rule, {files.test} its test.")
        print(f"Next: pytest {files.test}; grpo audit {args.names[1]} --plugin {files.rule}")
        return 0
    for entry in [find(name) for name in args.names] or entries():
        print("\n".join(described(entry)), end="\n\n")
    return 0


def _audit(args: argparse.Namespace) -> int:
    from sandbox.config import SandboxConfig
    from verifiers.audit import audit
    from verifiers.audit_samples import missing_options
    from verifiers.registry import entries, find, load_plugins

    load_plugins(args.plugin)
    names = [find(name).name for name in args.names] or [entry.name for entry in entries()]
    sandbox = SandboxConfig() if args.sandbox else None
    mixes = _mixes(args.config) if args.config is not None else {}
    num_failed = 0
    audits = [(each, options) for each in names for options in _given(mixes, each, missing_options(find(each)))]
    for name, options in audits:
        try:
            findings = audit(name, options=options, sandbox=sandbox)
        except SystemFault as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return FAULT
        print("\n".join(report(name, findings)), flush=True)
        num_failed += any(finding.passed is False for finding in findings)
    print(f"{len(audits)} audited, {num_failed} failed")
    return FAULT if num_failed else 0


def _mixes(config: Path) -> dict[str, RewardMix]:
    """The mixes of a config; nothing else in it is looked at."""
    from pydantic import TypeAdapter, ValidationError

    from verifiers.options import explain
    from verifiers.reward import RewardMix

    mixes = dict[str, RewardMix]
    try:
        return TypeAdapter(mixes).validate_python(tomllib.loads(config.read_text(encoding="utf-8")).get("rewards", {}))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{config} cannot be read: {getattr(error, 'strerror', None) or error}. Give a TOML file.") from None
    except ValidationError as error:
        raise UserError(f"{config}: {explain(error, mixes, 'rewards')}") from None


def _given(mixes: Mapping[str, RewardMix], name: str, missing: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The options of each component that uses the verifier, if it lacks any without them; else none, once."""
    used = [mix[each].options for mix in mixes.values() for each in mix if mix.verifier_name(each) == name]
    yield from used if used and missing else [{}]


def report(name: str, findings: Sequence[Finding]) -> list[str]:
    """The findings on one verifier as lines."""
    marks = {True: "ok", False: "FAILED", None: "-"}
    return [name, *(f"  {marks[finding.passed]:7} {finding.check}: {finding.detail}" for finding in findings)]
