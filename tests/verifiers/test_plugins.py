"""Plugins do wrong in every way they can; only their own checks notice, and the fault says whose it is."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from verifiers import registry
from verifiers.errors import InvalidReference
from verifiers.registry import entries, find, load_plugins
from verifiers.reward import RewardMix
from verifiers.service import Text, VerifierService
from verifiers.types import Outcome, Task

RULES = """
import os, sys, time
from verifiers.errors import InvalidReference
from verifiers.registry import rule, verifier
from verifiers.types import Score, correct, partial, wrong

@rule("wild", deadline_s=1.0)
def wild(task, text, *, num_tokens: int | None, limit: int = 3):
    "Does what the text says."
    if text == "raise": raise ValueError("no idea")
    if text == "exit": sys.exit(3)
    if text == "end": os._exit(4)
    if text == "sleep": time.sleep(1000)
    if text == "loop":
        while True: pass
    if text == "print":
        for _ in range(1000): print("x" * 2**20)
    if text == "print a little": print("\\ud800 fine")
    if text == "fork": os.fork()
    if text == "fork for ever":
        while True: os.fork()
    if text == "memory": return len("x" * 2**40)
    if text == "depth": return wild(task, text, num_tokens=num_tokens)
    if text == "close": os.closerange(0, 100)
    if text == "NaN": return partial(float("nan"), "")
    if text == "1.5": return partial(1.5, "")
    if text == "string": return "correct"
    if text == "None": return None
    if text == "number": return 1.0
    if text == "reason": return correct(object())
    return correct(f"{task.prompt} {task.reference} {num_tokens} {limit} {os.getpid()}", text)

@verifier("picky")
class Picky:
    def __init__(self, *, only: str, workers: int):
        self.only = only
    def prepare(self, reference):
        if reference != self.only: raise InvalidReference(f"{reference!r} is not {self.only}")
    def example(self, reference): return "say " + reference
    async def score(self, task, text, *, num_tokens=None):
        return correct("") if self.only in text else wrong("")
    async def close(self): ...

@verifier("near", apart=False)
class Near:
    def prepare(self, reference): ...
    async def score(self, task, text, *, num_tokens=None): return correct(str(os.getpid()))
    async def close(self): ...
