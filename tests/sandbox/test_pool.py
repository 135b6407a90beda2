"""The pool: places, replacement, retries, outages. Real fork servers without walls; a host that fails on demand."""

import asyncio
import time

import pytest

from sandbox.agent.calls import encode_call
from sandbox.bubblewrap import JailHost
from sandbox.config import SandboxConfig
from sandbox.errors import SandboxLost, SandboxUnavailable
from sandbox.pool import Pool
from sandbox.types import Ending, Limits, Program

NO_ARGUMENTS = encode_call((), {})
TRUSTED = SandboxConfig(level="none", trusted=True)


class Host(JailHost):
    """Fork servers without walls, of which some do not start, or die at their first program."""

    def __init__(self) -> None:
        super().__init__(TRUSTED, walled=False)
        self.wires, self.is_down = [], False

    async def start(self, name):
        if self.is_down:
            raise SandboxUnavailable("the daemon is away.")
        wire = await super().start(name)
        self.wires.append(wire)
        return wire

    def kill(self, number: int = -1) -> None:
        self.wires[number]._process.kill()


@pytest.fixture
async def host():
    return Host()


@pytest.fixture
async def make_pool(host):
    pools = []

    def make(**options):
        async def make_host():
            return host

        pools.append(Pool(make_host, **{"num_slots": 2, "name": "test"} | options))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()
    assert all(wire._process.returncode is not None for wire in host.wires), "a fork server is left"


async def test_nothing_is_started_before_the_first_program(make_pool, host):
    pool = make_pool()
    assert host.wires == []
    assert (await pool.run(Program("print(1)"))).stdout == "1\n"
    assert len(host.wires) == 1


async def test_as_many_programs_at_one_time_as_slots(make_pool, host):
    pool = make_pool(num_slots=2)
    await asyncio.gather(*(pool.run(Program("pass")) for _ in range(2)))
    began = time.monotonic()
    await asyncio.gather(*(pool.run(Program("import time; time.sleep(0.5)")) for _ in range(4)))
    assert 1.0 <= time.monotonic() - began < 2.0
    assert len(host.wires) == 2


async def test_callers_are_served_in_the_order_in_which_they_came(make_pool):
    pool, order = make_pool(num_slots=1), []

    async def caller(number):
        await pool.run(Program("pass"))
        order.append(number)

    await asyncio.gather(*(caller(number) for number in range(20)))
    assert order == list(range(20))


async def test_results_belong_to_their_programs(make_pool):
    pool = make_pool(num_slots=2)
    executions = await asyncio.gather(*(pool.run(Program(f"print({number})")) for number in range(100)))
    assert [execution.stdout for execution in executions] == [f"{number}\n" for number in range(100)]


async def test_a_program_whose_slot_dies_is_run_again(make_pool, host):
    pool = make_pool(num_slots=1)
    await pool.run(Program("pass"))
    running = asyncio.create_task(pool.run(Program("import time; time.sleep(0.3); print('done')")))
    await asyncio.sleep(0.1)
    host.kill()
    assert (await running).stdout == "done\n"
    assert pool.metrics()["sandbox/lost"] == 1


async def test_a_program_whose_slots_all_die_is_lost_and_not_judged(make_pool, host):
    pool = make_pool(num_slots=1)

    async def kill_all():
        while True:
            if host.wires and host.wires[-1]._process.returncode is None:
                await asyncio.sleep(0.15)
                host.kill()
            await asyncio.sleep(0.01)

    await pool.run(Program("pass"))
    killer = asyncio.create_task(kill_all())
    with pytest.raises(SandboxLost, match="it is gone"):
        await pool.run(Program("import time; time.sleep(5)"))
    killer.cancel()
    assert pool.metrics()["sandbox/lost"] == 3


async def test_an_idle_slot_that_died_costs_nobody_a_verdict(make_pool, host):
    pool = make_pool(num_slots=1)
    await pool.run(Program("pass"))
    host.kill()
    assert (await pool.run(Program("print(1)"))).stdout == "1\n"


