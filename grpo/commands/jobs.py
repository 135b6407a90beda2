"""The commands `grpo launch | jobs | status | logs | stop | resume`. Their work is in launch.py and jobs.py."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from grpo.exit_codes import ExitCode
from sandbox.errors import UserError

if TYPE_CHECKING:
    from grpo.jobs.launch import Request
    from grpo.jobs.server import Job, JobServer

Commands = argparse._SubParsersAction
STATUS_LINES = 5


def add_jobs(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands about jobs on a cluster to the command line."""
    _add_launch(commands)
    jobs = commands.add_parser("jobs", help="list the runs submitted to a cluster", description="The runs submitted to a cluster.")
    _add_address(jobs)
    jobs.set_defaults(command=_jobs)
    status = commands.add_parser(
        "status",
        help="say how a job stands",
        description="How a job stands, and the last lines of its log. The exit code is that of its `grpo train`, 0 while it runs.",
    )
    _add_job(status)
    status.set_defaults(command=_status)
    logs = commands.add_parser("logs", help="print a job's log", description="What a job has said.")
    _add_job(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the job is over, and exit as its `grpo train` did")
    logs.set_defaults(command=_logs)
    _add_stop(commands)
    _add_resume(commands)


def _add_launch(commands: Commands[argparse.ArgumentParser]) -> None:
    launch = commands.add_parser(
        "launch",
        help="train on a Ray cluster, as a job",
        description="Submit the run of a config to a Ray cluster. The current folder is sent along, with this code and without "
        "runs, models and data; a pre-flight looks at every node first and says what to do. Typed again, it resumes.",
    )
    launch.add_argument("config", type=Path, metavar="CONFIG", help="TOML file below the current folder")
    _add_address(launch)
    launch.add_argument(
        "--run-dir", required=True, metavar="DIR", help="folder of the run: an absolute path that all nodes of the cluster share"
    )
    _add_overrides(launch)
    launch.add_argument("--fresh", action="store_true", help="start over, as `grpo train --fresh` does")
    launch.add_argument("--overwrite", action="store_true", help="with --fresh: delete the existing run")
    launch.add_argument("--allow-changes", action="store_true", help="resume although the config differs from the recorded one")
    launch.add_argument("--nodes", type=int, metavar="N", help="refuse to start before so many nodes have joined")
    launch.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="the interpreter on the cluster (default: %(default)s)"
    )
    launch.add_argument(
        "--install", metavar="LOCK", help="have Ray install this lock on every node (once; it keeps what it installed)"
    )
    launch.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable for the job, e.g. WANDB_API_KEY"
    )
    launch.add_argument("--no-preflight", action="store_true", help="submit without looking at the cluster first")
    launch.set_defaults(command=_launch)


def _add_stop(commands: Commands[argparse.ArgumentParser]) -> None:
    stop = commands.add_parser(
        "stop",
        help="end a job, with a checkpoint first",
        description="Ask a job to end after the step under way, with a checkpoint, and wait until it has.",
    )
    _add_job(stop)
    stop.add_argument(
        "--wait", type=float, default=1800.0, metavar="SECONDS", help="how long to wait; the request stands (default: %(default)g)"
    )
    stop.add_argument(
        "--force", action="store_true", help="end it by Ray's own stop: a step that takes more than two minutes is lost"
    )
    stop.set_defaults(command=_stop)


