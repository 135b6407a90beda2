"""Ray's job server: what is submitted to a cluster, watched and ended there. What the jobs do, once they run, is not here."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from grpo.exit_codes import ExitCode
from rollout.environment import environment
from sandbox.errors import SystemFault, UserError

logger = logging.getLogger(__name__)

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TOKEN = Path.home() / ".ray" / "auth_token"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray prefers them to what it is given
AGENT_WAIT_S = 120.0
CLIENT_TRIES = 3  # Ray's server for clients starts a process for each, which now and then dies as it is forked
NO_AGENT = "No available agent"
KIND = "grpo"  # in a job's metadata: what it is for


class ServerFault(SystemFault):
    """The job server did not answer, or not as it should."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A job as the server tells it. `exit_code` is None until its driver has ended by itself; times are seconds since 1970."""

    id: str
    status: str
    exit_code: int | None
    entrypoint: str
    message: str
    metadata: dict[str, str]
    runtime_env: dict[str, Any]
    started: float | None
    ended: float | None

    @property
    def is_over(self) -> bool:
        return self.status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)

    @property
    def outcome(self) -> str:
        """The status in our words: Ray calls everything failed that ends with another code than 0."""
        return outcome(self.status, self.exit_code)

    @property
    def ended_with(self) -> ExitCode:
        """The code of `grpo train` in it; that of success while it runs."""
        words = {"stopped": ExitCode.STOPPED, "ended by Ray": ExitCode.STOPPED, "user error": ExitCode.USER_ERROR}
        return ExitCode.FAULT if self.outcome == "fault" else words.get(self.outcome, ExitCode.DONE)


def outcome(status: str, exit_code: int | None) -> str:
    """`running`, `done`, `stopped` and so on, from Ray's status and the driver's exit code."""
    if status == JobStatus.FAILED:
        return {ExitCode.STOPPED: "stopped", ExitCode.USER_ERROR: "user error"}.get(exit_code, "fault")  # type: ignore[call-overload]
    words = {
        JobStatus.PENDING: "waiting",
        JobStatus.RUNNING: "running",
        JobStatus.SUCCEEDED: "done",
        JobStatus.STOPPED: "ended by Ray",
    }
    return words[JobStatus(status)]


def given_address(address: str | None) -> str | None:
    """The address of a command line, or the one that Ray's variables hold; None when there is neither."""
    return address or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)


class JobServer:
    """The job server of a cluster, at `http://HEAD:8265`, or found through `ray://HEAD:10001`.

    Raises UserError when there is none or it wants a token, ServerFault when it fails.
    """

    def __init__(self, address: str | None) -> None:
        self.address = given_address(address) or DEFAULT_ADDRESS
        if not self.address.startswith(("http://", "https://", "ray://")):
            raise UserError(f"--address {self.address}: expected http://HEAD:8265 (the dashboard) or ray://HEAD:10001.")
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray.util.client_builder"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Without a mode, whether Ray sends a token depends on what this process did with it before, for Ray reads it once, as it is
        # imported: a token is sent by ourselves then. A mode that stayed here would be that of the servers of a later cluster.
        mode = os.environ.get("RAY_AUTH_MODE")
        token = _token() if mode is None else None
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with self._told(), environment({"RAY_AUTH_MODE": mode or "disabled"} | dict.fromkeys(ADDRESS_VARIABLES)):
            self._client = self._connected(headers)

    def _connected(self, headers: dict[str, str], *, pause_s: float = 1.0) -> JobSubmissionClient:
        for _ in range(CLIENT_TRIES - 1):
            try:
                return JobSubmissionClient(self.address, headers=headers)
            except ConnectionAbortedError as error:
                logger.info("%s: %s; trying again", self.address, error)
            time.sleep(pause_s)
        return JobSubmissionClient(self.address, headers=headers)

    def submit(self, *, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str], job_id: str | None = None) -> str:
        """Its id. Waits for a cluster that has just started: its job server answers before it can take a job."""
        deadline = time.monotonic() + AGENT_WAIT_S
        while True:
            try:
                with self._told():
                    return self._client.submit_job(
                        entrypoint=entrypoint, runtime_env=runtime_env, metadata=metadata, submission_id=job_id
                    )
            except ServerFault as fault:
                if NO_AGENT not in str(fault) or time.monotonic() > deadline:
                    raise
            time.sleep(1.0)

    def job(self, job_id: str) -> Job:
        """Raises UserError when the cluster knows no such job."""
        try:
            with self._told():
                return _job(self._client.get_job_info(job_id))
        except ServerFault as error:
            if "404" not in str(error):
                raise
            known = ", ".join(job.id for job in self.jobs()[-5:]) or "none"
            raise UserError(f"{job_id}: no such job at {self.address}. The newest are: {known}; `grpo jobs` lists all.") from None

    def jobs(self, kind: str = "train") -> list[Job]:
        """Our jobs of a kind, oldest first."""
        with self._told():
            found = [_job(details) for details in self._client.list_jobs() if (details.metadata or {}).get(KIND) == kind]
        return sorted(found, key=lambda job: job.started or float("inf"))

    def log(self, job_id: str) -> str:
        with self._told():
            return self._client.get_job_logs(job_id)

    async def follow(self, job_id: str) -> AsyncIterator[str]:
        """The log from its beginning, and what is added to it until the job is over."""
        with self._told():
            async for text in self._client.tail_job_logs(job_id):
                yield text

    def end(self, job_id: str) -> None:
        """Ray's own stop: SIGTERM, and SIGKILL after the time that the job's RAY_JOB_STOP_WAIT_TIME_S gives."""
        with self._told():
            self._client.stop_job(job_id)

    def wait(self, job_id: str, *, timeout_s: float, every_s: float = 0.5, until: Callable[[Job], bool] | None = None) -> Job:
        """The job once it is over, or `until` holds; as it is when the time has passed."""
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            if job.is_over or (until is not None and until(job)) or time.monotonic() > deadline:
                return job
            time.sleep(every_s)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            raise UserError(
                f"{self.address} wants a token, or another than the one sent. Put the cluster's (on its head node: {TOKEN}) into "
                "RAY_AUTH_TOKEN, and set RAY_AUTH_MODE=token."
            ) from None
        except ConnectionAbortedError as error:
            raise ServerFault(
                f"{self.address}: Ray's server for clients answers, but starts no process for this one ({error}). The head node's "
                "ray_client_server*.err say why; http://HEAD:8265 needs no such process."
            ) from None
        except (TimeoutError, ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
            raise UserError(
                f"{self.address}: no job server answers ({type(error).__name__}). Start the cluster with its dashboard (ray start "
                "--head --dashboard-host=0.0.0.0), open a tunnel to it (ssh -L 8265:127.0.0.1:8265 HEAD), or give another address."
            ) from None
        except RuntimeError as error:
            raise ServerFault(f"{self.address}: {error}") from None


def _job(details: JobDetails) -> Job:
    return Job(
        id=details.submission_id or details.job_id or "?",
        status=details.status.value,
        exit_code=details.driver_exit_code,
        entrypoint=details.entrypoint,
        message=details.message or "",
        metadata=details.metadata or {},
        runtime_env=details.runtime_env or {},
        started=None if details.start_time is None else details.start_time / 1000,
        ended=None if not details.end_time else details.end_time / 1000,
    )


def _token() -> str | None:
    """The token of this machine, where Ray looks for one."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN)
    return path.read_text().strip() or None if path.is_file() else None
