"""`grpo sandbox build | doctor | run | clean`. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

from sandbox.errors import SystemFault

FAULT = 1
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
