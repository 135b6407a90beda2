"""Weights by broadcast: the learner sends bucket after bucket, and every process of every engine receives the same bytes at once.

A bucket holds whole layers and its own digest. The next one is under way while this one is packed or loaded, so neither side holds
more than two. Whoever fails leaves the group; that breaks the connections of the others, who then fail at once. A broken group is
never mended: the fleet has a new one formed. What is done with what was received is not decided here.
"""

from __future__ import annotations

import math
import mmap
import secrets
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
import torch.distributed
import xxhash
from torch import Tensor

from rollout.errors import SyncFailed
from rollout.types import BroadcastSeat, Layout, Snapshot, WeightSpec

dist: Any = torch.distributed  # its stores are not among the names that it exports

BUCKET_BYTES = 32 << 20
TIMEOUT_S = 60.0  # for one bucket, and for the meeting of a new group
STORE_TIMEOUT_S = 5.0  # to reach the meeting point, which listens already
ALIGNMENT = 64
LOOPBACK = "127.0.0.1"
DIGEST_BYTES = 16


def buckets(layout: Layout, max_bytes: int) -> list[Layout]:
    """The layout cut between layers. Each bucket has as many whole layers as fit into `max_bytes`, or one that is larger."""
    cut: list[list[WeightSpec]] = []
    room = 0
    for _, group in groupby(layout, key=lambda spec: layer_of(spec.name)):
        layer = [*group]
        size = sum(num_bytes(spec) for spec in layer)
        if not cut or size > room:
            cut.append([])
            room = max_bytes
        cut[-1] += layer
        room -= size
    return [tuple(each) for each in cut]


def layer_of(name: str) -> str:
    """model.layers.3 of model.layers.3.mlp.up_proj.weight; the module, where no part of the name is a number."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1] if numbers else parts[:-1])


def num_bytes(spec: WeightSpec) -> int:
    return math.prod(spec.shape) * getattr(torch, spec.dtype).itemsize


def spec_of(name: str, tensor: Tensor) -> WeightSpec:
    return WeightSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))


def packed_size(specs: Layout) -> int:
    """Bytes of a bucket, its digest included."""
    return sum(_aligned(num_bytes(spec)) for spec in specs) + DIGEST_BYTES


def unpacked(specs: Layout, bucket: Tensor) -> list[tuple[str, Tensor]]:
    """The weights in a bucket, in place."""
    weights, first = [], 0
    for spec in specs:
        size = num_bytes(spec)
        weights.append((spec.name, bucket[first : first + size].view(getattr(torch, spec.dtype)).view(spec.shape)))
        first += _aligned(size)
    return weights


def digest_of(payload: Tensor, *, version: int, index: int) -> Tensor:
    """16 bytes that change with every byte of the payload, with its place among the buckets, and with the version.

    xxh3-128 on a CPU. A GPU's memory is not copied for it: there, sums over the payload as 64-bit numbers, plain and by place.
    """
    if payload.device.type == "cpu":
        content: Any = payload.numpy()
        digest = xxhash.xxh3_128(content, seed=version << 20 | index)
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
    return place_sums(payload, version=version, index=index)


def place_sums(payload: Tensor, *, version: int, index: int) -> Tensor:
    """The sums for a payload on a GPU; they wrap around, so they are exact in any order."""
    words = payload.view(torch.int64)
    places = torch.arange(1, 2 * len(words), 2, device=payload.device)
    return torch.stack([words.sum() + (version << 20), (words * places).sum() + index]).view(torch.uint8)


class Group:
    """One process of a broadcast. Raises SyncFailed when the others do not come, or leave."""

    def __init__(self, seat: BroadcastSeat, *, rank: int) -> None:
        self.generation = seat.generation
        self.backend = seat.backend
        self.bucket_bytes = seat.bucket_bytes
        self._started: deque[Any] = deque()
        self._processes: Any = None
        timeout = timedelta(seconds=TIMEOUT_S)
        failure = ""
        try:
            # The store would go on trying. But who opened the meeting point listened before anyone was told of it, and may close it
            # at any moment: before the store's first try, or after.
            socket.create_connection((seat.host, seat.port), STORE_TIMEOUT_S).close()
            patience = timedelta(seconds=STORE_TIMEOUT_S)
            store = dist.TCPStore(seat.host, seat.port, None, is_master=False, timeout=patience, wait_for_workers=False)
            store.set_timeout(timeout)
            self._processes = _process_group(seat, dist.PrefixStore(seat.generation, store), rank, timeout)
        except (OSError, RuntimeError) as error:
            failure = _first_line(error)
        if failure:
            raise SyncFailed(f"the processes that sync weights did not all meet at {seat.host}:{seat.port}: {failure}")

    def start(self, bucket: Tensor) -> None:
        """Begin to send this bucket, on rank 0, or to receive it."""
        if self._processes is None:
            raise SyncFailed("the broadcast of weights was given up.")
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.rootTensor = 0
        self._started.append(self._processes.broadcast([bucket], options))

    def finish(self) -> None:
        """Wait for the oldest bucket that was started."""
        failure = ""
        try:
            self._started.popleft().wait()
        except IndexError:
            failure = "it was given up"
        except RuntimeError as error:
            failure = _first_line(error)
        # Raised out here: the other's traceback would keep the connections alive that the rest of the group wait on.
        if failure:
            raise SyncFailed(f"the broadcast of weights broke: {failure}")

    def close(self) -> None:
        """Leave the group: everyone who waits for this process fails at once."""
        self._started.clear()
        self._processes = None


def send(group: Group, snapshot: Snapshot, weights: Iterable[tuple[str, Tensor]], *, device: str = "cpu") -> None:
    """From rank 0: broadcast the weights, which must be those of the snapshot's layout. The group is left when that fails."""
    remaining = iter(weights)
    num_started = 0
    try:
        for index, specs in enumerate(buckets(snapshot.layout, group.bucket_bytes)):
            bucket = _empty_bucket(packed_size(specs), device)
            pack(specs, remaining, bucket)
            bucket[-DIGEST_BYTES:] = digest_of(bucket[:-DIGEST_BYTES], version=snapshot.version, index=index)
            if num_started:
                group.finish()
            group.start(bucket)
            num_started += 1
        group.finish()
        assert next(remaining, None) is None, "there are more weights than the layout says"
    except BaseException:
        group.close()
        raise


