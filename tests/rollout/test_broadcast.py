"""Weights by broadcast: real gloo groups, here of threads, for which a group behaves as for processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rollout import broadcast
from rollout.broadcast import Group, Sender, buckets, digest_of, layer_of, num_bytes, place_sums, spec_of
from rollout.errors import SyncFailed
from rollout.reading import SnapshotReader
from rollout.types import BroadcastSeat, Snapshot, WeightSpec

LAYERS = [f"model.layers.{i}.{name}" for i in range(4) for name in ("self_attn.q_proj.weight", "self_attn.k_proj.bias")]
NAMES = ["model.embed_tokens.weight", *LAYERS, "model.norm.weight", "lm_head.weight"]


def make_weights(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Odd sizes, and two dtypes."""
    weights = {name: scale * torch.arange(i + 3.0) for i, name in enumerate(NAMES)}
    return weights | {"model.norm.weight": weights["model.norm.weight"].bfloat16()}


def snapshot_of(weights: dict[str, torch.Tensor], version: int = 1) -> Snapshot:
    return Snapshot(version, layout=tuple(spec_of(name, tensor) for name, tensor in weights.items()))


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(broadcast, "TIMEOUT_S", 20.0)
    monkeypatch.setattr(broadcast, "BUCKET_BYTES", 64)


@pytest.fixture
def sender():
    sender = Sender("gloo", host="127.0.0.1")
    yield sender
    sender.close()


def read(reader: SnapshotReader, snapshot: Snapshot, seat: BroadcastSeat, rank: int = 0) -> dict[str, torch.Tensor]:
    return {name: tensor for some in reader.read(replace(snapshot, seat=seat), rank=rank) for name, tensor in some}


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) and one[name].dtype == other[name].dtype for name in one)


# Buckets


def test_a_layer_is_named_by_its_first_number_and_anything_else_by_its_module():
    assert layer_of("model.layers.3.mlp.experts.7.w1") == "model.layers.3"
    assert layer_of("lm_head.weight") == "lm_head"
    assert layer_of("transformer.h.11.attn.c_attn.bias") == "transformer.h.11"


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=30), st.integers(1, 300))
def test_buckets_are_the_layout_cut_between_layers_and_bounded_by_their_size_or_one_layer(sizes: list, limit: int):
    layout = tuple(WeightSpec(f"layers.{layer}.w{i}", "float32", (n,)) for i, (layer, n) in enumerate(sorted(sizes)))
    cut = buckets(layout, limit)
    assert tuple(spec for each in cut for spec in each) == layout
    layers = [{layer_of(spec.name) for spec in each} for each in cut]
    assert sum(map(len, layers)) == len(set().union(*layers)), "no layer is in two buckets"
    for each, names in zip(cut, layers, strict=True):
        assert sum(map(num_bytes, each)) <= limit or len(names) == 1


@pytest.mark.parametrize("digest", [digest_of, place_sums])
def test_a_digest_changes_with_every_byte_with_the_place_and_with_the_version(digest: Callable[..., torch.Tensor]):
    payload = torch.arange(128, dtype=torch.uint8)
    kept = digest(payload, version=1, index=0)
    assert kept.shape == (16,)
    assert kept.equal(digest(payload.clone(), version=1, index=0))
    others = [digest(payload, version=2, index=0), digest(payload, version=1, index=1), digest(payload.roll(8), version=1, index=0)]
    for i in range(128):
        changed = payload.clone()
        changed[i] ^= 1
        others.append(digest(changed, version=1, index=0))
    assert not any(kept.equal(other) for other in others)


# One learner and two engines


