"""Our end of a fork server, and the real fork server at the other end of a socket, without walls."""

import asyncio
import json
import os
import struct

import pytest

from sandbox.agent.calls import encode_call
from sandbox.bubblewrap import JailHost
from sandbox.config import SandboxConfig
from sandbox.errors import SandboxLost, SandboxUnavailable
from sandbox.ownership import Owner
from sandbox.slot import Slot, start
from sandbox.types import Ending, Limits, Program, ProgramEnded

TRUSTED = SandboxConfig(level="none", trusted=True)
SHORT = Limits(cpu_s=1, wall_s=1)


@pytest.fixture
async def slot():
    wire = await JailHost(TRUSTED, walled=False).start("test")
    slot = await start(wire, max_jobs=100, max_age_s=100)
    yield slot
    await slot.close()


async def test_a_script_reads_stdin_and_prints(slot):
    execution = await slot.run(Program("import sys; print(sys.stdin.read()[::-1], end='')"), stdin="größe\n", limits=SHORT)
    assert (execution.ending, execution.exit_code, execution.stdout, execution.stderr) == (Ending.EXITED, 0, "\neßörg", "")
    assert execution.ok


@pytest.mark.parametrize(
    ("source", "exit_code", "stderr"),
    [
        ("exit(3)", 3, ""),
        ("quit()", 0, ""),
        ("import sys; sys.exit('no')", 1, "no\n"),
        ("import os; os._exit(7)", 7, ""),
        ("raise SystemExit(256 + 5)", 5, ""),
        (
            "1/0",
            1,
            'Traceback (most recent call last):\n  File "program.py", line 1, in <module>\nZeroDivisionError: division by zero\n',
        ),
        ("print(", 1, "  File \"program.py\", line 1\n    print(\n         ^\nSyntaxError: '(' was never closed\n"),
        ("x = '\0'", 1, None),
        ("x = '\ud800'", 1, None),
        ("import sys; sys.stderr.write('no newline')", 0, "no newline"),
        ("import atexit; atexit.register(print, 'bye')", 0, ""),
    ],
)
async def test_it_ends_as_an_interpreter_would(slot, source, exit_code, stderr):
    execution = await slot.run(Program(source), stdin="", limits=SHORT)
    assert (execution.ending, execution.exit_code) == (Ending.EXITED, exit_code)
    assert stderr is None or execution.stderr == stderr
    assert not slot.is_spent


async def test_exit_handlers_threads_and_buffers_are_finished(slot):
    source = (
        "import atexit, threading, time\natexit.register(print, 'handler')\n"
        "threading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()\nprint('main', end=' ')"
    )
    assert (await slot.run(Program(source), stdin="", limits=SHORT)).stdout == "main thread\nhandler\n"


async def test_a_signal_of_its_own_is_told_from_an_exit(slot):
    execution = await slot.run(Program("import os; os.kill(os.getpid(), 11)"), stdin="", limits=SHORT)
    assert (execution.ending, execution.signal, execution.exit_code) == (Ending.KILLED, 11, None)


async def test_what_it_writes_is_kept_up_to_a_limit_and_marked(slot):
    execution = await slot.run(Program("print('x' * 3000)"), stdin="", limits=Limits(output_kb=1))
    assert (execution.ending, execution.stdout, execution.stdout_truncated) == (Ending.EXITED, "x" * 1024, True)


async def test_a_flood_is_cut_off(slot):
    execution = await slot.run(Program("while True: print('x' * 1000)"), stdin="", limits=Limits(output_kb=1))
    assert (execution.ending, len(execution.stdout)) == (Ending.OUTPUT, 1024)


async def test_as_much_as_is_ever_kept_fits_into_a_reply(slot):
    source = "import os\nfor fd in (1, 2):\n    left = 4 << 20\n    while left: left -= os.write(fd, b'\\0' * min(left, 65536))"
    execution = await slot.run(Program(source), stdin="", limits=Limits(output_kb=4096))
    assert (execution.ending, execution.stdout, len(execution.stderr)) == (Ending.EXITED, "\0" * (4 << 20), 4 << 20)


async def test_bytes_that_are_no_text_are_replaced(slot):
    execution = await slot.run(Program("import os; os.write(1, bytes([0, 255, 65]))"), stdin="", limits=SHORT)
    assert execution.stdout == "\0\ufffdA"


async def test_a_sleeper_is_stopped_by_the_wall_clock(slot):
    execution = await slot.run(Program("import time; time.sleep(60)"), stdin="", limits=Limits(wall_s=0.2))
    assert execution.ending is Ending.WALL_TIME
    assert 0.2 <= execution.wall_s < 5


async def test_memory_it_cannot_get_is_named(slot):
    execution = await slot.run(Program("x = bytearray(10**9)"), stdin="", limits=Limits(memory_mb=64))
    assert (execution.ending, execution.reason) == (Ending.MEMORY, "it could not get more memory")