async def test_a_spent_slot_is_replaced_in_the_background(make_pool, host):
    pool = make_pool(num_slots=2, max_jobs=1)
    for _ in range(4):
        await pool.run(Program("pass"))
    await asyncio.sleep(0.3)
    assert sum(wire._process.returncode is None for wire in host.wires) == 2
    assert pool.metrics()["sandbox/slots_replaced"] == 4


async def take_down(pool, host) -> None:
    """An outage after a program that worked: nothing starts any more, and what stands dies."""
    assert (await pool.run(Program("print(1)"))).ok
    host.is_down = True
    for number in range(len(host.wires)):
        host.kill(number)


async def test_an_outage_is_waited_out_and_told_once(make_pool, host, caplog):
    pool = make_pool(num_slots=1)
    await take_down(pool, host)
    running = asyncio.create_task(pool.run(Program("print(1)")))
    await asyncio.sleep(0.5)
    host.is_down = False
    assert (await running).stdout == "1\n"
    assert [record.message for record in caplog.records if "for now" in record.message] == [
        "no test slot for now; trying for 60 s: the daemon is away."
    ]


async def test_an_outage_that_lasts_is_unavailable_and_then_quickly_so_for_everybody(make_pool, host):
    pool = make_pool(num_slots=2, patience_s=0.4)
    await take_down(pool, host)
    began = time.monotonic()
    outcomes = await asyncio.gather(*(pool.run(Program("pass")) for _ in range(50)), return_exceptions=True)
    assert all(isinstance(outcome, SandboxUnavailable) for outcome in outcomes)
    assert 0.3 < time.monotonic() - began < 2
    host.is_down = False
    assert (await pool.run(Program("print(1)"))).stdout == "1\n"


async def test_what_never_worked_is_not_waited_for(make_pool, host):
    pool = make_pool()
    host.is_down = True
    began = time.monotonic()
    with pytest.raises(SandboxUnavailable, match="the daemon is away"):
        await pool.run(Program("pass"))
    assert time.monotonic() - began < 1


async def test_a_cancelled_program_leaves_the_pool_at_full_strength(make_pool, host):
    pool = make_pool(num_slots=1)
    await pool.run(Program("pass"))
    running = asyncio.create_task(pool.run(Program("import time; time.sleep(60)")))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await pool.run(Program("print(1)"))).stdout == "1\n"
    assert len(host.wires) == 2


async def test_a_session_whose_slot_dies_is_lost_and_the_next_is_not(make_pool, host):
    pool, program = make_pool(num_slots=1), Program("def f(): return 1", "f")

    async def two_questions(*, killed_between):
        async with pool.open(program) as session:
            await session.ask(NO_ARGUMENTS)
            if killed_between:
                host.kill()
                await asyncio.sleep(0.05)
            return await session.ask(NO_ARGUMENTS)

    with pytest.raises(SandboxLost):
        await two_questions(killed_between=True)
    assert await two_questions(killed_between=False) == '["Returned",1]'


async def test_a_caller_that_breaks_off_dismisses_its_program(make_pool):
    pool = make_pool(num_slots=1)

    async def break_off():
        async with pool.open(Program("def f(): return 1", "f")) as session:
            await session.ask(NO_ARGUMENTS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await break_off()
    assert pool.metrics()["sandbox/dismissed"] == 1
    assert (await pool.run(Program("print(1)"))).stdout == "1\n"


async def test_endings_are_counted_and_times_measured(make_pool):
    pool = make_pool()
    await pool.run(Program("pass"))
    await pool.run(Program("import time; time.sleep(9)"), limits=Limits(wall_s=0.1))
    metrics = pool.metrics()
    assert (metrics["sandbox/exited"], metrics["sandbox/wall_time"]) == (1, 1)
    assert 0 <= metrics["sandbox/run_p50_s"] <= metrics["sandbox/run_p99_s"] < 5
    assert pool.metrics() == {}


async def test_a_closed_pool_says_so(make_pool):
    pool = make_pool()
    await pool.run(Program("pass"))
    await pool.close()
    with pytest.raises(SandboxUnavailable, match="was closed"):
        await pool.run(Program("pass"))


async def test_a_refused_program_needs_no_slot_of_its_own(make_pool):
    assert (await make_pool().run(Program("#" * (2 << 20)))).ending is Ending.REFUSED
