"""Snapshot files: how published weights are written, checked, discarded, and swept away when their writer died.

A folder of snapshots lies in shared memory where there is any, and its name says which process owns it. Nothing is removed here
that another living process may still need; when the learner may discard a snapshot is not decided here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import xxhash

from rollout.errors import SyncFailed
from rollout.types import Snapshot
from sandbox.errors import SystemFault

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
# What peft and vLLM call the file of an adapter's weights, which lies in a folder beside the adapter's config.
ADAPTER_FILE = "adapter_model.safetensors"
# What will be written: names, with the dtype and the shape of each.
Layout = Mapping[str, "tuple[torch.dtype, tuple[int, ...]]"]
_DTYPES = {
    **{f"torch.float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"torch.int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{"torch.bfloat16": "BF16", "torch.uint8": "U8", "torch.bool": "BOOL"},
}
_OWNED_FOLDER = re.compile(r"grpo-snapshots-(?P<run>.+)-(?P<pid>\d+)-(?P<start>\d+)-(?P<space>\d+)")
# psutil derives a start time from the clock at boot, which may be corrected later: ids are not used again within this time.
_START_TOLERANCE_S = 60


def snapshot_folder(run_id: str) -> Path:
    """A new or existing folder for the snapshots of this process, in shared memory when the machine has it.

    Snapshots that several machines load need a shared file system instead: give `write_snapshot` a folder there.
    """
    run = re.sub(r"[^A-Za-z0-9_.]+", "_", run_id)[:64] or "run"
    name = f"grpo-snapshots-{run}-{os.getpid()}-{_start_time(os.getpid())}-{_process_space()}"
    folder = _root() / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_snapshot(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], *, version: int, folder: Path | str) -> Snapshot:
    """Write weights that are at hand as one safetensors file in `folder`, as `stream_snapshot` does.

    Names are the model's own (Hugging Face) names. A tensor given under two names, as tied weights are, is written once, under the
    first.
    """
    # Wider numbers first, as safetensors writes them itself: each begins at a multiple of its size.
    weights = dict(sorted(_once(tensors).items(), key=lambda item: -item[1].element_size()))
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()}
    return stream_snapshot(weights.items(), layout, version=version, folder=folder)


def stream_snapshot(weights: Iterable[tuple[str, Tensor]], layout: Layout, *, version: int, folder: Path | str) -> Snapshot:
    """Write weights as they come, of which only one is held at a time, as one safetensors file in `folder`.

    `layout` says what will come, in its order. The file appears under its name only when it is whole. Raises SystemFault when it
    cannot be written; nothing is left of it then.
    """
    folder = Path(folder)
    partial = folder / f".partial-{version}-{os.getpid()}"
    digest = xxhash.xxh3_128()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for piece in _safetensors(weights, layout):
                digest.update(piece)
                file.write(piece)
        fingerprint = digest.hexdigest()
        # The fingerprint in the name: a run that goes back to an older step never writes over a file that is being read.
        path = folder / f"v{version:08d}-{fingerprint[:12]}.safetensors"
        partial.replace(path)
    except OSError as error:
        raise SystemFault(
            f"the snapshot of version {version} could not be written to {folder}: {error}. {mb_free(folder)} MiB are free there. "
            "Make room, or give a folder with room for the weights twice: the old ones stay until the new ones are loaded."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is not there, or nothing can be there
            partial.unlink()
    return Snapshot(version=version, path=str(path), fingerprint=fingerprint)


def _safetensors(weights: Iterable[tuple[str, Tensor]], layout: Layout) -> Iterator[bytes | memoryview]:
    """A file of this format piece by piece: the length of a header, the header in JSON, then the bytes of each tensor."""
    import torch

    entries: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        entries[name] = {"dtype": _DTYPES[str(dtype)], "shape": shape, "data_offsets": (start, end)}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little")
    yield header
    expected = iter(layout.items())
    for name, tensor in weights:
        assert (name, (tensor.dtype, tuple(tensor.shape))) == next(expected, None), f"{name} is not what was to come"
        yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
    assert next(expected, None) is None, "fewer weights came than the layout says"


def verify(snapshot: Snapshot) -> None:
    """Raise SyncFailed unless the file is there and its bytes have the snapshot's fingerprint.

    A snapshot that is sent or lent has no file; its buckets are checked as they arrive, or are opened.
    """
    if snapshot.is_sent:
        return
    try:
        found = file_fingerprint(snapshot.path)
    except OSError as error:
        raise SyncFailed(f"the snapshot of version {snapshot.version} cannot be read: {error}. Publish it again.") from error
    if found != snapshot.fingerprint:
        raise SyncFailed(
            f"the snapshot {snapshot.path} has the fingerprint {found}, not {snapshot.fingerprint}: the file was damaged or "
            "overwritten. Publish it again."
        )


def as_adapter(snapshot: Snapshot, write_config: Callable[[str], None]) -> Snapshot:
    """Make of a snapshot that holds the weights of an adapter the folder that peft and vLLM load.

    `write_config(folder)` writes the adapter's config. Raises SystemFault when it cannot be written; nothing is left of it then.
    """
    file = Path(snapshot.path)
    folder = file.with_suffix("")
    try:
        folder.mkdir(exist_ok=True)
        write_config(str(folder))
        file.replace(folder / ADAPTER_FILE)
    except OSError as error:
        file.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        raise SystemFault(f"the adapter of version {snapshot.version} could not be written to {folder}: {error}.") from error
    return replace(snapshot, path=str(folder / ADAPTER_FILE))


def discard(snapshot: Snapshot) -> None:
    """Remove the file, if it is one, or the adapter's folder. Who has it open keeps it; a snapshot already gone is no error."""
    if not snapshot.path:
        return
    path = Path(snapshot.path)
    if path.name == ADAPTER_FILE:
        shutil.rmtree(path.parent, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep_snapshots() -> list[Path]:
    """Remove the snapshot folders, in the default place, whose owner process is dead, and return them. Never those of others:
    not another user's, not a living process's, not one's that runs in another process-id space (a container)."""
    swept = []
    for folder in _root().glob("grpo-snapshots-*"):
        match = _OWNED_FOLDER.fullmatch(folder.name)
        try:
            is_ours = match is not None and folder.is_dir() and folder.stat().st_uid == os.getuid()
        except OSError:  # someone else swept it
            continue
        if not match or not is_ours or int(match["space"]) != _process_space():
            continue
        if not _is_alive(int(match["pid"]), int(match["start"])):
            shutil.rmtree(folder, ignore_errors=True)
            logger.info("removed %s, left by process %s", folder, match["pid"])
            swept.append(folder)
    return swept


def file_fingerprint(path: Path | str) -> str:
    """xxh3-128 of the file's bytes, as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(8 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _once(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    written: dict[str, Tensor] = {}
    seen: set[tuple] = set()
    for name, tensor in pairs:
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        assert name not in written, f"the weight {name} was given twice with different values"
        written[name] = tensor
    return written


def _root() -> Path:
    return SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def mb_free(folder: Path) -> int:
    """Room for files in this folder, in MiB."""
    return shutil.disk_usage(folder).free >> 20


def _start_time(pid: int) -> int | None:
    """When the process started, in seconds since 1970; None when there is no such process."""
    try:
        return int(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _is_alive(pid: int, start: int) -> bool:
    found = _start_time(pid)
    return found is not None and abs(found - start) <= _START_TOLERANCE_S


def _process_space() -> int:
    """Which process-id namespace this is: the same pid means another process elsewhere. 0 where the system has none."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
