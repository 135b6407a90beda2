"""Ending a job gracefully: the request goes into the run folder, where its driver finds it between two steps.

Ray's own stop would send signals and kill after a fixed time, however long a step takes; it remains for what does not listen.
"""

from __future__ import annotations

import time

from rich.console import Console

from grpo.exit_codes import ExitCode
from grpo.jobs.launch import request_of
from grpo.jobs.server import KIND, Job, JobServer
from sandbox.errors import SystemFault

CONTROL_TIMEOUT_S = 120.0


def stop(server: JobServer, job_id: str, *, wait_s: float, force: bool, console: Console) -> int:
    """End a job and say how it ended. Raises SystemFault when it has not within `wait_s`."""
    job = server.job(job_id)
    if not job.is_over:
        deadline = time.monotonic() + wait_s
        if force or job.status == "PENDING":
            server.end(job_id)
        else:
            ask(server, job)
        with console.status(f"waiting for {job_id} to end its step"):
            job = server.wait(job_id, timeout_s=deadline - time.monotonic())
    if not job.is_over:
        raise SystemFault(
            f"{job_id} has not ended within {wait_s:g} s. The request stands: it ends after its step, with a checkpoint. Look "
            f"at it with `grpo logs {job_id}`; `grpo stop --force {job_id}` ends it without waiting."
        )
    last = (server.log(job_id).splitlines() or [""])[-1]
    console.print(f"{job_id}: {job.outcome}. {last}", highlight=False, markup=False, soft_wrap=True)
    if job.outcome in ("stopped", "ended by Ray"):
        console.print(
            f"grpo resume {job.metadata.get('run_dir', 'RUN')} goes on from its newest checkpoint", highlight=False, soft_wrap=True
        )
    return ExitCode.DONE


def ask(server: JobServer, job: Job) -> None:
    """Leave the request in the run folder, by a job of a moment: from here the folder may be out of reach."""
    request = request_of(job)
    control = server.submit(
        entrypoint=request.entrypoint("grpo.jobs.driver", request.run_dir, job.id),
        runtime_env=job.runtime_env,
        metadata={KIND: "control", "run_dir": request.run_dir},
    )
    done = server.wait(control, timeout_s=CONTROL_TIMEOUT_S)
    if done.outcome != "done":
        last = " ".join(server.log(control).splitlines()[-3:])
        raise SystemFault(
            f"the request to stop {job.id} did not reach its run folder ({done.outcome}: {last}). Try again, or with --force."
        )
