"""How the fleet's half of a broadcast goes on when workers or the learner fail: fakes that meet in a group as the real ones do."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from rollout.delivery import MAX_TRIES, BroadcastDelivery, FileDelivery, LoanDelivery
from rollout.errors import SnapshotGone, SyncFailed, WorkerLost
from rollout.fleet import Fleet
from rollout.sampling import Sampling
from rollout.transports import WeightPlacement, choose_transport
from rollout.types import BroadcastSeat, Loan, Snapshot, WeightSpec
from sandbox.errors import UserError
from tests.fakes import FakeWorker, make_snapshot, make_task

SNAPSHOT = Snapshot(1, layout=(WeightSpec("w", "float32", (1,)),))


@dataclass
class Air:
    """What connects the fakes: a send and the loads of a group end together when all are there, or break together."""

    seats: list[BroadcastSeat] = field(default_factory=list)
    present: set[int] = field(default_factory=set)
    ended: asyncio.Future[None] | None = None
    is_open: bool = False

    async def meet(self, seat: BroadcastSeat, rank: int) -> None:
        if not self.is_open or seat.generation != self.seats[-1].generation:
            raise SyncFailed("the group is closed")
        assert rank not in self.present, "two processes have one rank"
        if not self.present:
            self.ended = asyncio.get_running_loop().create_future()
        assert self.ended is not None
        self.present.add(rank)
        ended = self.ended
        if len(self.present) == seat.world_size:
            assert self.present == set(range(seat.world_size))
            self.present = set()
            ended.set_result(None)
        await asyncio.shield(ended)

    def break_up(self) -> None:
        self.is_open = False
        if self.ended is not None and not self.ended.done():
            self.ended.set_exception(SyncFailed("connection closed by peer"))
            self.ended.exception()
        self.present = set()


class FakeSender:
    def __init__(self, air: Air) -> None:
        self.air = air
        self.faults: list[Exception] = []
        self.num_sent = 0

    async def open_group(self, world_size: int) -> BroadcastSeat:
        self.air.break_up()
        self.air.seats.append(BroadcastSeat("gloo", "here", 1, f"g{len(self.air.seats)}", world_size, 64))
        self.air.is_open = True
        return self.air.seats[-1]

    async def send(self, snapshot: Snapshot, seat: BroadcastSeat) -> None:
        if self.faults:
            raise self.faults.pop(0)
        await self.air.meet(seat, 0)
        self.num_sent += 1

    async def close_group(self) -> None:
        self.air.break_up()


class Receiver(FakeWorker):
    """`faults` are raised one by one by its loads, each after it has met the others."""

    def __init__(self, air: Air, faults: list[Exception] | None = None) -> None:
        super().__init__()
        self.air = air
        self.faults = faults or []
        self.ranks: list[int] = []
        self.hangs = False

    async def load(self, snapshot: Snapshot) -> None:
        await self._wait()
        if self.hangs:
            await asyncio.Event().wait()
        assert snapshot.seat is not None
        self.ranks.append(snapshot.seat.first_rank)
        if self.faults:
            fault = self.faults.pop(0)
            self.air.break_up()
            raise fault
        await self.air.meet(snapshot.seat, snapshot.seat.first_rank)
        await super().load(snapshot)


def world(num_workers: int, **options: float) -> tuple[Air, FakeSender, list[Receiver], BroadcastDelivery]:
    air = Air()
    sender = FakeSender(air)
    return air, sender, [Receiver(air) for _ in range(num_workers)], BroadcastDelivery(sender, grace_s=1, **options)  # type: ignore[arg-type]


async def test_the_group_of_the_same_workers_is_used_again_and_ranks_follow_each_other():
    air, sender, workers, delivery = world(3)
    for _ in range(4):
        assert await delivery.deliver(SNAPSHOT, dict(enumerate(workers))) == {}
    assert len(air.seats) == 1
    assert [worker.ranks for worker in workers] == [[1] * 4, [2] * 4, [3] * 4]
    assert [worker.loaded for worker in workers] == [[1] * 4] * 3
    assert sender.num_sent == 4


async def test_workers_of_two_processes_each_begin_at_every_second_rank():
    seats = []

    class Noting(Receiver):
        async def load(self, snapshot: Snapshot) -> None:
            seats.append(snapshot.seat)

    air = Air()
    delivery = BroadcastDelivery(FakeSender(air), ranks_per_worker=2, grace_s=0.1)
    air.meet = lambda *arguments: asyncio.sleep(0)  # type: ignore[method-assign]
    await delivery.deliver(SNAPSHOT, {4: Noting(air), 7: Noting(air), 9: Noting(air)})
    assert [(seat.first_rank, seat.world_size) for seat in seats] == [(1, 7), (3, 7), (5, 7)]


async def test_a_worker_lost_half_way_is_named_and_the_others_get_it_all_through_a_new_group():
    air, _, workers, delivery = world(3)
    workers[1].faults = [WorkerLost("killed")]
    lost = await delivery.deliver(SNAPSHOT, dict(enumerate(workers)))
    assert {index: str(loss) for index, loss in lost.items()} == {1: "killed"}
    assert [worker.loaded for worker in workers] == [[1], [], [1]]
    assert [seat.world_size for seat in air.seats] == [4, 3]


async def test_a_worker_that_failed_and_lives_gets_it_again():
    air, _, workers, delivery = world(2)
    workers[0].faults = [SyncFailed("a bucket has another digest")]
    assert await delivery.deliver(SNAPSHOT, dict(enumerate(workers))) == {}
    assert [worker.loaded for worker in workers] == [[1], [1]]
    assert len(air.seats) == 2


async def test_what_fails_again_and_again_is_raised():
    _, _, workers, delivery = world(2)
    workers[0].faults = [SyncFailed("does not fit the model")] * 10
    with pytest.raises(SyncFailed, match="does not fit the model"):
        await delivery.deliver(SNAPSHOT, dict(enumerate(workers)))
    assert len(workers[0].faults) == 10 - MAX_TRIES


async def test_when_all_are_lost_nobody_is_left_to_send_to():
    _, _, workers, delivery = world(2)
    for worker in workers:
        worker.faults = [WorkerLost("killed")] * 2
    assert set(await delivery.deliver(SNAPSHOT, dict(enumerate(workers)))) == {0, 1}


async def test_a_worker_that_does_not_end_when_the_group_broke_is_lost():
    _, _, workers, delivery = world(3)
    delivery._grace_s = 0.05
    workers[0].faults = [SyncFailed("broken")]
    workers[2].hangs = True
    lost = await delivery.deliver(SNAPSHOT, dict(enumerate(workers)))
    assert list(lost) == [2]
    assert "did not end within 0.05 s" in str(lost[2])
    assert [worker.loaded for worker in workers] == [[1], [1], []]


@pytest.mark.parametrize("fault", [SnapshotGone("version 1 has moved on"), AssertionError("ours"), OSError("no port is free")])
async def test_faults_of_the_learner_that_no_second_try_mends_are_raised_at_once(fault: Exception):
    _, sender, workers, delivery = world(2)
    sender.faults = [fault]
    with pytest.raises(type(fault)):
        await delivery.deliver(SNAPSHOT, dict(enumerate(workers)))
    assert [worker.loaded for worker in workers] == [[], []]


async def test_a_cancelled_delivery_breaks_the_group_up_and_leaves_nobody_waiting():
    air, _, workers, delivery = world(2)
    workers[1].hangs = True
    delivery._grace_s = 0.05
    delivering = asyncio.create_task(delivery.deliver(SNAPSHOT, dict(enumerate(workers))))
    await asyncio.sleep(0.02)
    delivering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivering
    workers[1].hangs = False
    assert await delivery.deliver(SNAPSHOT, dict(enumerate(workers))) == {}
    assert len(air.seats) == 2


async def test_files_are_loaded_by_each_alone_and_losses_are_named():
    workers = {0: FakeWorker(), 1: FakeWorker()}
    workers[0].kill()
    lost = await FileDelivery().deliver(make_snapshot(3), workers)
    assert list(lost) == [0]
    assert workers[1].loaded == [3]


# The fleet with it


async def make_fleet(air: Air, sender: FakeSender, started: list[Receiver], num_workers: int = 2) -> Fleet:
    async def start(index: int) -> Receiver:
        started.append(Receiver(air))
        return started[-1]

    fleet = Fleet(start, num_workers=num_workers, sampling=Sampling(), run_seed=0, discard=lambda snapshot: None)
    fleet.delivery = BroadcastDelivery(sender, grace_s=1)
    await fleet.start()
    await fleet.load(SNAPSHOT)
    return fleet


async def test_a_replacement_is_sent_the_weights_alone_and_the_next_time_with_the_others():
    air = Air()
    started: list[Receiver] = []
    fleet = await make_fleet(air, FakeSender(air), started)
    started[0].kill()
    assert len(await fleet.sample(make_task(), n=2)) == 2
    await fleet.load(Snapshot(2, layout=SNAPSHOT.layout))
    assert [worker.loaded for worker in started] == [[1], [1, 2], [1, 2]]
    assert [seat.world_size for seat in air.seats] == [3, 2, 3]
    await fleet.close()


async def test_a_worker_killed_in_mid_update_is_replaced_and_all_hold_the_new_weights():
    air = Air()
    started: list[Receiver] = []
    fleet = await make_fleet(air, FakeSender(air), started)
    started[1].faults = [WorkerLost("killed")]
    await fleet.load(Snapshot(2, layout=SNAPSHOT.layout))
    assert [worker.loaded for worker in started] == [[1, 2], [1], [2]]
    assert fleet.metrics()["fleet/lost_workers"] == 1
    await fleet.close()


async def test_a_replacement_that_comes_when_the_learner_has_moved_on_waits_for_the_next_version():
    air, started = Air(), []
    sender = FakeSender(air)
    fleet = await make_fleet(air, sender, started, num_workers=1)
    started[0].kill()
    sender.faults = [SnapshotGone("version 1 has moved on")]
    sampling = asyncio.create_task(fleet.sample(make_task(), n=1))
    await asyncio.sleep(0.02)
    assert not sampling.done()
    await fleet.load(Snapshot(2, layout=SNAPSHOT.layout))
    assert [completion.version_spans[0].version for completion in await sampling] == [2]
    assert started[1].loaded[-1] == 2
    await fleet.close()


# What the learner lends


class FakeLender:
    """Gives every reader handles of its own, and notes what happens."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def lend(self, snapshot: Snapshot, count: int) -> list[Loan]:
        self.told.append(f"lends version {snapshot.version} to {count}")
        return [Loan("cpu", 64, (f"{snapshot.version}/{i}".encode(),)) for i in range(count)]

    async def take_back(self) -> None:
        await asyncio.sleep(0)
        self.told.append("takes back")