def test_all_receive_what_was_sent_again_and_again_in_the_same_group(sender: Sender):
    readers = [SnapshotReader(), SnapshotReader()]
    seat = sender.open(3)
    with ThreadPoolExecutor(3) as pool:
        for version in (1, 2, 3):
            weights = make_weights(version)
            snapshot = snapshot_of(weights, version)
            sending = pool.submit(sender.send, seat, snapshot, iter(weights.items()))
            seats = [replace(seat, first_rank=1 + i) for i in range(2)]
            reading = [pool.submit(read, reader, snapshot, place) for reader, place in zip(readers, seats, strict=True)]
            assert all(is_equal(each.result(20), weights) for each in reading)
            sending.result(20)


def test_an_engine_of_two_processes_takes_two_ranks(sender: Sender):
    """What a tensor-parallel engine does: its processes count from their engine's first rank, 1 + i * tp."""
    seat, weights = sender.open(5), make_weights()
    snapshot = snapshot_of(weights)
    places = [(1 + engine * 2, rank) for engine in range(2) for rank in range(2)]
    with ThreadPoolExecutor(5) as pool:
        pool.submit(sender.send, seat, snapshot, iter(weights.items()))
        reading = [pool.submit(read, SnapshotReader(), snapshot, replace(seat, first_rank=f), r) for f, r in places]
        assert all(is_equal(each.result(20), weights) for each in reading)


def test_a_bucket_that_is_damaged_on_the_way_is_refused_and_breaks_the_group(sender: Sender, monkeypatch: pytest.MonkeyPatch):
    seat, weights = replace(sender.open(2), first_rank=1), make_weights()
    snapshot = snapshot_of(weights)
    start = Group.start

    def start_damaged(group: Group, bucket: torch.Tensor) -> None:
        if threading.current_thread() is threading.main_thread():  # the sender's
            bucket[4] ^= 1
        start(group, bucket)

    monkeypatch.setattr(Group, "start", start_damaged)
    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(read, SnapshotReader(), snapshot, seat)
        with suppress(SyncFailed):  # it may be done before the other looks
            sender.send(seat, snapshot, iter(weights.items()))
        with pytest.raises(SyncFailed, match=r"bucket 0 of \d of version 1 has another digest"):
            receiving.result(20)


def test_buckets_of_another_version_are_refused(sender: Sender):
    seat, weights = replace(sender.open(2), first_rank=1), make_weights()
    with ThreadPoolExecutor(2) as pool:
        sending = pool.submit(sender.send, seat, snapshot_of(weights, 1), iter(weights.items()))
        with pytest.raises(SyncFailed, match="another digest"):
            read(SnapshotReader(), snapshot_of(weights, 2), seat)
        assert isinstance(sending.exception(20), SyncFailed | None)


def test_weights_other_than_announced_are_our_fault_and_nobody_waits_for_the_rest(sender: Sender):
    seat, weights = replace(sender.open(2), first_rank=1), make_weights()
    snapshot = snapshot_of(weights)
    for wrong in ([*weights.items()][:-1], [*weights.items()][1:], [*weights.items(), ("more", torch.ones(2))]):
        with ThreadPoolExecutor(2) as pool:
            receiving = pool.submit(read, SnapshotReader(), snapshot, seat)
            with pytest.raises(AssertionError):
                sender.send(seat, snapshot, iter(wrong))
            assert len(wrong) > len(weights) or isinstance(receiving.exception(20), SyncFailed)
        seat = replace(sender.open(2), first_rank=1)


# Groups that break


def waits(pool: ThreadPoolExecutor, call: Callable[..., object], *arguments: object) -> Future:
    waiting = pool.submit(call, *arguments)
    time.sleep(0.1)
    assert not waiting.done()
    return waiting


def test_who_waits_for_one_that_never_comes_is_told_when_the_meeting_is_called_off(sender: Sender):
    seat, weights = sender.open(3), make_weights()
    snapshot = snapshot_of(weights)
    with ThreadPoolExecutor(2) as pool:
        sending = waits(pool, sender.send, seat, snapshot, iter(weights.items()))
        receiving = waits(pool, read, SnapshotReader(), snapshot, replace(seat, first_rank=1))
        started = time.monotonic()
        sender.close()
        assert isinstance(sending.exception(20), SyncFailed)
        assert isinstance(receiving.exception(20), SyncFailed)
        assert time.monotonic() - started < 5


