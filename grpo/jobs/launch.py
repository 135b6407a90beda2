"""A run as a job: the request that is sent to a cluster, and the pre-flight before it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from grpo.folder import RECORDED_PACKAGES
from grpo.jobs.driver import JOB
from grpo.jobs.node_facts import installed
from grpo.jobs.package import code_root, make_package
from grpo.jobs.preflight import ClusterFacts, Verdict, needs_of, verdicts
from grpo.jobs.server import KIND, Job, JobServer
from grpo.jobs.survey import FACTS
from grpo.plan import plan
from sandbox.errors import SystemFault, UserError

PREFLIGHT_TIMEOUT_S = 300.0
INSTALL_TIMEOUT_S = 3600.0
# Ray's own stop button: how long a step may take that still gets its checkpoint. `grpo stop` waits as long as it is told.
STOP_WAIT_S = 120


class PreflightFailed(UserError):
    """The cluster cannot run this config as it is. The verdicts, printed before, say what to do."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One run to be submitted. `python` is the interpreter on the cluster; `arguments` go to `grpo train` there."""

    config: str
    run_dir: str
    overrides: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    python: str = sys.executable
    install: str | None = None
    env: tuple[str, ...] = ()
    num_nodes: int | None = None

    @property
    def settings(self) -> list[str]:
        """The config, its folder and overrides, as both `grpo train` and the pre-flight take them."""
        here = (*self.overrides, "ray_address=auto")
        return [self.config, "--run-dir", self.run_dir, *(word for override in here for word in ("--set", override))]

    @property
    def metadata(self) -> dict[str, str]:
        """What `grpo resume` needs to submit it again."""
        return {KIND: "train", "run_dir": self.run_dir, "config": self.config, "request": json.dumps(dataclasses.asdict(self))}

    def entrypoint(self, module: str, *words: str) -> str:
        """A shell command; without `exec` the shell would stand between Ray and the process."""
        # What Ray installs comes with an interpreter of its own, first in the PATH of the job.
        python = "python" if self.install else self.python
        return "exec " + shlex.join([python, "-m", module, *words])


def request_of(job: Job) -> Request:
    """The request that a job was submitted by. Raises UserError for a job that is none of ours."""
    try:
        values: dict[str, Any] = json.loads(job.metadata["request"])
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return Request(**fields)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{job.id} was not submitted by `grpo launch` of this version. Use Ray's own: ray job stop {job.id}."
        ) from None


def checked(request: Request) -> Request:
    """The same, once what can be seen from here is right. Raises UserError."""
    if not Path(request.run_dir).is_absolute():
        raise UserError(
            f"--run-dir {request.run_dir}: a job's own folder goes with it, so its run needs an absolute path, on a file system "
            "that all nodes share: --run-dir /shared/runs/NAME."
        )
    config = Path(os.path.relpath(request.config))
    if config.parts[0] == "..":
        raise UserError(f"{request.config}: is not below this folder, which is what is sent to the cluster. Start from above it.")
    if request.install is not None and not Path(request.install).is_file():
        raise UserError(f"--install {request.install}: no such file. Give a lock, such as requirements/cuda.lock.")
    plan(config, request.overrides, Path(request.run_dir))  # says what is wrong with a config, before anything is sent
    return dataclasses.replace(request, config=str(config))


def runtime_env(request: Request, folder: Path) -> dict[str, Any]:
    """What Ray sets up on every node: the package, variables, and what is to be installed."""
    env: dict[str, Any] = {"working_dir": str(folder), "env_vars": variables(request.env)}
    if request.install is not None:
        options = ["--no-deps", "--no-input", "--disable-pip-version-check"]
        env["pip"] = {"packages": pins(Path(request.install)), "pip_check": False, "pip_install_options": options}
        env["config"] = {"setup_timeout_seconds": int(INSTALL_TIMEOUT_S)}
    return env


def variables(given: Sequence[str]) -> dict[str, str]:
    """Those of the job: NAME=VALUE, or NAME for the value it has here. Raises UserError for a name that has none."""
    found = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals and name not in os.environ:
            raise UserError(f"--env {name}: has no value here. Set it, or give --env {name}=VALUE.")
        found[name] = value if equals else os.environ[name]
    return found


def pins(lock: Path) -> list[str]:
    """The lines `name==version` of a lock."""
    return [line.split(" ")[0] for line in lock.read_text().splitlines() if re.match(r"[A-Za-z0-9]", line)]


def expected_packages(lock: Path) -> dict[str, str]:
    """The packages that decide what a run does, in the versions of a lock; without it in those that are here."""
    if not lock.is_file():  # not started from a checkout
        return {name: version for name, version in installed(RECORDED_PACKAGES).items() if name != "grpo-reasoning"}
    locked = dict(pin.split("==", 1) for pin in pins(lock) if "==" in pin)
    return {name: locked[name] for name in RECORDED_PACKAGES if name in locked}