def _add_resume(commands: Commands[argparse.ArgumentParser]) -> None:
    resume = commands.add_parser(
        "resume",
        help="go on with a run that ended early",
        description="Go on with a run from its newest checkpoint, as it was started: with an address the run of a job on that "
        "cluster, else one of this machine.",
    )
    resume.add_argument("run", metavar="RUN", help="folder of the run, or the id of a job that worked in it")
    _add_address(resume)
    _add_overrides(resume)
    resume.add_argument("--allow-changes", action="store_true", help="resume although the config differs from the recorded one")
    resume.set_defaults(command=_resume)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="URL", help="http://HEAD:8265 or ray://HEAD:10001 (default: RAY_ADDRESS, else http://127.0.0.1:8265)"
    )


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="id of a job: `grpo jobs` lists them")
    _add_address(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=C", help="override one value")


def _server(args: argparse.Namespace) -> JobServer:
    from grpo.jobs.server import JobServer

    return JobServer(args.address)


def _launch(args: argparse.Namespace) -> int:
    from grpo.jobs.launch import Request, checked

    if args.overwrite and not args.fresh:
        raise UserError("--overwrite deletes a run only together with --fresh. Add --fresh, or leave --overwrite out to resume.")
    flags = {"--fresh": args.fresh, "--overwrite": args.overwrite, "--allow-changes": args.allow_changes}
    request = checked(
        Request(
            config=str(args.config),
            run_dir=args.run_dir,
            overrides=tuple(args.overrides),
            arguments=tuple(flag for flag, is_set in flags.items() if is_set),
            python=args.python,
            install=args.install,
            env=tuple(args.env),
            num_nodes=args.nodes,
        )
    )
    return _submit(_server(args), request, preflight=not args.no_preflight)


def _submit(server: JobServer, request: Request, *, preflight: bool = True) -> int:
    from rich.console import Console

    from grpo.jobs.launch import launch

    job_id = launch(server, request, Console(), preflight=preflight)
    print(f"submitted {job_id}")
    print(f"  watch it:  grpo logs -f {job_id}\n  stop it:   grpo stop {job_id}\n  its run:   {request.run_dir}")
    return ExitCode.DONE


def _jobs(args: argparse.Namespace) -> int:
    jobs = _server(args).jobs()
    width = max((len(job.id) for job in jobs), default=3)
    print(f"{'job':<{width}}  {'status':<12}  {'minutes':>8}  run")
    for job in jobs:
        print(f"{job.id:<{width}}  {job.outcome:<12}  {_minutes(job):>8}  {job.metadata.get('run_dir', '')}")
    return ExitCode.DONE


def _minutes(job: Job) -> str:
    return "-" if job.started is None else f"{((job.ended or time.time()) - job.started) / 60:.1f}"


def _status(args: argparse.Namespace) -> int:
    server = _server(args)
    job = server.job(args.job)
    print(f"{job.id}: {job.outcome}, {_minutes(job)} minutes, {job.metadata.get('config')} in {job.metadata.get('run_dir')}")
    for line in server.log(job.id).splitlines()[-STATUS_LINES:]:
        print(f"  {line}")
    return job.ended_with


def _logs(args: argparse.Namespace) -> int:
    import asyncio

    from grpo.jobs.launch import INSTALL_TIMEOUT_S

    server = _server(args)
    job = server.job(args.job)
    if not args.follow:
        print(server.log(job.id), end="")
        return ExitCode.DONE

    async def follow() -> None:
        async for text in server.follow(job.id):
            print(text, end="", flush=True)

    server.wait(job.id, timeout_s=INSTALL_TIMEOUT_S, until=lambda job: job.status == "RUNNING")
    asyncio.run(follow())
    # The log ends a moment before the server knows how.
    return server.wait(job.id, timeout_s=60).ended_with


def _stop(args: argparse.Namespace) -> int:
    from rich.console import Console

    from grpo.jobs.stop import stop

    return stop(_server(args), args.job, wait_s=args.wait, force=args.force, console=Console())


def _resume(args: argparse.Namespace) -> int:
    import dataclasses

    from grpo.jobs.server import given_address

    if given_address(args.address) is None and Path(args.run).is_dir():
        return _resume_here(args)
    from grpo.jobs.launch import checked, request_of

    server = _server(args)
    runs = [job for job in server.jobs() if args.run in (job.id, job.metadata.get("run_dir"))]
    if not runs:
        raise UserError(
            f"{args.run}: no job at {server.address} has worked there. `grpo jobs` lists the runs; a cluster that was started anew "
            "knows none: then type the `grpo launch` again, which resumes too."
        )
    before = request_of(runs[-1])
    arguments = ("--allow-changes",) if args.allow_changes else ()
    request = dataclasses.replace(before, overrides=(*before.overrides, *args.overrides), arguments=arguments)
    return _submit(server, checked(request))


def _resume_here(args: argparse.Namespace) -> int:
    """The command that a run of this machine was started with, again, from the folder it was typed in."""
    import os

    from grpo.cli import main
    from grpo.folder import RunFolder

    command = RunFolder(Path(args.run)).command()
    if not Path(command["folder"]).is_dir():
        raise UserError(f"{args.run}: was started in {command['folder']}, which is gone. If that was a job: give --address.")
    os.chdir(command["folder"])
    more = [word for override in args.overrides for word in ("--set", override)]
    return main([*command["arguments"], *more, *(["--allow-changes"] if args.allow_changes else [])])
