"""Snapshot files: whole or not at all, known by their bytes, and swept away with their dead owner only."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rollout import snapshot as snapshots
from rollout.errors import SyncFailed
from rollout.snapshot import discard, snapshot_folder, stream_snapshot, sweep_snapshots, verify, write_snapshot
from sandbox.errors import SystemFault

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4, dtype=torch.bfloat16)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for shared memory."""
    monkeypatch.setattr(snapshots, "SHARED_MEMORY", tmp_path)
    return tmp_path


def test_a_snapshot_reads_back_what_was_written(tmp_path: Path):
    snapshot = write_snapshot(WEIGHTS, version=7, folder=tmp_path)
    verify(snapshot)
    assert snapshot.version == 7
    read = load_file(snapshot.path)
    assert read.keys() == WEIGHTS.keys()
    assert all(read[name].equal(tensor) and read[name].dtype == tensor.dtype for name, tensor in WEIGHTS.items())
    assert [path.name for path in tmp_path.iterdir()] == [Path(snapshot.path).name]


def test_views_of_one_tensor_are_written_as_they_look(tmp_path: Path):
    whole = torch.arange(12.0).view(3, 4)
    parts = {"rows": whole[1:], "columns": whole[:, :2], "turned": whole.t()}
    read = load_file(write_snapshot(parts.items(), version=0, folder=tmp_path).path)
    assert all(read[name].equal(part) for name, part in parts.items())


def test_a_tied_weight_is_written_once_under_its_first_name(tmp_path: Path):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    snapshot = write_snapshot([("embed.weight", weight), ("lm_head.weight", weight)], version=0, folder=tmp_path)
    assert list(load_file(snapshot.path)) == ["embed.weight"]


def test_the_same_version_written_again_does_not_touch_the_first_file(tmp_path: Path):
    first = write_snapshot({"w": torch.zeros(3)}, version=1, folder=tmp_path)
    second = write_snapshot({"w": torch.ones(3)}, version=1, folder=tmp_path)
    verify(first)
    verify(second)
    assert first.path != second.path


def test_a_changed_byte_and_a_missing_file_are_noticed(tmp_path: Path):
    snapshot = write_snapshot(WEIGHTS, version=1, folder=tmp_path)
    content = bytearray(Path(snapshot.path).read_bytes())
    content[-1] ^= 1
    Path(snapshot.path).write_bytes(content)
    with pytest.raises(SyncFailed, match=r"fingerprint .* Publish it again"):
        verify(snapshot)
    discard(snapshot)
    discard(snapshot)
    with pytest.raises(SyncFailed, match="cannot be read"):
        verify(snapshot)


def test_a_full_disk_leaves_nothing_behind_and_says_how_much_room_there_is(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a disk that fills up in the middle of the second weight
    try:
        with pytest.raises(SystemFault, match=r"version 3 could not be written .* File too large.* MiB are free"):
            write_snapshot({"a": torch.zeros(100), "b": torch.zeros(1000)}, version=3, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_weights_are_written_as_they_come_and_no_two_are_held(tmp_path: Path):
    alive: set[int] = set()
    most = 0

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for i in range(20):
            weight = torch.full((1000,), float(i))
            alive.add(i)
            weakref.finalize(weight, alive.discard, i)
            most = max(most, len(alive))
            yield f"w{i}", weight
            del weight

    layout = {f"w{i}": (torch.float32, (1000,)) for i in range(20)}
    snapshot = stream_snapshot(weights(), layout, version=0, folder=tmp_path)
    verify(snapshot)
    assert {name: tensor[0].item() for name, tensor in load_file(snapshot.path).items()} == {f"w{i}": i for i in range(20)}
    assert most <= 2, "one is written while the next is made"


@pytest.mark.parametrize("weights", [{"a": torch.zeros(2)}, {"a": torch.zeros(3), "b": torch.zeros(3)}, {"b": torch.zeros(3)}])
def test_weights_that_are_not_those_announced_leave_no_file(tmp_path: Path, weights: dict[str, torch.Tensor]):
    layout = {"a": (torch.float32, (3,)), "c": (torch.float32, (3,))}
    with pytest.raises(AssertionError):
        stream_snapshot(weights.items(), layout, version=0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_process_stays(root: Path):
    folder = snapshot_folder("run/with odd:name")
    assert folder == snapshot_folder("run/with odd:name")
    assert folder.parent == root
    assert sweep_snapshots() == []
    assert folder.exists()


@pytest.mark.slow
def test_the_folder_of_a_dead_process_is_swept_with_what_is_in_it(root: Path):
    script = (
        "import sys, torch; from pathlib import Path; from rollout import snapshot as s; s.SHARED_MEMORY = Path(sys.argv[1]);"
        "s.write_snapshot({'w': torch.zeros(3)}, version=1, folder=s.snapshot_folder('dead'))"
    )
    subprocess.run([sys.executable, "-c", script, str(root)], check=True)
    (left,) = root.iterdir()
    assert list(left.glob("v*.safetensors"))
    assert sweep_snapshots() == [left]
    assert not left.exists()


def test_a_process_id_used_again_does_not_protect_the_folder_of_its_dead_owner(root: Path):
    mine = snapshot_folder("r")
    run, pid, start, space = mine.name.rsplit("-", 3)
    others = mine.rename(root / f"{run}-{pid}-{int(start) - 4000}-{space}")
    assert sweep_snapshots() == [others]


@pytest.mark.parametrize(
    "name", ["grpo-snapshots-r-999999999-1-{other_space}", "grpo-snapshots-nonsense", "other-r-999999999-1-{space}"]
)
def test_folders_that_are_not_surely_ours_stay(root: Path, name: str):
    space = int(snapshot_folder("r").name.rsplit("-", 1)[1])
    folder = root / name.format(space=space, other_space=space + 1)
    folder.mkdir()
    assert sweep_snapshots() == []
    assert folder.exists()


def test_only_ones_own_user_is_swept(root: Path, monkeypatch: pytest.MonkeyPatch):
    space = snapshot_folder("r").name.rsplit("-", 1)[1]
    dead = root / f"grpo-snapshots-r-999999999-1-{space}"
    dead.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: dead.stat().st_uid + 1)
    assert sweep_snapshots() == []
    monkeypatch.undo()
    monkeypatch.setattr(snapshots, "SHARED_MEMORY", root)
    assert sweep_snapshots() == [dead]
