"""Programs that are asked questions, and answer out of turn, too much, too late, or not at all."""

from dataclasses import dataclass

from sandbox.types import Ending, Limits
from tests.sandbox.attacks.attack import LIMITS, WAITS

PROTOCOL, WALL, CPU, OUTPUT, MEMORY = Ending.PROTOCOL, Ending.WALL_TIME, Ending.CPU_TIME, Ending.OUTPUT, Ending.MEMORY
EXITED, KILLED, DISMISSED = Ending.EXITED, Ending.KILLED, Ending.DISMISSED
ANSWER = '["Returned",42]'


@dataclass(frozen=True, slots=True)
class SessionAttack:
    """A program whose `f` is asked three times, with a pause after each answer, how it may have ended after that, and how many
    answers may have come."""

    name: str
    program: str
    endings: frozenset[Ending]
    answered: tuple[int, ...] = (0, 1, 2, 3)
    limits: Limits = LIMITS
    pause_s: float = 0.3


def ends(
    name: str,
    program: str,
    *endings: Ending,
    answered: tuple[int, ...] = (0, 1, 2, 3),
    limits: Limits = LIMITS,
    pause_s: float = 0.3,
) -> SessionAttack:
    beginning = f"import os, sys, threading, time\nANSWER = {ANSWER.encode()!r}\n"
    return SessionAttack(name, beginning + program, frozenset(endings), answered, limits, pause_s)


ATTACKS = [
    ends("it_answers_before_it_is_asked", "os.write(4, ANSWER + b'\\n')\ndef f(): return 1", PROTOCOL, answered=(0, 1)),
    ends("it_answers_twice", "def f():\n    os.write(4, ANSWER + b'\\n')\n    return 1", PROTOCOL, answered=(0, 1)),
    ends(
        "it_answers_again_while_nobody_asks",
        """
def later():
    time.sleep(0.1)
    os.write(4, ANSWER + b"\\n")
def f():
    threading.Thread(target=later).start()
    return 1
""",
        PROTOCOL,
        answered=(1,),
    ),
    ends("its_answer_never_ends", "def f():\n    while True: os.write(4, b'x' * 4096)", PROTOCOL, answered=(0,)),
    ends("its_answer_is_never_finished", "def f():\n    os.write(4, b'[')\n    time.sleep(60)", WALL, answered=(0,), limits=WAITS),
    ends(
        "its_answer_is_not_text",
        "def f():\n    os.write(4, bytes(range(128, 256)) + b'\\0\\r\\n')\n    time.sleep(60)",
        WALL,
        answered=(1,),
        limits=WAITS,
    ),
    ends("it_closes_the_channel", "def f(): os.close(4)", EXITED, WALL, KILLED, answered=(0,)),
    ends("it_closes_everything_and_loops", "def f():\n    os.closerange(0, 99)\n    while True: pass", CPU, WALL, answered=(0,)),
    ends("it_reads_the_next_question_itself", "def f(): return os.read(3, 1 << 20).decode()", WALL, answered=(0,), limits=WAITS),
    ends("it_never_reads", "time.sleep(60)", WALL, answered=(0,), limits=WAITS),
    ends("it_leaves_before_it_answers", "def f(): os._exit(0)", EXITED, answered=(0,)),
    ends(
        "it_leaves_after_it_has_answered",
        "def f():\n    os.write(4, ANSWER + b'\\n')\n    os._exit(0)",
        EXITED,
        answered=(1,),
    ),
    ends("it_leaves_while_it_is_read", "sys.exit('forged')\ndef f(): return 42", EXITED, answered=(0,)),
    ends("it_has_no_such_function", "g = 42", EXITED, answered=(0,)),
    ends(
        "it_is_no_function_but_a_value_that_answers",
        "class A:\n    def __call__(self): return 42\nf = A()",
        DISMISSED,
        answered=(3,),
    ),
    ends(
        "it_works_on_while_nobody_asks",
        """
def spin():
    while True: pass
def f():
    threading.Thread(target=spin, daemon=True).start()
    return 1
""",
        CPU,
        limits=LIMITS.model_copy(update={"cpu_s": 0.15}),
        pause_s=1.5,  # in which it gets that much of a busy machine
    ),
    ends(
        "it_loops_at_the_second_question",
        """
n = 0
def f():
    global n
    n += 1
    while n > 1: pass
    return n
""",
        CPU,
        answered=(1,),
    ),
    ends("it_floods_while_it_is_asked", "def f():\n    while True: print('x' * 9999)", OUTPUT, answered=(0,)),
    ends(
        "it_takes_all_memory_while_it_is_asked",
        "def f():\n    a = []\n    while True: a.append(bytearray(1 << 20))",
        *(DISMISSED, MEMORY, KILLED),
    ),
    ends(
        "a_child_answers_in_its_place",
        """
def f():
    if os.fork() == 0:
        os.write(4, ANSWER + b"\\n")
        os._exit(0)
    time.sleep(60)
""",
        WALL,
        answered=(1,),
        limits=WAITS,
    ),
    ends(
        "a_child_is_left_holding_the_channel",
        "def f():\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)",
        EXITED,
        answered=(0,),
    ),
    ends(
        "it_prints_its_answer_instead",
        "def f():\n    print(ANSWER.decode(), flush=True)\n    time.sleep(60)",
        WALL,
        answered=(0,),
        limits=WAITS,
    ),
    ends(
        "it_turns_the_encoder_inside_out",
        """
import builtins, json
json.JSONEncoder.encode = json.dumps = lambda *a, **k: '["Returned",42]'
builtins.isinstance = lambda *a: True
def f(): return object()
""",
        *(DISMISSED, EXITED, KILLED),
    ),
]
