"""Memory that the learner lends: as it was lent or refused, gone when taken back, and swept when its owner was killed."""

from __future__ import annotations

import dataclasses
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from rollout import lending
from rollout import snapshot as snapshots
from rollout.broadcast import spec_of
from rollout.errors import SnapshotGone, SyncFailed
from rollout.lending import Lender, borrowed
from rollout.reading import SnapshotReader
from rollout.snapshot import snapshot_folder, sweep_snapshots
from rollout.types import Snapshot
from sandbox.errors import SystemFault

WEIGHTS = {f"model.layers.{i}.{part}.weight": torch.randn(40, 5 + i).bfloat16() for i in range(6) for part in "ab"}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "BUCKET_BYTES", 2000)  # two layers: several buckets


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for shared memory."""
    monkeypatch.setattr(snapshots, "SHARED_MEMORY", tmp_path)
    return tmp_path


@pytest.fixture
def lender(root: Path) -> Iterator[Lender]:
    lender = Lender(device="cpu")
    yield lender
    lender.close()
    assert list(root.iterdir()) == []


def snapshot_of(weights: dict[str, Tensor], *, version: int = 3) -> Snapshot:
    return Snapshot(version, layout=tuple(spec_of(*named) for named in weights.items()))


def lent(lender: Lender, weights: dict[str, Tensor], *, version: int = 3) -> Snapshot:
    snapshot = snapshot_of(weights, version=version)
    lender.fill(snapshot, weights.items())
    (loan,) = lender.loans(1)
    assert len(loan.handles) > 2
    return dataclasses.replace(snapshot, loan=loan)


def read(snapshot: Snapshot) -> dict[str, Tensor]:
    return {name: tensor.clone() for some in SnapshotReader().read(snapshot) for name, tensor in some}


def is_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_what_is_lent_is_what_is_read(lender: Lender):
    for version in (0, 1):
        weights = {name: weight + version for name, weight in WEIGHTS.items()}
        snapshot = lent(lender, weights, version=version)
        assert is_equal(read(snapshot), weights)
        assert is_equal(read(snapshot), weights), "nothing is used up by reading"


IN_ITS_PROCESS = """
import pickle, sys
from rollout.reading import SnapshotReader
snapshot, device = pickle.load(sys.stdin.buffer)
found = {name: tensor.cpu() for some in SnapshotReader(device=device).read(snapshot) for name, tensor in some}
pickle.dump({name: (str(tensor.dtype), tensor.float().numpy()) for name, tensor in found.items()}, sys.stdout.buffer)
"""


@pytest.mark.parametrize("device", DEVICES)
def test_processes_that_know_nothing_of_each_other_read_the_same_memory(root: Path, device: str):
    """Each of them has a loan of its own. Not yet run on a GPU."""
    lender, snapshot = Lender(device=device), snapshot_of(WEIGHTS)
    lender.fill(snapshot, WEIGHTS.items())
    for loan in lender.loans(2):
        given = pickle.dumps((dataclasses.replace(snapshot, loan=loan), device))
        told = subprocess.run([sys.executable, "-c", IN_ITS_PROCESS], input=given, capture_output=True, check=True)
        found = pickle.loads(told.stdout)
        assert {name: dtype for name, (dtype, _) in found.items()} == dict.fromkeys(WEIGHTS, "torch.bfloat16")
        assert all(torch.from_numpy(values).equal(WEIGHTS[name].float()) for name, (_, values) in found.items())
    lender.close()


def test_a_reader_that_writes_there_changes_nothing_for_the_others(lender: Lender):
    snapshot = lent(lender, WEIGHTS)
    for some in borrowed(snapshot, device="cpu"):
        for _, tensor in some:
            tensor.zero_()
    assert is_equal(read(snapshot), WEIGHTS)


def test_one_changed_bit_is_noticed_before_any_weight_is_given_on(lender: Lender):
    snapshot = lent(lender, WEIGHTS)
    assert snapshot.loan is not None
    last = Path(os.fsdecode(snapshot.loan.handles[-1]))
    content = bytearray(last.read_bytes())
    content[100] ^= 1
    last.write_bytes(content)
    with pytest.raises(SyncFailed, match="another digest than it was lent with"):
        next(SnapshotReader().read(snapshot))


def test_weights_of_another_version_or_in_another_order_are_noticed(lender: Lender):
    snapshot = lent(lender, WEIGHTS)
    loan = snapshot.loan
    assert loan is not None
    swapped = dataclasses.replace(loan, handles=(loan.handles[1], loan.handles[0], *loan.handles[2:]))
    short = dataclasses.replace(loan, handles=loan.handles[1:])
    for wrong, cause in (
        (dataclasses.replace(snapshot, version=4), "another digest"),
        (dataclasses.replace(snapshot, loan=swapped), "another digest|cannot be opened"),
        (dataclasses.replace(snapshot, loan=short), "handles for"),
    ):
        with pytest.raises(SyncFailed, match=cause):
            read(wrong)


def test_memory_that_was_taken_back_is_gone_for_who_comes_late_and_stays_for_who_has_it(lender: Lender):
    snapshot = lent(lender, WEIGHTS)
    reading = borrowed(snapshot, device="cpu")
    some = dict(next(reading))
    lent(lender, {name: weight * 0 for name, weight in WEIGHTS.items()})  # the same version again
    with pytest.raises(SnapshotGone, match="not any more"):
        read(snapshot)
    some |= {name: tensor for rest in reading for name, tensor in rest}
    assert is_equal(some, WEIGHTS)


def test_a_full_memory_leaves_nothing_behind_and_says_how_much_room_there_is(lender: Lender, root: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1700, before[1]))  # as one that fills up when the last bucket comes, of 1776 bytes
    try:
        with pytest.raises(SystemFault, match=r"could not be lent.*File too large.* MiB are free"):
            lent(lender, dict(reversed(WEIGHTS.items())))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path for folder in root.iterdir() for path in folder.iterdir()] == []
    assert lender.version is None


@pytest.mark.parametrize("change", [{}, {"more.weight": torch.zeros(3)}], ids=["fewer", "more"])
def test_weights_that_are_not_those_announced_are_not_lent(lender: Lender, root: Path, change: dict[str, Tensor]):
    weights = WEIGHTS | change
    if not change:
        weights = dict([*WEIGHTS.items()][:-1])
    with pytest.raises(AssertionError):
        lender.fill(snapshot_of(WEIGHTS), weights.items())
    assert [path for folder in root.iterdir() for path in folder.iterdir()] == []


KILLED = """
import sys, time, torch
from pathlib import Path
from rollout import snapshot as snapshots
from rollout.broadcast import spec_of
from rollout.lending import Lender
from rollout.types import Snapshot
snapshots.SHARED_MEMORY = Path(sys.argv[1])
weights = {"a.weight": torch.ones(1000)}
lender = Lender(device="cpu")
lender.fill(Snapshot(1, layout=tuple(spec_of(*named) for named in weights.items())), weights.items())
print("ready", flush=True)
time.sleep(60)
"""


def test_what_a_killed_learner_lent_is_swept_and_what_a_living_one_lends_stays(lender: Lender, root: Path):
    living = lent(lender, WEIGHTS)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        left = [folder for folder in root.iterdir() if folder != snapshot_folder("lent")]
        assert [len(list(folder.iterdir())) for folder in left] == [1]
        assert sweep_snapshots() == []
        process.send_signal(signal.SIGKILL)
    assert sweep_snapshots() == left
    assert is_equal(read(living), WEIGHTS)


def test_a_hundred_loans_leave_no_memory_mapped_and_no_file_open(lender: Lender):
    weights = {"a.weight": torch.ones(1 << 20)}  # 4 MiB
    process = psutil.Process()

    def lend_and_read(times: int) -> None:
        for version in range(times):
            lender.fill(snapshot := snapshot_of(weights, version=version), weights.items())
            read(dataclasses.replace(snapshot, loan=lender.loans(1)[0]))
            lender.release()

    lend_and_read(10)
    before = process.memory_info().rss, process.num_fds()
    lend_and_read(100)
    assert process.memory_info().rss - before[0] < 16 << 20, "a hundred of 4 MiB came and went"
    assert process.num_fds() == before[1]