class Reader(FakeWorker):
    def __init__(self, lender: FakeLender, fault: Exception | None = None) -> None:
        super().__init__()
        self.lender = lender
        self.fault = fault

    async def load(self, snapshot: Snapshot) -> None:
        await asyncio.sleep(0.01)
        assert snapshot.loan is not None
        self.lender.told.append(f"{snapshot.loan.handles[0].decode()} is read")
        if self.fault is not None:
            raise self.fault
        await super().load(snapshot)


async def test_memory_is_lent_to_each_worker_and_taken_back_when_the_last_has_read_it():
    lender = FakeLender()
    workers = [Reader(lender), Reader(lender), Reader(lender)]
    assert await LoanDelivery(lender).deliver(SNAPSHOT, dict(enumerate(workers))) == {}
    assert lender.told == ["lends version 1 to 3", "1/0 is read", "1/1 is read", "1/2 is read", "takes back"]
    assert [worker.loaded for worker in workers] == [[1]] * 3


async def test_two_loans_follow_each_other():
    lender = FakeLender()
    delivery = LoanDelivery(lender)
    later = Snapshot(2, layout=SNAPSHOT.layout)
    await asyncio.gather(delivery.deliver(SNAPSHOT, {0: Reader(lender)}), delivery.deliver(later, {1: Reader(lender)}))
    assert lender.told == ["lends version 1 to 1", "1/0 is read", "takes back", "lends version 2 to 1", "2/0 is read", "takes back"]


