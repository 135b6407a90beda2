"""What one machine has for a run: looked at there, in a process of its own, and sent back as plain values."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from grpo.config import RunConfig
from sandbox.errors import SystemFault, UserError

SHARED_MEMORY = Path("/dev/shm")
TOKEN_WAIT_S = 10.0


class NodeQuestions(NamedTuple):
    """What a node is asked. `token` names a file in the run folder that it must be able to read."""

    run_dir: str
    token: str
    packages: tuple[str, ...]
    config: str  # as JSON


@dataclasses.dataclass(frozen=True)
class NodeFacts:
    """What a node has. A `*_problem` is empty where there is none."""

    name: str
    python: str
    packages: dict[str, str]
    run_dir_problem: str
    run_dir_free_bytes: int
    temp_free_bytes: int
    shm_free_bytes: int
    model_problem: str
    model_bytes: int | None
    verifier_problem: str


def look_around(questions: NodeQuestions) -> NodeFacts:
    """The facts of the machine this is called on. Takes as long as one empty program in the sandbox, where one is used."""
    config = RunConfig.model_validate_json(questions.config)
    run_dir = Path(questions.run_dir)
    return NodeFacts(
        name=platform.node(),
        python=platform.python_version(),
        packages=installed(questions.packages),
        run_dir_problem=shared_folder_problem(run_dir, questions.token),
        run_dir_free_bytes=free_bytes(run_dir),
        temp_free_bytes=free_bytes(Path(tempfile.gettempdir())),
        shm_free_bytes=free_bytes(SHARED_MEMORY),
        model_problem=model_problem(config.model.path),
        model_bytes=model_bytes(config.model.path),
        verifier_problem=asyncio.run(verifier_problem(config)),
    )


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of those packages that are there."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@contextlib.contextmanager
def fresh_token(run_dir: Path) -> Iterator[str]:
    """A file of a new name in the run folder, for the time that the nodes look for it."""
    token = f".seen-by-all-{uuid.uuid4().hex}"
    (run_dir / token).write_text(token)
    try:
        yield token
    finally:
        for path in run_dir.glob(f"{token}*"):
            path.unlink(missing_ok=True)


def shared_folder_problem(run_dir: Path, token: str) -> str:
    """Why this machine cannot share the folder with the one that put the token there."""
    try:
        if (run_dir / token).read_text() != token:
            return f"{run_dir} holds something else here than on the head node."
        answer = run_dir / f"{token}.{uuid.uuid4().hex}"
        answer.write_text(token)
        if answer.read_text() != token:
            return f"{run_dir} does not give back what is written there."
    except FileNotFoundError:
        return f"{run_dir} is not here, or is another folder than on the head node."
    except OSError as error:
        return f"{run_dir} cannot be written: {error.strerror}."
    return ""


def free_bytes(folder: Path) -> int:
    """Free space where the folder is, or would be."""
    existing = next((place for place in (folder, *folder.absolute().parents) if place.exists()), None)
    return shutil.disk_usage(existing).free if existing is not None else 0


def model_problem(path: str) -> str:
    """Why a policy cannot be loaded from here."""
    if path == "tiny":
        return ""
    if Path(path).is_dir():
        config = Path(path) / "config.json"
        return "" if os.access(config, os.R_OK) else f"{config} cannot be read."
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        return f"the folder {path} is not here."
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        return f"{path} is neither in the cache nor to be had from the hub: {str(error).splitlines()[0]}"
    return ""


def model_bytes(path: str) -> int | None:
    """The size of the weights, where they are on this machine."""
    from grpo.doctor.config import folder_bytes, model_folder

    folder = model_folder(path)
    return None if folder is None else folder_bytes(folder)


async def verifier_problem(config: RunConfig) -> str:
    """Why the verifiers of this config would not work here."""
    from verifiers.service import VerifierService

    try:
        service = VerifierService(config.rewards, plugins=config.plugins, sandbox=config.sandbox)
    except UserError as error:
        return str(error)
    try:
        await service.probe_sandbox(config.tasks.rewards)
    except (SystemFault, UserError) as error:
        return str(error)
    finally:
        await service.close()
    return ""
