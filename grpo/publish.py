"""The learner's weights on their way out: in a file that engines read, by broadcast, or in memory that is lent to them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from grpo.adapters import adapter_layout, adapter_weights
from grpo.policy import Policy
from rollout.broadcast import LOOPBACK, Sender, own_address
from rollout.errors import SnapshotGone
from rollout.lending import Lender
from rollout.snapshot import as_adapter, discard, snapshot_folder, stream_snapshot
from rollout.transports import Transport
from rollout.types import BroadcastSeat, Layout, Loan, Snapshot, WeightSpec


class Publisher:
    """Publishes the weights of a policy in the engines' names and `dtype`; with transport adapter those of its adapters alone.

    What is sent is read from the policy itself, a bucket at a time, as long as its weights have not moved since then; what is lent
    is copied from it for as long as it is lent. With `keep_sent` they are first copied to a file of this process, or to the memory
    that is lent, for engines that ask for them later; the last is kept.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        transport: Transport,
        dtype: torch.dtype,
        folder: Path,
        keep_sent: bool = False,
        across_nodes: bool = False,
    ) -> None:
        self._policy = policy
        self._dtype = dtype
        self._folder = folder
        self._layout: Layout = tuple(
            WeightSpec(name, str(dtype).removeprefix("torch."), shape) for name, (_, shape) in policy.engine_layout(dtype).items()
        )
        self._sender: Sender | None = None
        self._lender = Lender(device=policy.device) if transport == "ipc" else None
        self._is_adapter = transport == "adapter"
        if transport in ("gloo", "nccl"):
            # Buckets are made where they are sent from.
            self._device = policy.device if transport == "nccl" else "cpu"
            self._sender = Sender(transport, host=own_address() if across_nodes else LOOPBACK, device=self._device)
        self._keeps = keep_sent
        self._kept_in = snapshot_folder("sent") if keep_sent and self._sender is not None else None
        self._kept: Snapshot | None = None
        self._live_version: int | None = None

    def publish(self, version: int) -> Snapshot | None:
        """The weights as they are now. Of several ranks the first one writes them; the others give None."""
        if self._sender is None and self._lender is None:
            return self._write(version, self._folder)
        if self._lender is not None and self._keeps:
            self._copy(Snapshot(version, layout=self._layout), self._lender)
        elif self._kept_in is not None:
            # None on the other ranks, which are not asked to send it.
            previous, self._kept = self._kept, self._write(version, self._kept_in)
            if previous is not None and previous != self._kept:
                discard(previous)
        else:
            self._live_version = version
        return Snapshot(version, layout=self._layout)

    def weights_move(self) -> None:
        """From now on the policy's weights are no longer those that were published."""
        self._live_version = None

    def open_group(self, world_size: int) -> BroadcastSeat:
        assert self._sender is not None, "nothing is sent with this transport"
        return self._sender.open(world_size)

    def send(self, snapshot: Snapshot, seat: BroadcastSeat) -> None:
        """Send the weights of a version to the group of this seat. Several ranks give their shares, and the first one sends."""
        assert self._sender is not None, "nothing is sent with this transport"
        try:
            weights = self._weights_of(snapshot.version)
        except SnapshotGone:
            self._sender.close()
            raise
        try:
            if self._policy.ranks.is_first:
                self._sender.send(seat, snapshot, weights)
        finally:
            self._let_others_end(weights)

    def close_group(self) -> None:
        if self._sender is not None:
            self._sender.close()

    def lend(self, snapshot: Snapshot, count: int) -> tuple[Loan, ...]:
        """The weights of a version in memory that so many engines may open. Of several ranks the first one lends, and the others,
        which give it their shares, lend nothing. Raises SnapshotGone when the weights have moved on."""
        assert self._lender is not None, "nothing is lent with this transport"
        if self._keeps and self._lender.version != snapshot.version:
            raise self._gone(snapshot.version)
        if not self._keeps:
            if self._live_version != snapshot.version:
                raise self._gone(snapshot.version)
            self._copy(snapshot, self._lender)
        return self._lender.loans(count)

    def take_back(self) -> None:
        """What was lent has been read."""
        assert self._lender is not None, "nothing is lent with this transport"
        if not self._keeps:
            self._lender.release()

    def _copy(self, snapshot: Snapshot, lender: Lender) -> None:
        weights = self._policy.engine_weights(self._dtype, device=self._policy.device)
        try:
            if self._policy.ranks.is_first:
                lender.fill(snapshot, weights)
        finally:
            self._let_others_end(weights)

    def close(self) -> None:
        """Leave nothing behind."""
        self.close_group()
        if self._lender is not None:
            self._lender.close()
        if self._kept_in is not None:
            shutil.rmtree(self._kept_in, ignore_errors=True)

    def _write(self, version: int, folder: Path) -> Snapshot | None:
        policy, dtype = self._policy, self._dtype
        weights = adapter_weights(policy, dtype) if self._is_adapter else policy.engine_weights(dtype)
        try:
            if not policy.ranks.is_first:
                return None
            layout = adapter_layout(policy, dtype) if self._is_adapter else policy.engine_layout(dtype)
            snapshot = stream_snapshot(weights, layout, version=version, folder=folder)
            return as_adapter(snapshot, policy.adapters.peft_config["default"].save_pretrained) if self._is_adapter else snapshot
        finally:
            self._let_others_end(weights)

    def _let_others_end(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """The other ranks wait for each weight, whatever became of the file or of the broadcast. Alone nobody does."""
        if self._policy.ranks.count > 1:
            for _ in weights:
                pass

    def _weights_of(self, version: int) -> Iterator[tuple[str, Tensor]]:
        if self._kept is not None and self._kept.version == version:
            return _weights_in(self._kept, self._layout)
        if self._live_version == version:
            return self._policy.engine_weights(self._dtype, device=self._device)
        raise self._gone(version)

    def _gone(self, version: int) -> SnapshotGone:
        return SnapshotGone(
            f"the weights of version {version} have moved on since they were published. Those of the next will come."
        )


def _weights_in(snapshot: Snapshot, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    with safe_open(snapshot.path, framework="pt") as file:
        for spec in layout:
            yield spec.name, file.get_tensor(spec.name)