def test_who_joins_when_the_meeting_has_just_been_called_off_does_not_wait_for_it(sender: Sender, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(broadcast, "STORE_TIMEOUT_S", 0.3)
    connect = broadcast.socket.create_connection

    def and_close(*address: Any) -> Any:
        connection = connect(*address)
        sender.close()
        return connection

    monkeypatch.setattr(broadcast.socket, "create_connection", and_close)
    seat = sender.open(2)
    began = time.monotonic()
    with pytest.raises(SyncFailed, match="did not all meet"):
        Group(seat, rank=1)
    assert time.monotonic() - began < broadcast.TIMEOUT_S / 4


def test_who_leaves_half_way_takes_the_others_out_at_once_and_a_new_group_works(sender: Sender):
    seat, weights = sender.open(3), make_weights()
    snapshot = snapshot_of(weights)
    with ThreadPoolExecutor(3) as pool:
        reader = SnapshotReader()
        sending = pool.submit(sender.send, seat, snapshot, iter(weights.items()))
        receiving = pool.submit(read, reader, snapshot, replace(seat, first_rank=1))
        half = SnapshotReader().read(replace(snapshot, seat=replace(seat, first_rank=2)))
        next(half)
        started = time.monotonic()
        half.close()
        assert isinstance(sending.exception(20), SyncFailed)
        with pytest.raises(SyncFailed):
            receiving.result(20)
        assert time.monotonic() - started < 5
        with pytest.raises(SyncFailed, match="closed"):
            sender.send(seat, snapshot, iter(weights.items()))

        seat = sender.open(2)
        sending = pool.submit(sender.send, seat, snapshot, iter(weights.items()))
        assert is_equal(read(reader, snapshot, replace(seat, first_rank=1)), weights)
        sending.result(20)


@pytest.mark.slow
def test_a_process_killed_half_way_takes_the_others_out_at_once(sender: Sender, tmp_path: Path):
    seat = sender.open(3)
    weights = {f"layers.{i}.w": torch.ones(1 << 18) for i in range(40)}
    snapshot = snapshot_of(weights)
    script = (
        "import os, signal, sys; from dataclasses import replace; from rollout.reading import SnapshotReader; "
        "from rollout.types import *; "
        f"snapshot = {replace(snapshot, seat=replace(seat, first_rank=2))!r}\n"
        "for n, some in enumerate(SnapshotReader().read(snapshot)):\n"
        "    if n == 10: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with ThreadPoolExecutor(2) as pool:
        sending = pool.submit(sender.send, seat, snapshot, iter(weights.items()))
        receiving = pool.submit(read, SnapshotReader(), snapshot, replace(seat, first_rank=1))
        killed = subprocess.run([sys.executable, "-c", script], check=False, cwd=os.getcwd())
        assert killed.returncode == -signal.SIGKILL
        started = time.monotonic()
        assert isinstance(sending.exception(20), SyncFailed)
        assert isinstance(receiving.exception(20), SyncFailed)
        assert time.monotonic() - started < 5


def test_an_engine_without_a_seat_and_a_group_nobody_opened_are_refused(monkeypatch: pytest.MonkeyPatch):
    snapshot = snapshot_of(make_weights())
    monkeypatch.setattr(broadcast, "TIMEOUT_S", 0.2)
    with pytest.raises(SyncFailed, match="not told where"):
        next(SnapshotReader().read(snapshot))
    with pytest.raises(SyncFailed, match=r"did not all meet at 127\.0\.0\.1:1:"):
        next(SnapshotReader().read(replace(snapshot, seat=BroadcastSeat("gloo", "127.0.0.1", 1, "none", 2, 64, 1))))