def lock_for(facts: ClusterFacts) -> Path:
    """The lock that an environment of this cluster was made from."""
    return code_root() / "requirements" / ("cuda.lock" if facts.gpus else "cpu.lock")


def launch(server: JobServer, request: Request, console: Console, *, preflight: bool = True) -> str:
    """Submit a run; its job's id. Raises PreflightFailed when the cluster could not run it."""
    for job in server.jobs():
        if not job.is_over and job.metadata.get("run_dir") == request.run_dir:
            raise UserError(
                f"job {job.id} is {job.outcome} in {request.run_dir}. Watch it with `grpo logs -f {job.id}`, stop it, or use "
                "another --run-dir."
            )
    with tempfile.TemporaryDirectory(prefix="grpo-launch-") as temporary:
        package = make_package(Path.cwd(), Path(temporary) / "package")
        for path, size in package.left_out.items():
            console.print(f"{path} ({size >> 20} MB) is too large to be sent; name it by a path the nodes share", style="yellow")
        env = runtime_env(request, package.folder)
        if preflight:
            facts = examine(server, request, env, console)
            report(judged(request, facts), console)
        job_id = new_id(request.run_dir)
        env["env_vars"] |= {JOB: job_id}
        words = ["train", *request.settings, *request.arguments]
        return server.submit(
            entrypoint=request.entrypoint("grpo.cli", *words), runtime_env=env, metadata=request.metadata, job_id=job_id
        )


def new_id(run_dir: str) -> str:
    """`grpo-NAME-20260131-235959`: a name that says what runs."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(run_dir).name).strip("-") or "run"
    return f"grpo-{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def examine(server: JobServer, request: Request, env: dict[str, Any], console: Console) -> ClusterFacts:
    """The facts of the cluster, gathered by a short job there."""
    words = [word for name in RECORDED_PACKAGES for word in ("--package", name)]
    with console.status("pre-flight: asking every node"):
        job_id = server.submit(
            entrypoint=request.entrypoint("grpo.jobs.survey", *request.settings, *words),
            runtime_env=env,
            metadata={KIND: "preflight", "run_dir": request.run_dir},
        )
        job = server.wait(job_id, timeout_s=INSTALL_TIMEOUT_S if request.install else PREFLIGHT_TIMEOUT_S)
    log = server.log(job_id)
    for line in log.splitlines():
        if line.startswith(FACTS):
            return ClusterFacts.from_json(line.removeprefix(FACTS))
    if not job.is_over:
        server.end(job_id)
    raise failed_preflight(request, job, log)


def failed_preflight(request: Request, job: Job, log: str) -> Exception:
    """Why there are no facts."""
    if job.exit_code in (126, 127) and not request.install:
        return UserError(
            f"{request.python} is not on the cluster's head node. Name the one there that has our packages with --python, or have "
            "them installed: --install requirements/cuda.lock."
        )
    if "No module named" in log:
        missing = log.rpartition("No module named")[2].splitlines()[0].strip()
        return UserError(
            f"the cluster's {request.python} lacks {missing}. Install requirements/*.lock there, name another interpreter with "
            "--python, or add --install requirements/cuda.lock."
        )
    last = "\n  ".join([*log.splitlines()[-8:], *([] if job.is_over else ["(it took too long, and was ended)"])])
    return SystemFault(
        f"the pre-flight told nothing; {job.outcome}: {job.message.splitlines()[0] if job.message else ''}\n  {last}"
    )


def judged(request: Request, facts: ClusterFacts) -> list[Verdict]:
    stages = plan(Path(request.config), request.overrides, Path(request.run_dir))
    config = stages[-1].config.model_copy(update={"model": stages[0].config.model})
    packages = expected_packages(Path(request.install) if request.install else lock_for(facts))
    if config.engine.kind != "vllm":
        packages = {name: version for name, version in packages.items() if not name.startswith("vllm")}
    if config.learner.optimizer == "adamw_8bit":  # no lock of ours has it
        packages.setdefault("torchao", "")
    needs = needs_of(config, run_dir=request.run_dir, num_nodes=request.num_nodes, packages=packages, facts=facts)
    return verdicts(needs, facts)


def report(found: Sequence[Verdict], console: Console) -> None:
    """Print the verdicts. Raises PreflightFailed when one of them is a failure."""
    table = Table("pre-flight", "found", "what to do")
    for verdict in found:
        style = "red" if verdict.is_failure else "yellow" if verdict.advice else None
        table.add_row(verdict.name, verdict.found, verdict.advice or "-", style=style)
    console.print(table)
    failures = [verdict.name for verdict in found if verdict.is_failure]
    if failures:
        raise PreflightFailed(f"not submitted: {', '.join(failures)}. The table says what to do about each.")
