"""Weights in memory that the learner lends: it packs them into buckets, and engines on the same device open these and copy.

On a GPU a bucket is device memory and its handle one of CUDA IPC: nothing goes through a file or the host (not yet run on a GPU).
On a CPU it is shared memory under a name in a folder of the learner's process, and the name is the handle: processes that know
nothing else of each other map the same pages, and the folder of one that was killed is swept like any other (`snapshot.py`). A
bucket is laid out and has its digest as in a broadcast. Who is lent what, and for how long, is not decided here.
"""

from __future__ import annotations

import os
import pickle
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from rollout.broadcast import BUCKET_BYTES, DIGEST_BYTES, buckets, digest_of, pack, packed_size, unpacked
from rollout.errors import SnapshotGone, SyncFailed
from rollout.snapshot import mb_free, snapshot_folder
from rollout.types import Layout, Loan, Snapshot
from sandbox.errors import SystemFault

DEVICE_ARGUMENT = 6  # of torch's rebuild_cuda_tensor: the GPU's number in the process that shares it


class Lender:
    """The learner's end: one snapshot at a time, packed into memory that others can open.

    `device` is where the memory is: "cpu" or "cuda".
    """

    def __init__(self, *, device: str) -> None:
        self._device = device
        self._buckets: list[Tensor] = []
        self._names: list[Path] = []
        self._folder: Path | None = None
        self.version: int | None = None

    def fill(self, snapshot: Snapshot, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Hold these weights, which come in the order of the snapshot's layout, in place of those before.

        Raises SystemFault when there is no room for them; nothing is held then.
        """
        self.release()
        coming = iter(weights)
        try:
            for index, specs in enumerate(buckets(snapshot.layout, BUCKET_BYTES)):
                self._buckets.append(self._filled(specs, coming, version=snapshot.version, index=index))
            assert next(coming, None) is None, "there are more weights than the layout says"
        except BaseException:
            self.release()
            raise
        if self._device != "cpu":
            torch.cuda.synchronize()
        self.version = snapshot.version

    def _filled(self, specs: Layout, weights: Iterator[tuple[str, Tensor]], *, version: int, index: int) -> Tensor:
        bucket = self._memory(packed_size(specs), version=version)
        pack(specs, weights, bucket)
        bucket[-DIGEST_BYTES:] = digest_of(bucket[:-DIGEST_BYTES], version=version, index=index)
        return bucket

    def loans(self, count: int) -> tuple[Loan, ...]:
        """What so many engines are given. Each has handles of its own, as CUDA counts how often one is opened."""
        return tuple(Loan(self._device, BUCKET_BYTES, tuple(self._handles())) for _ in range(count))

    def release(self) -> None:
        """Hold nothing. An engine that has a bucket open keeps it until it lets go of it."""
        self.version = None
        self._buckets.clear()
        while self._names:
            self._names.pop().unlink(missing_ok=True)
        if self._device != "cpu":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Leave nothing behind."""
        self.release()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _handles(self) -> Iterable[bytes]:
        if self._device == "cpu":
            return (os.fsencode(name) for name in self._names)
        return (pickle.dumps(reduce_tensor(bucket)) for bucket in self._buckets)

    def _memory(self, size: int, *, version: int) -> Tensor:
        if self._device != "cpu":
            return torch.empty(size, dtype=torch.uint8, device=self._device)
        self._folder = self._folder or snapshot_folder("lent")
        # Another name each time: an engine that comes late finds nothing, instead of other weights.
        self._names.append(self._folder / f"v{version:08d}-{secrets.token_hex(6)}")
        return _shared_memory(self._names[-1], size)


def borrowed(snapshot: Snapshot, *, device: str) -> Generator[list[tuple[str, Tensor]]]:
    """The engine's end: the weights that a snapshot lends, whole layers at a time, after all of them have been checked.

    They are those of the learner's memory itself, to be copied, and open until the next are asked for. `device` is the engine's.
    Raises SnapshotGone when the memory is no longer there, SyncFailed when it is not what was lent.
    """
    loan = snapshot.loan
    assert loan is not None, "this snapshot lends nothing"
    cut = buckets(snapshot.layout, loan.bucket_bytes)
    if len(cut) != len(loan.handles):
        raise SyncFailed(f"version {snapshot.version} has {len(cut)} buckets, and handles for {len(loan.handles)} were given.")
    opened = [_opened(handle, packed_size(specs), loan, device) for handle, specs in zip(loan.handles, cut, strict=True)]
    for index, bucket in enumerate(opened):
        if not bucket[-DIGEST_BYTES:].equal(digest_of(bucket[:-DIGEST_BYTES], version=snapshot.version, index=index)):
            raise SyncFailed(
                f"bucket {index} of {len(cut)} of version {snapshot.version} has another digest than it was lent with. "
                "Publish it again."
            )
    try:
        for specs in cut:
            yield unpacked(specs, opened.pop(0))
    finally:
        if loan.device != "cpu":
            torch.cuda.synchronize()  # the copies are done before anyone hears that they are


def _shared_memory(name: Path, size: int) -> Tensor:
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # a page that turns out to be missing later would kill the process
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SystemFault(
            f"weights could not be lent: {size >> 20} MiB of shared memory at {name}: {error}. {mb_free(name.parent)} MiB are free "
            'there. Make room, or use engine.transport = "gloo", which needs none.'
        ) from error
    return torch.from_file(str(name), shared=True, size=size, dtype=torch.uint8)


def _opened(handle: bytes, size: int, loan: Loan, device: str) -> Tensor:
    try:
        if loan.device == "cpu":
            # Not shared: what an engine writes there by mistake stays its own.
            bucket = torch.from_file(os.fsdecode(handle), shared=False, size=size, dtype=torch.uint8)
        else:
            bucket = _opened_on_gpu(handle, device)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise SnapshotGone(f"the memory that the learner lent cannot be opened, or not any more: {reason}") from error
    if bucket.numel() != size:
        raise SyncFailed(f"the learner lent {bucket.numel()} bytes where {size} were announced.")
    return bucket


def _opened_on_gpu(handle: bytes, device: str) -> Tensor:
    rebuild, arguments = pickle.loads(handle)  # from our own learner
    own: Any = torch.device(device).index
    # The processes may be shown other GPUs, and number them otherwise.
    own = torch.cuda.current_device() if own is None else own
    return rebuild(*arguments[:DEVICE_ARGUMENT], own, *arguments[DEVICE_ARGUMENT + 1 :])
