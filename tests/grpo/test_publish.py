"""What the learner sends: the weights of the version that was published, or none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from learner_cases import make_learner, random_examples, same_weights, shake_adapters, weights_of
from objective_cases import UNBOUNDED
from safetensors.torch import load_file

from grpo.learner import Learner
from grpo.objectives import Grpo
from grpo.policy import load_model
from rollout import snapshot as snapshots
from rollout.errors import SnapshotGone
from rollout.reading import SnapshotReader
from rollout.types import Loan, Snapshot
from sandbox.errors import SystemFault


async def received(learner: Learner, snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """The snapshot as an engine receives it through a group of its own."""
    seat = await learner.open_group(2)
    sending = asyncio.create_task(learner.send(snapshot, seat))

    def read() -> dict[str, torch.Tensor]:
        addressed = replace(snapshot, seat=replace(seat, first_rank=1))
        return {name: tensor for some in SnapshotReader().read(addressed) for name, tensor in some}

    reading = asyncio.create_task(asyncio.to_thread(read))
    try:
        await sending
        return await reading
    finally:
        await asyncio.gather(reading, return_exceptions=True)


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture
def written(tmp_path: Path, model_path: str):
    """The weights of a second learner that does the same, as it writes them to files."""
    return make_learner(model_path, snapshot_folder=str(tmp_path / "written"), engine_dtype="bfloat16")


async def test_a_learner_sends_what_another_writes_before_and_after_an_update(model_path: str, tmp_path: Path, written: Learner):
    learner = make_learner(model_path, snapshot_folder=str(tmp_path), engine_dtype="bfloat16", transport="gloo")
    for version in (0, 1):
        snapshot, file = await learner.publish(version), await written.publish(version)
        assert snapshot.is_sent
        assert not snapshot.path
        assert is_equal(await received(learner, snapshot), load_file(file.path))
        assert is_equal(await received(learner, snapshot), load_file(file.path)), "a replacement asks for it again"
        await asyncio.gather(learner.update(random_examples(4)), written.update(random_examples(4)))
    assert [path for path in tmp_path.iterdir() if path.name != "written"] == [], "nothing is copied to be sent"
    await learner.close()


async def test_weights_that_have_moved_on_are_not_sent(model_path: str, tmp_path: Path):
    learner = make_learner(model_path, snapshot_folder=str(tmp_path), transport="gloo")
    snapshot = await learner.publish(0)
    await learner.update(random_examples(4))
    with pytest.raises(SnapshotGone, match="version 0 have moved on"):
        await received(learner, snapshot)
    await learner.close()


async def test_weights_that_are_kept_are_sent_as_published_while_the_learner_goes_on(
    model_path: str, tmp_path: Path, written: Learner, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(snapshots, "SHARED_MEMORY", tmp_path)
    options = {"engine_dtype": "bfloat16", "transport": "gloo", "keep_sent": True}
    learner = make_learner(model_path, snapshot_folder=str(tmp_path), **options)
    snapshot, file = await learner.publish(0), await written.publish(0)
    await learner.update(random_examples(4))
    assert is_equal(await received(learner, snapshot), load_file(file.path))
    await learner.publish(1)
    with pytest.raises(SnapshotGone):
        await received(learner, snapshot)
    assert len(list(tmp_path.glob("grpo-snapshots-sent-*/*"))) == 1, "only the last is kept"
    await learner.close()
    assert list(tmp_path.glob("grpo-snapshots-sent-*")) == []


def borrowed_from(snapshot: Snapshot, loan: Loan) -> dict[str, torch.Tensor]:
    """The snapshot as an engine reads it in the learner's memory."""
    weights = SnapshotReader().read(replace(snapshot, loan=loan))
    return {name: tensor.clone() for some in weights for name, tensor in some}


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for it."""
    monkeypatch.setattr(snapshots, "SHARED_MEMORY", tmp_path)
    return tmp_path


@pytest.fixture
def moving(tmp_path: Path) -> dict[str, Any]:
    """Options of a learner whose updates move weights."""
    return {"objective": Grpo(**UNBOUNDED), "engine_dtype": "bfloat16", "snapshot_folder": str(tmp_path / "written")}


def num_lent(shared_memory: Path) -> int:
    return len(list(shared_memory.glob("grpo-snapshots-lent-*/*")))


async def test_a_learner_lends_what_another_writes_and_keeps_no_copy(model_path: str, shared_memory: Path, moving: dict[str, Any]):
    learner, written = make_learner(model_path, transport="ipc", **moving), make_learner(model_path, **moving)
    for version in (0, 1):
        snapshot, file = await learner.publish(version), await written.publish(version)
        assert snapshot is not None
        assert snapshot.is_sent
        for _ in range(2):  # a replacement asks for it again
            for loan in await learner.lend(snapshot, 2):
                assert is_equal(borrowed_from(snapshot, loan), load_file(file.path))
            assert num_lent(shared_memory) > 0
            await learner.take_back()
            assert num_lent(shared_memory) == 0
        await asyncio.gather(learner.update(random_examples(4)), written.update(random_examples(4)))
    with pytest.raises(SnapshotGone, match="version 1 have moved on"):
        await learner.lend(snapshot, 1)
    await learner.close()
    assert list(shared_memory.glob("grpo-snapshots-lent-*")) == []


async def test_an_update_moves_nothing_of_what_is_lent(model_path: str, shared_memory: Path, moving: dict[str, Any]):
    learner, written = make_learner(model_path, transport="ipc", **moving), make_learner(model_path, **moving)
    snapshot, file = await learner.publish(0), await written.publish(0)
    (loan,) = await learner.lend(snapshot, 1)
    before = weights_of(learner)
    await learner.update(random_examples(4))
    assert not same_weights(before, weights_of(learner))
    assert is_equal(borrowed_from(snapshot, loan), load_file(file.path))
    await learner.close()


async def test_memory_that_is_kept_is_lent_as_published_while_the_learner_goes_on(
    model_path: str, shared_memory: Path, moving: dict[str, Any]
):
    learner, written = make_learner(model_path, transport="ipc", keep_sent=True, **moving), make_learner(model_path, **moving)
    snapshot, file = await learner.publish(0), await written.publish(0)
    await learner.update(random_examples(4))
    for _ in range(2):
        (loan,) = await learner.lend(snapshot, 1)
        assert is_equal(borrowed_from(snapshot, loan), load_file(file.path))
        await learner.take_back()
    num_kept = num_lent(shared_memory)
    later = await learner.publish(1)
    with pytest.raises(SnapshotGone):
        await learner.lend(snapshot, 1)
    assert not is_equal(borrowed_from(later, (await learner.lend(later, 1))[0]), load_file(file.path))
    assert num_lent(shared_memory) == num_kept, "only the last is kept"
    await learner.close()
    assert num_lent(shared_memory) == 0


async def test_adapters_go_out_alone_as_peft_loads_them(model_path: str, tmp_path: Path):
    learner = make_learner(model_path, rank=4, snapshot_folder=str(tmp_path), transport="adapter")
    shake_adapters(learner._policy)
    snapshot = await learner.publish(1)
    snapshots.verify(snapshot)
    again = peft.PeftModel.from_pretrained(load_model(model_path), str(Path(snapshot.path).parent))
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, learner._policy.model(input_ids=ids).logits)
        assert not torch.allclose(load_model(model_path)(input_ids=ids).logits, again(input_ids=ids).logits, atol=0.1)
    assert sum(tensor.numel() for tensor in load_file(snapshot.path).values()) == sum(
        parameter.numel() for parameter in learner._policy.trainable.values()
    )
    snapshots.discard(snapshot)
    assert list(tmp_path.iterdir()) == []
    await learner.close()


async def test_an_adapter_that_cannot_be_written_leaves_nothing(model_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learner = make_learner(model_path, rank=4, snapshot_folder=str(tmp_path), transport="adapter")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(peft.LoraConfig, "save_pretrained", full)
    with pytest.raises(SystemFault, match=r"adapter of version 0 could not be written.*No space"):
        await learner.publish(0)
    assert list(tmp_path.iterdir()) == []
    await learner.close()