"""


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    entries()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "wild_rules.py"
    path.write_text(RULES)
    return path


def service(plugin: Path, workers: int = 2, **components: dict[str, Any]) -> VerifierService:
    return VerifierService({"mine": RewardMix.model_validate(components)}, plugins=[str(plugin)], workers=workers)


TASK = Task("t7", "6 * 7?", {"answer": [42, None]}, "mine")

WRONGDOINGS = [
    ("raise", "ValueError: no idea"),
    ("exit", "SystemExit: 3"),
    ("end", "exit status 4"),
    ("sleep", "longer than 1 s"),
    ("loop", "longer than 1 s"),
    ("print", "File too large"),
    ("fork", "may not fork"),
    ("fork for ever", "may not fork"),
    ("memory", "memory"),
    ("depth", "depth"),
    ("close", ""),
    ("NaN", "cannot have the value nan"),
    ("1.5", "cannot have the value 1.5"),
    ("string", "returned str instead of a Score"),
    ("None", "returned NoneType"),
    ("number", "returned float"),
]


QUICK = {"raise", "end", "fork", "NaN", "string"}  # one of each kind; every one starts workers, and the others are slow together


@pytest.mark.parametrize(
    ("wrongdoing", "cause"),
    [pytest.param(*each, marks=() if each[0] in QUICK else pytest.mark.slow) for each in WRONGDOINGS],
)
async def test_what_a_plugin_does_wrong_is_infra_with_its_name_and_the_rest_is_judged(
    plugin: Path, wrongdoing: str, cause: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.CRITICAL)
    made = service(plugin, wild={}, math={"weight": 0.0})
    texts = [Text(text, 5) for text in ("fine", wrongdoing, "good")]
    fine, bad, good = await made.judge(TASK_OF_MATH, texts)
    assert (bad.reward, bad.scores[0].outcome) == (None, Outcome.INFRA)
    assert cause in str(bad.cause)
    assert str(plugin) in str(bad.cause)
    assert (fine.reward, good.reward) == (1.0, 1.0)
    await made.close()


TASK_OF_MATH = Task("t7", "6 * 7?", "42", "mine")


async def test_a_rule_of_a_plugin_sees_the_task_its_options_and_the_number_of_tokens(plugin: Path):
    made = service(plugin, wild={"options": {"limit": 5}})
    (verdict,) = await made.judge(TASK, [Text("\ud800\x00", 9)])
    reason, pid = verdict.scores[0].reason.rsplit(" ", 1)
    assert reason == "6 * 7? {'answer': [42, None]} 9 5"
    assert int(pid) != os.getpid()
    assert verdict.scores[0].extracted == "\ud800\x00"
    (printed,) = await made.judge(TASK, [Text("print a little", None)])
    assert printed.reward == 1.0
    await made.close()


async def test_an_endless_plugin_holds_up_nothing_else(plugin: Path):
    made = service(plugin, workers=1, wild={})
    stuck = asyncio.create_task(made.judge(TASK, [Text("loop", None)]))
    await asyncio.sleep(0.1)
    started = time.perf_counter()
    (verdict,) = await made.judge(Task("m", "", "42", "math"), [Text(r"\boxed{42}", None)])
    assert verdict.reward == 1.0
    assert time.perf_counter() - started < 0.1
    assert (await stuck)[0].reward is None
    await made.close()


@pytest.mark.slow
async def test_waiting_for_an_endless_neighbour_is_not_charged(plugin: Path):
    made = service(plugin, workers=1, wild={})
    made._deadline_s = 6.0  # two endless scores take 4 s of the only worker, each of them 2
    verdicts = await made.judge(TASK, [Text(text, None) for text in ("sleep", "loop", "fine", "good")])
    assert [verdict.reward for verdict in verdicts] == [None, None, 1.0, 1.0]
    await made.close()


async def test_a_class_of_a_plugin_runs_apart_and_refuses_references_there(plugin: Path):
    made = service(plugin, picky={"options": {"only": "yes"}})
    task = Task("t", "", "yes", "mine")
    await made.prepare([task])
    with pytest.raises(InvalidReference, match="task t9: picky: 'no' is not yes"):
        await made.prepare([Task("t9", "", "no", "mine")])
    right, wrong = await made.judge(task, [Text("say yes", None), Text("say no", None)])
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    verifier: Any = made.verifiers_of("mine")["picky"]
    assert await asyncio.to_thread(verifier.example, "yes") == "say yes"
    await made.close()


async def test_a_class_that_says_so_runs_where_the_service_runs(plugin: Path):
    made = service(plugin, near={})
    (verdict,) = await made.judge(TASK, [Text("", None)])
    assert verdict.scores[0].reason == str(os.getpid())
    await made.close()


def test_what_is_registered_without_a_plugin_runs_here_and_so_do_built_ins(plugin: Path):
    load_plugins([str(plugin)])

    @registry.rule("from this process")
    def here(task: Task, text: str) -> None: ...

    assert {name: find(name).runs_apart for name in ("wild", "picky", "near", "math", "length", "from this process")} == {
        "wild": True,
        "picky": True,
        "near": False,
        "math": False,
        "length": False,
        "from this process": False,
    }


async def test_a_plugin_given_by_a_relative_path_is_found_by_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lab_helper.py").write_text("WORD = 'please'\n")
    (tmp_path / "lab_rules.py").write_text(
        "from lab_helper import WORD\nfrom verifiers.registry import rule\nfrom verifiers.types import correct, wrong\n"
        "@rule('lab_polite')\ndef polite(task, text):\n    return correct('') if WORD in text else wrong('')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for spelled in ("lab_rules.py:lab_polite", "lab_rules"):
        monkeypatch.setattr(registry, "_entries", {name: e for name, e in registry._entries.items() if name != "lab_polite"})
        made = service(Path(spelled), lab_polite={})
        polite, rude = await made.judge(TASK, [Text("please", None), Text("now", None)])
        assert (polite.reward, rude.reward) == (1.0, 0.0)
        await made.close()
