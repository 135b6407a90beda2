"""Warnings in the logs of a run's parts: told once, in order, only ours, and no more than a person reads."""

from __future__ import annotations

import asyncio
from pathlib import Path

from grpo.notices import Notices


def line(text: str, *, level: str = "WARNING", logger: str = "sandbox.pool") -> str:
    return f"2026-01-02 03:04:05,678 {level} {logger}: {text}\n"


def told(folder: Path, *, most: int = 20) -> tuple[Notices, list[str]]:
    said: list[str] = []
    return Notices(folder, said.append, most=most), said


def test_a_warning_is_told_once_with_the_part_that_gave_it(tmp_path: Path):
    log = tmp_path / "verifiers.log"
    notices, said = told(tmp_path)
    log.write_text(line("Docker is away") + line("a slot is new", level="INFO") + "Traceback\n" + line("lost", level="ERROR"))
    notices.look()
    notices.look()
    with log.open("a") as file:
        file.write(line("Docker is away"))
    notices.look()
    assert said == ["verifiers: Docker is away", "verifiers: lost"]


def test_half_a_line_is_told_when_it_is_whole(tmp_path: Path):
    notices, said = told(tmp_path)
    whole = line("ü is two bytes").encode()
    for end in (10, whole.index(b"\xbc"), len(whole) - 1):
        (tmp_path / "learner.log").write_bytes(whole[:end])
        notices.look()
        assert said == []
    (tmp_path / "learner.log").write_bytes(whole)
    notices.look()
    assert said == ["learner: ü is two bytes"]


def test_what_stood_there_before_and_what_others_say_is_left_out(tmp_path: Path):
    (tmp_path / "learner.log").write_text(line("of the run before"))
    notices, said = told(tmp_path)
    with (tmp_path / "learner.log").open("a") as file:
        file.write(line("deprecated", logger="torch.jit") + line("grpo is not its package", logger="py.warnings"))
    notices.look()
    assert said == []


def test_a_flood_ends_with_where_the_rest_stands(tmp_path: Path):
    notices, said = told(tmp_path, most=3)
    (tmp_path / "worker-0.log").write_text("".join(line(f"number {n}") for n in range(50)))
    notices.look()
    assert said == [*(f"worker-0: number {n}" for n in range(3)), f"more warnings stand in {tmp_path}"]


async def test_following_tells_while_others_work(tmp_path: Path):
    notices, said = told(tmp_path)
    following = asyncio.create_task(notices.follow(every_s=0.01))
    await asyncio.sleep(0.03)
    (tmp_path / "worker-0.log").write_text(line("late", logger="rollout.fleet"))
    while not said:
        await asyncio.sleep(0.01)
    following.cancel()
    assert said == ["worker-0: late"]
