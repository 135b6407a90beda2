"""Hostile programs, one property each, at every level: contained, nothing left for the next, nothing to be seen on the host."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest

from sandbox.config import Level
from sandbox.docker import GVISOR_RUNTIME
from sandbox.types import Ending, Limits
from tests.sandbox.attacks import sessions
from tests.sandbox.attacks.attack import Attack
from tests.sandbox.attacks.levels import LOOK_LIMITS, LevelUnderAttack
from tests.sandbox.attacks.suite import ATTACKS

LEVELS = [
    pytest.param("warm", marks=pytest.mark.docker),
    pytest.param("fresh", marks=pytest.mark.docker),
    pytest.param("gvisor", marks=pytest.mark.docker),
    pytest.param(
        "bubblewrap",
        marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")],
    ),
]


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> Iterator[LevelUnderAttack]:
    name: Level = request.param
    image = None
    if name != "bubblewrap":
        image = request.getfixturevalue("image")
        if name == "gvisor" and GVISOR_RUNTIME not in request.getfixturevalue("client").info()["Runtimes"]:
            pytest.skip(f"the runtime {GVISOR_RUNTIME} is not registered with this Docker")
    level = LevelUnderAttack(name, image)
    yield level
    assert level.close() == 0


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_attack_is_contained(attack: Attack, level: LevelUnderAttack, request: pytest.FixtureRequest):
    if why := attack.not_claimed.get(level.level):
        pytest.skip(f"not promised by {level.level}: {why}")
    if why := attack.holes.get(level.level):
        request.applymarker(pytest.mark.xfail(strict=True, reason=f"a hole in {level.level}: {why}"))
    began = time.monotonic()
    execution = level.run(attack.program, attack.limits, attack.stdin)
    assert time.monotonic() - began <= attack.limits.wall_clock_s + 6, "ended soon after it was stopped"
    assert execution.ending in attack.endings, execution
    if attack.prints is not None:
        assert execution.stdout == attack.prints, execution
    assert execution.wall_s <= attack.limits.wall_clock_s + 1, "stopped in time"
    assert max(len(execution.stdout), len(execution.stderr)) <= attack.limits.output_kb << 10
    if attack.next_program:
        seen = level.run(attack.next_program, LOOK_LIMITS)
        assert seen.stdout == attack.next_prints, seen
    assert level.differences(inside=level.slots_are_shared or bool(attack.next_program)) == {}


@pytest.mark.parametrize("attack", sessions.ATTACKS, ids=lambda attack: attack.name)
def test_a_program_that_is_asked_cannot_answer_out_of_turn(attack: sessions.SessionAttack, level: LevelUnderAttack):
    answers, execution = level.ask(attack.program, attack.limits, times=3, pause_s=attack.pause_s)
    assert len(answers) in attack.answered, answers
    assert (execution.ending if execution else Ending.DISMISSED) in attack.endings, execution
    assert level.differences(inside=level.slots_are_shared) == {}


def test_the_slot_is_as_good_as_new(level: LevelUnderAttack):
    """After all of them: a program with the usual limits gets all that it is promised."""
    program = """
import os, threading
a = bytearray(48 << 20)
for offset in range(0, len(a), 4096): a[offset] = 1
del a
open("/tmp/x", "wb").write(bytes(3 << 20))
threads = [threading.Thread(target=len, args=("",)) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
pids = [os.fork() for _ in range(2)]
if 0 in pids: os._exit(0)
for pid in pids: os.waitpid(pid, 0)
print(sum(range(10 ** 6)))
"""
    began = time.monotonic()
    execution = level.run(program, Limits(cpu_s=2, memory_mb=64, max_processes=16, disk_mb=4))
    assert (execution.ok, execution.stdout) == (True, "499999500000\n"), execution
    assert time.monotonic() - began < 10


def test_there_are_as_many_attacks_as_are_spoken_of():
    assert len(ATTACKS) + len(sessions.ATTACKS) >= 160


def test_a_level_that_does_not_claim_an_attack_says_why():
    unclaimed = [(attack.name, level, why) for attack in ATTACKS for level, why in attack.not_claimed.items()]
    assert [name for name, _, why in unclaimed if len(why.split()) < 5] == []
    assert not [name for name, level, _ in unclaimed if level in ("warm", "fresh")]  # these claim them all
