"""Several ranks used like one learner: what is asked of them, whose answer counts, and which failure is told."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest
from learner_cases import make_learner, random_examples

from grpo.learner import MismatchTooLarge, Update
from grpo.learner_group import LearnerGroup, LearnerLost, start_group
from sandbox.errors import SystemFault


class Rank:
    """One that answers with its name, fails with an error, or hangs."""

    def __init__(self, name: str, does: Exception | str = "answer") -> None:
        self.name = name
        self.does = does
        self.asked: list[Any] = []
        self.is_closed = False

    async def _do(self, *args: Any) -> str:
        self.asked.append(args)
        if isinstance(self.does, Exception):
            raise self.does
        if self.does == "hang":
            await asyncio.sleep(60)
        return self.name

    update = score = publish = save = restore = export = send = open_group = close_group = lend = take_back = _do

    async def close(self) -> None:
        self.is_closed = True


CALLS = [("update", []), ("score", []), ("publish", 3), ("save", "here"), ("restore", "here"), ("export", "here")]


@pytest.mark.parametrize(("method", "argument"), CALLS, ids=[method for method, _ in CALLS])
async def test_every_rank_is_asked_the_same_and_the_first_one_answers(method: str, argument: Any) -> None:
    ranks = [Rank("first"), Rank("second"), Rank("third")]
    answer = await getattr(LearnerGroup(ranks), method)(argument)
    assert answer in ("first", None)
    assert all(rank.asked == [(argument,)] for rank in ranks)


async def test_the_first_rank_meets_the_engines_and_all_give_their_shares_unless_it_has_a_copy() -> None:
    for keep_sent in (False, True):
        ranks = [Rank("first"), Rank("second")]
        group = LearnerGroup(ranks, keep_sent=keep_sent)
        assert await group.open_group(3) == "first"
        await group.send("snapshot", "seat")  # type: ignore[arg-type]
        await group.close_group()
        assert ranks[0].asked == [(3,), ("snapshot", "seat"), ()]
        assert ranks[1].asked == ([] if keep_sent else [("snapshot", "seat")])


async def test_the_first_rank_lends_and_all_give_their_shares_unless_it_has_a_copy() -> None:
    for keep_sent in (False, True):
        ranks = [Rank("first"), Rank("second")]
        group = LearnerGroup(ranks, keep_sent=keep_sent)
        assert await group.lend("snapshot", 2) == "first"  # type: ignore[arg-type, comparison-overlap]
        await group.take_back()
        assert ranks[0].asked == [("snapshot", 2), ()]
        assert ranks[1].asked == ([] if keep_sent else [("snapshot", 2)])


async def test_ranks_do_one_thing_at_a_time_in_one_order() -> None:
    """What comes while another is done waits for all ranks: two ranks that do two things in another order wait for ever."""
    order: list[str] = []

    class Slow(Rank):
        async def update(self, rows: Any) -> None:
            order.append(f"{self.name} updates")
            await asyncio.sleep(0.05 if self.name == "first" else 0)
            order.append(f"{self.name} has updated")

        async def send(self, *args: Any) -> None:
            order.append(f"{self.name} sends")

    group = LearnerGroup([Slow("first"), Slow("second")])
    await asyncio.gather(group.update([]), group.send("snapshot", "seat"))  # type: ignore[arg-type]
    assert order.index("first has updated") < order.index("second sends")


async def test_rows_are_put_once_for_all_ranks() -> None:
    ranks = [Rank("first"), Rank("second")]
    put: list[Any] = []
    await LearnerGroup(ranks, share=lambda rows: put.append(rows) or "the place").update(random_examples(3))
    assert len(put) == 1
    assert all(rank.asked == [("the place",)] for rank in ranks)


BROKEN = RuntimeError("Connection closed by peer [127.0.0.1]:34567")
DIED = LearnerLost("the process of learner-1 died: worker killed. Its log is logs/learner-1.log.")
APART = MismatchTooLarge("engine and learner differ")


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([BROKEN, DIED], DIED),
        ([BROKEN, DIED, APART], DIED),
        ([BROKEN, APART], APART),
        ([BROKEN, BROKEN], BROKEN),
        ([APART, APART], APART),
    ],
    ids=repr,
)
async def test_a_death_is_told_before_what_it_did_to_the_others(errors: list[Exception], told: Exception) -> None:
    group = LearnerGroup([Rank(f"{i}", error) for i, error in enumerate(errors)])
    with pytest.raises(type(told)) as caught:
        await group.update([])
    assert caught.value is told


async def test_a_rank_that_waits_for_a_failed_one_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grpo.learner_group.LAST_WORDS_S", 0.05)
    full = SystemFault("No space left on device")
    with pytest.raises(SystemFault, match="No space left"):
        await asyncio.wait_for(LearnerGroup([Rank("first", full), Rank("second", "hang")]).publish(1), 5)


async def test_a_call_that_is_given_up_is_given_up_on_every_rank() -> None:
    ranks = [Rank("first", "hang"), Rank("second", "hang")]
    call = asyncio.ensure_future(LearnerGroup(ranks).update([]))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(asyncio.all_tasks()) == 1


async def test_closing_closes_every_rank() -> None:
    ranks = [Rank("first"), Rank("second")]
    await LearnerGroup(ranks).close()
    assert all(rank.is_closed for rank in ranks)


async def test_ranks_are_started_with_a_place_each_and_one_address(model_path: str) -> None:
    specs = []

    async def start(spec: Any) -> Rank:
        specs.append(spec)
        return Rank("one")

    group = await start_group(start, make_learner(model_path)._spec, count=3, host="127.0.0.1")
    assert [spec.place.rank for spec in specs] == [0, 1, 2]
    assert {(spec.place.count, spec.place.address) for spec in specs} == {(3, ("127.0.0.1", group._meeting.port))}
    assert len({dataclasses.replace(spec, place=specs[0].place) for spec in specs}) == 1


async def test_a_learner_alone_gives_what_a_group_gives(model_path: str) -> None:
    alone, grouped = make_learner(model_path), LearnerGroup([make_learner(model_path)])
    rows = random_examples(4)
    for learner in (alone, grouped):
        assert isinstance(await learner.update(rows), Update)
    assert await alone.score(rows) == await grouped.score(rows)
