"""The weights of a snapshot as they come: from the file, by broadcast, or from the learner's memory. Each kind of engine loads them
in its way."""

from __future__ import annotations

from collections.abc import Generator

import torch
from safetensors import safe_open
from torch import Tensor

from rollout.broadcast import Group, receive
from rollout.errors import SyncFailed
from rollout.lending import borrowed
from rollout.types import Snapshot


class SnapshotReader:
    """One process of an engine. It stays in the group of its last broadcast, for the next."""

    def __init__(self, *, device: str = "cpu") -> None:
        self._device = device
        self._group: Group | None = None

    def read(self, snapshot: Snapshot, *, rank: int = 0) -> Generator[list[tuple[str, Tensor]]]:
        """Whole layers, one or several at a time. `rank` is this process's among those of its engine.

        Raises SyncFailed when a broadcast does not arrive whole, and what came before has been given on then; or when what is lent
        is not what was promised, before anything is given on.
        """
        if not snapshot.is_sent:
            yield from _file_in_layers(snapshot.path)
            return
        if snapshot.loan is not None:
            yield from borrowed(snapshot, device=self._device)
            return
        group = self._join(snapshot, rank)
        try:
            yield from receive(group, snapshot, device="cpu" if group.backend == "gloo" else self._device)
        except BaseException:
            self._group = None
            raise

    def _join(self, snapshot: Snapshot, rank: int) -> Group:
        seat = snapshot.seat
        if seat is None:
            raise SyncFailed(
                f"version {snapshot.version} is sent by the learner, but this engine was not told where to receive it."
            )
        if self._group is None or self._group.generation != seat.generation:
            self.close()
            self._group = Group(seat, rank=seat.first_rank + rank)
        return self._group

    def close(self) -> None:
        """Leave the group."""
        if self._group is not None:
            self._group.close()
            self._group = None


def _file_in_layers(path: str) -> Generator[list[tuple[str, torch.Tensor]]]:
    with safe_open(path, framework="pt") as file:
        # By name, so that one layer is complete before the next begins: a layer is buffered until all of it is there.
        yield [(name, file.get_tensor(name)) for name in sorted(file.keys())]