async def test_a_program_too_large_is_refused_without_a_try(slot):
    execution = await slot.run(Program("#" * (10 << 20)), stdin="", limits=SHORT)
    assert (execution.ending, execution.reason) == (Ending.REFUSED, "the program has 10,485,760 bytes; at most 1,048,576 are run")


async def test_files_are_there_and_gone_with_the_program(slot):
    program = Program("import os; print(open('a/b.txt').read(), sorted(os.listdir()))", files={"a/b.txt": b"hello"})
    assert (await slot.run(program, stdin="", limits=SHORT)).stdout == "hello ['a']\n"
    assert (await slot.run(Program("import os; print(os.listdir())"), stdin="", limits=SHORT)).stdout == "[]\n"


async def test_a_program_finds_nothing_of_ours_to_import_and_no_environment(slot):
    source = "import os, sys\nprint([p for p in sys.path if 'grpo' in p], sorted(os.environ), sys.argv, __name__)\nimport sandbox"
    execution = await slot.run(Program(source), stdin="", limits=SHORT)
    assert execution.stdout.startswith("[] ['HOME', 'LANG', ")
    assert "WANDB" not in execution.stdout
    assert execution.stdout.endswith("['program.py'] __main__\n")
    assert "No module named 'sandbox'" in execution.stderr


async def test_questions_are_answered_one_by_one(slot):
    async with slot.open(Program("calls = []\ndef f(x):\n    calls.append(x)\n    return calls", "f"), limits=SHORT) as session:
        assert await session.ask(encode_call((1,), {})) == '["Returned",[1]]'
        assert await session.ask(encode_call((), {"x": 2})) == '["Returned",[1,2]]'
    assert session.execution is not None
    assert session.execution.ending is Ending.DISMISSED
    assert not slot.is_spent


async def test_the_wall_clock_stands_still_while_nothing_is_asked(slot):
    async with slot.open(Program("def f(): return 1", "f"), limits=Limits(wall_s=0.3)) as session:
        for _ in range(3):
            await session.ask(encode_call((), {}))
            await asyncio.sleep(0.2)
        assert await session.ask(encode_call((), {})) == '["Returned",1]'


@pytest.mark.parametrize(
    ("source", "ending", "word"),
    [
        ("import time; time.sleep(60)", Ending.WALL_TIME, "0.3 s"),
        ("import os; os._exit(0)", Ending.EXITED, ""),
        ("1/0", Ending.EXITED, ""),
        ("import os\ndef f(): os.write(4, b'1\\n2\\n')", Ending.PROTOCOL, "more than it was asked"),
        ("import os\ndef f(): os.write(4, b'x' * 2000000)", Ending.PROTOCOL, "more than 1048576 bytes"),
    ],
)
async def test_a_program_that_does_not_answer_says_why(slot, source, ending, word):
    async with slot.open(Program(source, "f"), limits=Limits(wall_s=0.3)) as session:
        with pytest.raises(ProgramEnded) as ended:
            await ask_twice(session)
        with pytest.raises(ProgramEnded):
            await session.ask(encode_call((), {}))
    assert ended.value.execution.ending is ending
    assert word in ended.value.execution.reason
    assert not slot.is_spent


async def ask_twice(session, *, pause_s=0.0):
    for _ in range(2):
        await session.ask(encode_call((), {}))
        await asyncio.sleep(pause_s)


async def test_an_answer_before_its_question_ends_the_program(slot):
    source = "import os\nos.write(4, b'forged\\n')\ndef f():\n    os.write(4, b'1\\n')\n    import time; time.sleep(60)"
    async with slot.open(Program(source, "f"), limits=Limits(wall_s=5)) as session:
        with pytest.raises(ProgramEnded) as ended:
            await ask_twice(session, pause_s=0.3)
    assert ended.value.execution.ending is Ending.PROTOCOL


async def test_a_program_that_reads_no_questions_is_stopped_by_the_clock(slot):
    async with slot.open(Program("import time; time.sleep(60)", "f"), limits=Limits(wall_s=0.3)) as session:
        with pytest.raises(ProgramEnded) as ended:
            await session.ask("x" * 500_000)
    assert ended.value.execution.ending is Ending.WALL_TIME