async def test_a_worker_lost_while_it_reads_is_named_and_the_others_hold_the_weights():
    lender = FakeLender()
    workers = [Reader(lender), Reader(lender, WorkerLost("killed")), Reader(lender)]
    lost = await LoanDelivery(lender).deliver(SNAPSHOT, dict(enumerate(workers)))
    assert {index: str(loss) for index, loss in lost.items()} == {1: "killed"}
    assert [worker.loaded for worker in workers] == [[1], [], [1]]
    assert lender.told[-1] == "takes back"


async def test_memory_is_taken_back_from_a_worker_that_does_not_find_what_was_lent():
    lender = FakeLender()
    with pytest.raises(SyncFailed, match="another digest"):
        await LoanDelivery(lender).deliver(SNAPSHOT, {0: Reader(lender, SyncFailed("another digest")), 1: Reader(lender)})
    assert lender.told[-1] == "takes back"


async def test_a_worker_that_is_replaced_is_lent_the_weights_of_the_moment():
    lender = FakeLender()
    started: list[Reader] = []

    async def start_worker(index: int) -> Reader:
        started.append(Reader(lender))
        return started[-1]

    fleet = Fleet(start_worker, num_workers=2, sampling=Sampling(), run_seed=7, discard=lambda snapshot: None)
    fleet.delivery = LoanDelivery(lender)
    await fleet.start()
    await fleet.load(SNAPSHOT)
    await fleet.load(Snapshot(2, layout=SNAPSHOT.layout))
    started[0].kill()
    assert len(await fleet.sample(make_task(), n=2)) == 2
    assert [worker.loaded for worker in started] == [[1, 2], [1, 2], [2]]
    assert lender.told[-3:] == ["lends version 2 to 1", "2/0 is read", "takes back"]
    await fleet.close()


