"""What is sent to a cluster with a job: the code that runs here, configs, plugins, small data; no runs, models or data sets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sandbox.errors import UserError

PACKAGES = ("sandbox", "verifiers", "rollout", "grpo")
LEFT_OUT_FOLDERS = frozenset({"runs", "data", "datasets", "models", "wandb", "build", "dist", "node_modules", "__pycache__"})
LEFT_OUT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".parquet", ".arrow", ".pyc", ".so"})
KEPT_HIDDEN = frozenset({".gitignore", ".rayignore"})  # Ray leaves out what they name
MAX_FILE_BYTES = 5 << 20
MAX_PACKAGE_BYTES = 100 << 20


class Package(NamedTuple):
    """A folder made ready for a cluster, and the files that were too large for it, by their path."""

    folder: Path
    left_out: dict[str, int]


def make_package(source: Path, place: Path) -> Package:
    """Copy what a job needs of `source`, and the packages of this process, into the new folder `place`.

    Raises UserError when it becomes too large to send.
    """
    place.mkdir(parents=True)
    left_out: dict[str, int] = {}
    total = 0
    for relative in wanted(source):
        size = (source / relative).stat().st_size
        if size > MAX_FILE_BYTES:
            left_out[str(relative)] = size
            continue
        total += size
        if total > MAX_PACKAGE_BYTES:
            raise UserError(
                f"{source}: what is to be sent to the cluster exceeds {MAX_PACKAGE_BYTES >> 20} MB at {relative}. Start from the "
                "folder that holds the configs, keep data in a folder named data, or name what to leave out in a .rayignore."
            )
        (place / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / relative, place / relative)
    for name in PACKAGES:
        shutil.rmtree(place / name, ignore_errors=True)
        shutil.copytree(code_root() / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Package(place, left_out)


def wanted(source: Path) -> Iterator[Path]:
    """The files below a folder that a job may need, sorted, relative to it. Links to folders are not followed."""
    for folder, subfolders, files in os.walk(source):
        here = Path(folder).relative_to(source)
        subfolders[:] = sorted(name for name in subfolders if not _is_left_out(here / name))
        for name in sorted(files):
            is_hidden = name.startswith(".") and name not in KEPT_HIDDEN
            if not is_hidden and Path(name).suffix not in LEFT_OUT_SUFFIXES and (source / here / name).is_file():
                yield here / name


def _is_left_out(folder: Path) -> bool:
    is_ours = folder.parts[0] in PACKAGES and len(folder.parts) > 1  # a `data` of a package is code
    return folder.name.startswith(".") or folder.name.endswith(".egg-info") or (folder.name in LEFT_OUT_FOLDERS and not is_ours)


def code_root() -> Path:
    """The folder that holds the packages of this process."""
    return Path(__file__).parents[2]