async def test_an_abandoned_program_costs_the_slot(slot):
    running = asyncio.create_task(slot.run(Program("import time; time.sleep(60)"), stdin="", limits=Limits()))
    await asyncio.sleep(0.1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert slot.is_spent


async def test_a_slot_is_spent_after_its_number_of_jobs():
    slot = await start(await JailHost(TRUSTED, walled=False).start("test"), max_jobs=2, max_age_s=100)
    for spent in (False, True):
        await slot.run(Program(""), stdin="", limits=SHORT)
        assert slot.is_spent is spent
    await slot.close()


async def test_a_server_that_cannot_start_is_unavailable_with_its_own_words():
    config = TRUSTED.model_copy(update={"preload": ("no_such_module",)})
    with pytest.raises(SandboxUnavailable, match="No module named 'no_such_module'"):
        await start(await JailHost(config, walled=False).start("test"), max_jobs=1, max_age_s=1)


class ScriptedWire:
    """A server that answers each frame by what `replies` make of it; bytes that end early are a closed stream."""

    name = "scripted"

    def __init__(self, *replies) -> None:
        self.replies, self.incoming, self.closed = list(replies), b"", False

    async def send(self, data: bytes) -> None:
        if self.replies:
            reply = self.replies.pop(0)(json.loads(data[4:]))
            body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.incoming += struct.pack(">I", len(body)) + body

    async def receive(self, size: int) -> bytes:
        if len(self.incoming) < size:
            raise EOFError("closed")
        data, self.incoming = self.incoming[:size], self.incoming[size:]
        return data

    async def close(self) -> None:
        self.closed = True

    def last_words(self) -> str:
        return "Killed"

    async def ran_out_of_memory(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (lambda frame: {"id": "0" * 32, "execution": {}, "healthy": True}, "answered another request"),
        (lambda frame: {"id": frame["id"], "answer": "1"}, "holds none of execution"),
        (lambda frame: {"id": frame["id"], "fault": "clone: no"}, "could not start the program: clone: no"),
        (lambda frame: b"not json", "is no JSON"),
    ],
)
async def test_a_reply_that_is_not_the_expected_one_costs_the_slot(reply, sentence):
    slot = Slot(ScriptedWire(reply), max_jobs=9, max_age_s=9)
    with pytest.raises(SandboxLost, match=sentence):
        await slot.run(Program(""), stdin="", limits=SHORT)
    assert slot.is_spent


async def test_a_closed_stream_is_a_lost_sandbox_with_its_last_words():
    slot = Slot(ScriptedWire(), max_jobs=9, max_age_s=9)
    with pytest.raises(SandboxLost, match=r"it is gone \(closed\); its last words: Killed"):
        await slot.run(Program(""), stdin="", limits=SHORT)


async def test_a_container_for_one_program_that_ran_out_of_memory_is_that_programs_doing():
    alone, shared = (Slot(ScriptedWire(), max_jobs=number, max_age_s=9) for number in (1, 2))
    execution = await alone.run(Program(""), stdin="", limits=SHORT)
    assert (execution.ending, execution.reason) == (Ending.MEMORY, "the slot's memory was used up")
    assert alone.is_spent
    with pytest.raises(SandboxLost):
        await shared.run(Program(""), stdin="", limits=SHORT)
    with pytest.raises(SandboxLost):
        await Slot(ScriptedWire(), max_jobs=1, max_age_s=9).ping()


async def test_every_request_has_an_id_that_cannot_be_guessed():
    seen = []

    def reply(frame):
        seen.append(frame["id"])
        return {"id": frame["id"], "pong": {"healthy": True}}

    slot = Slot(ScriptedWire(reply, reply), max_jobs=9, max_age_s=9)
    await slot.ping()
    await slot.ping()
    assert len(set(seen)) == 2
    assert all(len(bytes.fromhex(request_id)) == 16 for request_id in seen)


async def test_nothing_is_left_of_a_closed_slot():
    wire = await JailHost(TRUSTED, walled=False).start("test")
    slot = await start(wire, max_jobs=9, max_age_s=9)
    folder, pid = wire._folder, wire._process.pid
    assert folder is not None
    await slot.close()
    assert not os.path.exists(folder)
    assert not os.path.exists(f"/proc/{pid}")


async def test_the_next_start_removes_what_a_killed_owner_left_and_nothing_of_the_living(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    wire = await JailHost(TRUSTED, walled=False).start("test")
    (living,) = tmp_path.iterdir()
    where, pid, ticks, _ = living.name.removeprefix("grpo-trusted-").split("-")
    owner = Owner.current()
    assert (int(pid), int(ticks)) == (owner.pid, owner.start_ticks)
    dead = tmp_path / f"grpo-trusted-{where}-{pid}-{int(ticks) - 1}-abc"
    foreign = tmp_path / f"grpo-trusted-{'0' * 8}-{pid}-{int(ticks) - 1}-abc"  # of another boot, or another space of process ids
    unknown = tmp_path / "grpo-trusted-abc"
    for folder in (dead, foreign, unknown):
        (folder / "work").mkdir(parents=True)
    JailHost(TRUSTED, walled=True)
    assert dead.exists()
    JailHost(TRUSTED, walled=False)
    assert set(tmp_path.iterdir()) == {living, foreign, unknown}
    await wire.close()
    assert not living.exists()
