"""`grpo sandbox build | doctor | run | clean`. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sandbox.errors import SystemFault, UserError

if TYPE_CHECKING:
    from sandbox.config import SandboxConfig
    from sandbox.types import Execution, Limits, Program

FAULT = 1
LEVELS = ("warm", "fresh", "gvisor", "bubblewrap")
Command = Callable[[argparse.Namespace], int]


def add_sandbox(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `sandbox` and its four commands to the command line."""
    sandbox = commands.add_parser(
        "sandbox",
        help="make, check, try and clean the place where untrusted programs run",
        description="The place where programs that a model wrote are run. On a new machine: build, then doctor.",
    )
    parts = sandbox.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_build(parts)
    _add_doctor(parts)
    _add_run(parts)
    _add_clean(parts)


def _add_build(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = parts.add_parser(
        "build",
        help="build the Docker image",
        description="Build the image that programs run in: Python, its library, the agent, and nothing else. From images/"
        "python.Dockerfile where a registry is reachable, else from Debian packages; it says which, and why. An image that is "
        "there already is left as it is.",
    )
    build.add_argument(
        "--packages",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Debian packages with more modules, e.g. python3-numpy; name the image that comes out in sandbox.image of a config",
    )
    build.add_argument(
        "--method",
        choices=["auto", "registry", "debian"],
        default="auto",
        help="registry: only the Dockerfile; debian: only mmdebstrap or debootstrap (default: the first that works)",
    )
    build.add_argument("--mirror", metavar="URL", help="a Debian mirror (default: deb.debian.org)")
    build.add_argument("--rebuild", action="store_true", help="build although an identical image is there, for newer packages")
    build.set_defaults(command=_faults_told(_build))


def _add_doctor(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    doctor = parts.add_parser(
        "doctor",
        help="say which levels of the sandbox this machine has, and prove it",
        description="Say what this machine has, which levels that makes possible, and what to type for the others. Every level "
        "that is possible is proved by attacks that really run (about 20 s for all four). Exit code 0: the default level, or the "
        "one that --level names, holds.",
    )
    doctor.add_argument("--level", choices=LEVELS, help="try this level alone")
    doctor.add_argument("--image", metavar="NAME", help="try with this image (default: the one of this version)")
    doctor.set_defaults(command=_doctor)


def _add_run(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = parts.add_parser(
        "run",
        help="run one program in the sandbox and print what became of it",
        description="Run a Python program in the sandbox as a verifier would, and print its execution as JSON: how it ended, what "
        "it wrote, and what it used. Exit code 0 when it could be run, whatever it did.",
        epilog="grpo sandbox run answer.py --stdin case1.txt --seconds 2",
    )
    run.add_argument("file", type=Path, metavar="FILE", help="the program")
    run.add_argument("--stdin", type=Path, metavar="FILE", help="what it reads from its standard input (default: nothing)")
    run.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="CPU seconds; on the clock it may take 5 S + 1 (default: 5)"
    )
    run.add_argument("--memory", type=int, default=256, metavar="MB", help="memory of each of its processes, in MiB (default: 256)")
    run.add_argument("--level", choices=LEVELS, default="warm", help="how strong the walls are (default: warm)")
    run.add_argument("--image", metavar="NAME", help="an image that `grpo sandbox build` made (default: the one of this version)")
    run.set_defaults(command=_faults_told(_run))


def _add_clean(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    clean = parts.add_parser(
        "clean",
        help="remove what dead runs left behind",
        description="Remove containers whose owner is dead. Those of living runs, and of anybody else, are never touched. Every "
        "run does this by itself when it starts.",
    )
    clean.add_argument("--images", action="store_true", help="also remove images of other versions, where nothing uses them")
    clean.set_defaults(command=_faults_told(_clean))


def _faults_told(command: Command) -> Command:
    """A fault of ours or of the machine is one line on stderr and exit code 1."""

    @functools.wraps(command)
    def told(args: argparse.Namespace) -> int:
        try:
            return command(args)
        except SystemFault as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return FAULT

    return told


def _build(args: argparse.Namespace) -> int:
    from rich.console import Console

    from sandbox.build import build, summary
    from sandbox.docker import connect

    console = Console()
    built = build(connect(), console, packages=args.packages, method=args.method, mirror=args.mirror, rebuild=args.rebuild)
    console.print(summary(built))
    if built.image.packages:
        console.print(f'To use it: sandbox.image = "{built.image.name}" in the config.', highlight=False, soft_wrap=True)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from rich.console import Console

    from sandbox.doctor import examine

    levels = [args.level] if args.level else list(LEVELS)
    return 0 if examine(Console(), levels, image=args.image) else FAULT


def _run(args: argparse.Namespace) -> int:
    import asyncio
    import dataclasses
    import json

    from pydantic import ValidationError

    from sandbox.config import SandboxConfig
    from sandbox.types import Limits, Program

    program = Program(_text_of(args.file))
    stdin = "" if args.stdin is None else _text_of(args.stdin)
    try:
        limits = Limits(cpu_s=args.seconds, memory_mb=args.memory)
        config = SandboxConfig(level=args.level, slots=1, image=args.image, memory_mb=max(512, 2 * args.memory))
    except ValidationError as error:
        wrong = error.errors()[0]
        option = {"cpu_s": "--seconds", "memory_mb": "--memory"}.get(str(wrong["loc"][0]), str(wrong["loc"][0]))
        raise UserError(f"{option} is {wrong['input']}: {wrong['msg']}.") from None
    print(json.dumps(dataclasses.asdict(asyncio.run(_execution(config, program, stdin, limits))), indent=2))
    return 0


async def _execution(config: SandboxConfig, program: Program, stdin: str, limits: Limits) -> Execution:
    from sandbox.pool import open_sandbox

    sandbox = open_sandbox(config, patience_s=0.0)
    try:
        return await sandbox.run(program, stdin=stdin, limits=limits)
    finally:
        await sandbox.close()


def _text_of(path: Path) -> str:
    """A file as a program would be given. Bytes that are no UTF-8 go on as they are, for Python to refuse."""
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Give the name of a file.") from None


def _clean(args: argparse.Namespace) -> int:
    from sandbox.cleaning import sweep

    removed = [f"container {swept.container_id[:12]}: {swept.reason}" for swept in sweep()]
    if args.images:
        from sandbox.docker import connect
        from sandbox.image import remove_others

        removed += [f"image {name}: another version" for name in remove_others(connect())]
    for line in removed:
        print(line)
    print(f"{len(removed)} removed" if removed else "nothing was left behind")
    return 0