# Which transport


@pytest.mark.parametrize(
    ("asked", "device", "num_nodes", "gpus_are_shared", "chosen"),
    [
        ("auto", "cpu", 1, False, "shm"),
        ("auto", "cpu", 3, False, "gloo"),
        ("auto", "cuda", 1, False, "shm"),
        ("auto", "cuda", 4, False, "gloo"),
        ("auto", "cuda", 1, True, "shm"),
        ("auto", "cuda", 2, True, "gloo"),
        ("shm", "cpu", 3, False, "shm"),
        ("adapter", "cpu", 1, False, "adapter"),
        ("gloo", "cpu", 1, False, "gloo"),
        ("gloo", "cuda", 1, True, "gloo"),
        ("nccl", "cuda", 1, False, "nccl"),
        ("nccl", "cuda", 1, True, UserError),
        ("nccl", "cpu", 1, False, UserError),
        ("ipc", "cpu", 1, False, "ipc"),
        ("ipc", "cpu", 2, False, UserError),
        ("ipc", "cuda", 2, True, UserError),
        ("ipc", "cuda", 1, False, UserError),
        ("ipc", "cuda", 1, True, UserError),  # as on two GPUs of which each has a rank or a worker
    ],
)
def test_auto_follows_the_placement(asked: str, device: str, num_nodes: int, gpus_are_shared: bool, chosen: str | type[Exception]):
    placement = WeightPlacement(device, num_nodes, gpus_are_shared)
    if isinstance(chosen, str):
        assert choose_transport(asked, placement) == chosen
    else:
        with pytest.raises(chosen, match="Use auto"):
            choose_transport(asked, placement)


def test_memory_of_a_gpu_is_lent_where_learner_and_engines_are_all_on_it():
    assert choose_transport("ipc", WeightPlacement("cuda", 1, gpus_are_shared=True, is_one_gpu=True)) == "ipc"