def receive(group: Group, snapshot: Snapshot, *, device: str = "cpu") -> Iterator[list[tuple[str, Tensor]]]:
    """On the other ranks: bucket after bucket, each with its digest checked. The group is left when not all are taken.

    The memory of a bucket is not used again, so its tensors may be kept.
    """
    cut = buckets(snapshot.layout, group.bucket_bytes)
    upcoming: deque[Tensor] = deque()
    is_whole = False

    def expect(index: int) -> None:
        if index < len(cut):
            upcoming.append(_empty_bucket(packed_size(cut[index]), device))
            group.start(upcoming[-1])

    try:
        expect(0)
        for index, specs in enumerate(cut):
            group.finish()
            bucket = upcoming.popleft()
            expect(index + 1)
            if not bucket[-DIGEST_BYTES:].equal(digest_of(bucket[:-DIGEST_BYTES], version=snapshot.version, index=index)):
                raise SyncFailed(
                    f"bucket {index} of {len(cut)} of version {snapshot.version} has another digest than it was sent with."
                )
            yield unpacked(specs, bucket)
            del bucket
        is_whole = True
    finally:
        if not is_whole:
            group.close()


class Sender:
    """The learner's end: it opens meeting points, and sends. One group at a time; opening another closes the one before."""

    def __init__(self, backend: str, *, host: str, device: str = "cpu") -> None:
        self._backend = backend
        self._host = host
        self._device = device
        self._server: Any = None
        self._seat: BroadcastSeat | None = None
        self._group: Group | None = None

    def open(self, world_size: int) -> BroadcastSeat:
        """A meeting point for a new group. Nobody is waited for."""
        self.close()
        listener = socket.create_server((self._host, 0))
        port = listener.getsockname()[1]
        timeout = timedelta(seconds=TIMEOUT_S)
        # The store would listen on every address of the machine if it opened the port itself.
        self._server = dist.TCPStore(
            self._host, port, None, is_master=True, master_listen_fd=listener.detach(), timeout=timeout, wait_for_workers=False
        )
        self._seat = BroadcastSeat(self._backend, self._host, port, secrets.token_hex(8), world_size, BUCKET_BYTES)
        return self._seat

    def send(self, seat: BroadcastSeat, snapshot: Snapshot, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Send to the group of this seat, which the others join at the same time. The group is closed when that fails."""
        if self._seat is None or self._seat.generation != seat.generation:
            raise SyncFailed("the group was closed before its weights were sent.")
        try:
            group = self._group
            if group is None:
                group = self._group = Group(seat, rank=0)
            send(group, snapshot, weights, device=self._device)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Who waits at the meeting point fails at once. Who waits for a bucket does, too, unless this side is sending: then it ends
        with that, or after its timeout."""
        self._server = self._seat = None
        if self._group is not None:
            self._group.close()
            self._group = None


def own_address() -> str:
    """The address of this machine that others reach; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("10.255.255.255", 1))
        except OSError:
            return LOOPBACK
        return probe.getsockname()[0]


def _empty_bucket(size: int, device: str) -> Tensor:
    if device != "cpu":
        return torch.empty(size, dtype=torch.uint8, device=device)
    # A mapping of its own goes back to the system. In the heaps of several threads the holes that buckets leave would add up to
    # half a gigabyte.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.uint8)


def pack(specs: Layout, weights: Iterator[tuple[str, Tensor]], bucket: Tensor) -> None:
    """Fill a bucket, all but its digest, with the weights that come next."""
    for spec, (_, place) in zip(specs, unpacked(specs, bucket), strict=True):
        name, tensor = next(weights, ("nothing", torch.empty(0)))
        found = spec_of(name, tensor)
        assert found == spec, f"the weights are not as the layout says: {found} came where it has {spec}"
        place.copy_(tensor)


def _process_group(seat: BroadcastSeat, store: Any, rank: int, timeout: timedelta) -> Any:
    backend: Any = dist.ProcessGroupGloo if seat.backend == "gloo" else dist.ProcessGroupNCCL
    options = (backend._Options if seat.backend == "gloo" else backend.Options)()
    options._timeout = timeout
    if seat.backend == "gloo":
        options._devices = [backend.create_device(hostname=LOOPBACK if seat.host == LOOPBACK else own_address())]
    return backend(store, rank, seat.world_size, options)


def _aligned(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
