"""The admission test finds what it is there to find, and the table in the package is what it finds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verifiers import reasoning_gym_admission
from verifiers.deadline import WorkerPool
from verifiers.errors import InvalidReference, VerifierError
from verifiers.reasoning_gym import ReasoningGym
from verifiers.reasoning_gym_admission import admission, admit_all, make_pool, table
from verifiers.reasoning_gym_comparison import CHECKS, DISTRUSTED, OURS, is_also_right, is_right, says
from verifiers.reasoning_gym_neighbours import means_the_same, neighbours

# A child like the real one, with datasets of our own whose scorers do what they should not.
CHILD = """
import itertools, os, random, time
from verifiers.reasoning_gym_child import *
from verifiers import reasoning_gym_child as child

class Dataset:
    def __init__(self, score): self.score_answer = score
    def __len__(self): return 3
    def __getitem__(self, index): return {"question": "?", "answer": str(12 + index), "metadata": {}}

def swallow(answer, entry):
    try:
        return float(eval(answer) == eval(entry["answer"]))
    except:
        return 0.0

def exact(answer, entry): return float(answer == entry["answer"])

SCORERS = {
    "exact": exact,
    "evaluates": lambda answer, entry: float(eval(answer) == int(entry["answer"])),
    "evaluates and swallows": swallow,
    "shell": lambda answer, entry: float(os.system("test " + answer + " = " + entry["answer"]) == 0),
    "opens": lambda answer, entry: exact(answer, entry) if answer == entry["answer"] else len(open(answer).read()) * 0.0,
    "contains": lambda answer, entry: float(entry["answer"] in answer),
    "tolerant": lambda answer, entry: float(answer in ("12", "13", "14", "15")),
    "harsh": lambda answer, entry: 0.5,
    "not a number": lambda answer, entry: exact(answer, entry) or float("nan"),
    "a text": lambda answer, entry: exact(answer, entry) or "no",
    "raises": lambda answer, entry: exact(answer, entry) or 1 / len(answer.strip("[]")) * 0,
    "never ends": lambda answer, entry: exact(answer, entry) or (any(False for _ in itertools.count()) if answer == "{}" else 0.0),
    "throws dice": lambda answer, entry: exact(answer, entry) or random.random() / 2,
    "above one": lambda answer, entry: 1.0 if exact(answer, entry) else 1.5 * answer.startswith(entry["answer"]),
}

def setup(_):
    child._guard = Guard()

child._made = lambda name, options: Dataset(SCORERS[name])
"""

FOUND = {
    "exact": "",
    "evaluates": "its scorer evaluates texts as Python",
    "evaluates and swallows": "its scorer evaluates texts as Python",
    "shell": "os.system",
    "opens": ": open",
    "contains": "gets 1, where '12' is asked for",
    "tolerant": "(a digit changed) gets 1, where '12' is asked for",
    "harsh": "its own reference '12' gets 0.5",
    "not a number": "gets no finite number",
    "a text": "gets no finite number",
    "raises": "makes its scorer raise ZeroDivisionError",
    "never ends": "scoring garbage was stopped: it takes longer than 0.5 s",
    "throws dice": "another process scores garbage otherwise",
    "above one": "gets 1.5",
}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WorkerPool, WorkerPool]]:
    program = tmp_path_factory.mktemp("child") / "child.py"
    program.write_text(CHILD)
    both = tuple(WorkerPool(program, setup=True, size=1, deadline_s=0.5) for _ in range(2))
    yield both  # type: ignore[misc]  # two of them
    for pool in both:
        asyncio.run(pool.close())


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = make_pool(1)
    yield pool
    asyncio.run(pool.close())


@pytest.mark.parametrize("name", FOUND)
def test_what_a_scorer_does_wrong_is_found(pools: tuple[WorkerPool, WorkerPool], name: str):
    first, second = pools
    found = admission(first, name, seeds=(1,), second=second)
    assert found.judge == ("scorer" if name == "exact" else "nobody")
    assert FOUND[name] in found.reason
    assert not reasoning_gym_admission.TOUCHED.exists()


def test_no_program_runs_and_no_process_dies_when_an_answer_is_evaluated(pools: tuple[WorkerPool, WorkerPool], tmp_path: Path):
    first, _ = pools
    touched = tmp_path / "touched"
    answers = [f"open({str(touched)!r}, 'w')", f"__import__('os').system('touch {touched}')", "__import__('os')._exit(3)"]
    question = {"ask": "scores", "options": {}, "entry": {"answer": "1", "metadata": {}}, "answers": answers}
    first.ask_and_wait(question | {"dataset": "exact"})
    pids = first.pids()
    for name in ("evaluates", "evaluates and swallows"):
        assert first.ask_and_wait(question | {"dataset": name}) == [{"refused": "compile"}] * 3
    assert not touched.exists()
    assert first.pids() == pids


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reasoning_gym_admission, "installed_version", lambda: "9.9.9")
    table.cache_clear()
    try:
        with pytest.raises(VerifierError, match=r"reasoning-gym 9\.9\.9 is installed, but .* tried with 0\.1\.25.*--admit"):
            table()
        with pytest.raises(InvalidReference, match=r"Install reasoning-gym==0\.1\.25"):
            ReasoningGym().prepare({"dataset": "chain_sum", "answer": "1", "metadata": {}})
    finally:
        table.cache_clear()


def test_neighbours_say_something_else_and_are_the_same_every_time():
    tried = list(neighbours("3.50, 7", ["1, 2"], seed=0))
    assert tried == list(neighbours("3.50, 7", ["1, 2"], seed=0))
    assert not any(means_the_same(neighbour.text, "3.50, 7") for neighbour in tried)
    assert {"4.50, 7", "3.50, -7", "3.50, NaN", "7, 3.50", "3.50", "1, 2", "3.50, 7 or 1, 2", "3.50, 7.001"} <= {
        n.text for n in tried
    }


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Yes ", "yes", True),
        ("1.50", "3/2", True),
        ("[1, 2]", "[1,2]", True),
        ("1.5", "1.6", False),
        ("[1, 2]", "[2, 1]", False),
        ("1/0", "1/0", True),
        ("1/0", "2/0", False),
    ],
)
def test_what_means_the_same_is_no_neighbour(one: str, other: str, same: bool):
    assert means_the_same(one, other) is same


HANOI = {"num_disks": 2, "num_pegs": 3, "start_peg": 1, "target_peg": 3, "solution_length": 3}
SWAP = {"pieces": {"A": "w", "B": "B", "C": None}, "board": {"A": ["C"], "B": ["A"], "C": ["B"]}, "start_turn": "w"}
PEOPLE = {"names": ["Ann", "Bob"], "knight_knave_terms": {"knight": "hero", "knave": "villain"}}


@pytest.mark.parametrize(
    ("name", "metadata", "answer", "right", "wrong"),
    [
        ("group_anagrams", {}, '[["a", "b"], ["c"]]', ['[["c"], ["b", "a"]]'], ['[["a"], ["b", "c"]]', '[["a", "b"]]', "x", "1"]),
        ("palindrome_partitioning", {}, '[["a", "b"], ["ab"]]', ['[["ab"], ["a", "b"]]'], ['[["b", "a"], ["ab"]]', "[]"]),
        (
            "knights_knaves",
            PEOPLE,
            "Ann is a hero, and Bob is a villain.",
            ["Bob is a villain. Ann is a hero"],
            [
                "Ann is a villain, and Bob is a hero.",
                "Ann is a hero.",
                "Ann is a hero, Bob is a hero, Bob is a villain",
                "Ann is not a hero, and Bob is not a villain.",
                "Ann is a hero villain, and Bob is a villain hero.",
                "Ann is a hero, and Bob is a villain, or not",
                "x Ann is a hero, and Bob is a villain",
            ],
        ),
        (
            "shortest_path",
            {"matrix": [["*", "O"], ["O", "#"]]},
            "right down",
            ["down right"],
            ["right", "up right", "right down right left", "left down", "in"],
        ),
        (
            "tower_of_hanoi",
            HANOI,
            "",
            ["disk 1 from 1 to 2\ndisk 2 from 1 to 3\ndisk 1 from 2 to 3"],
            ["disk 2 from 1 to 3", "disk 1 from 1 to 3\ndisk 2 from 1 to 3", "disk 1 from 1 to 3", ""],
        ),
        (
            "knight_swap",
            SWAP | {"solution": [1, 2, 3]},
            "",
            ['["w,A,C", "B,B,A", "w,C,B"]'],
            ['["w,A,C", "w,C,B"]', '["w,A,B"]', '["B,B,A"]', "[]", "No"],
        ),
        ("n_queens", {"valid_answers": ["Q _\n_ Q", "_ Q\nQ _"]}, "Q _\n_ Q", ["_ Q\nQ _ "], ["Q Q\n_ _", "", "_ Q Q _"]),
        (
            "kakurasu",
            {"n_rows": 2, "n_cols": 2, "row_sums": [1, 2], "col_sums": [1, 2]},
            "1 0\n0 1",
            ["1 0\n0 1\n"],
            ["-1 0\n0 1", "0 1\n1 0", "1 0", "1 0\n0 1\n0 0", "x"],
        ),
        (
            "number_sorting",
            {},
            "['-1.0', '2']",
            ['["-1", "2.0"]', "[-1, 2]"],
            ["['2', '-1.0']", "[NaN, 2]", "[-1.5, 2]", "[-1]", "{}"],
        ),
        ("prime_factorization", {}, "2 \u00d7 3", ["3 \u00d7 2"], ["6", "2 \u00d7 3 \u00d7 1", "2 3", "2 \u00d7 \u00d7 3"]),
        ("word_sorting", {}, "a, b, c", ["a,b,c"], ["a, b, c, d", "a, c, b", "a b c", "a, b"]),
        ("power_function", {}, "1234.5", ["1.23e3", "1230"], ["1.24e3", "-1234.5", "NaN", "x"]),
    ],
)
def test_several_right_answers_are_told_from_wrong_ones(
    name: str, metadata: dict[str, Any], answer: str, right: list[str], wrong: list[str]
):
    entry = {"answer": answer, "metadata": metadata}
    assert [text for text in right if not is_also_right(name, entry, text)] == []
    assert [text for text in wrong if is_also_right(name, entry, text)] == []


def test_only_reviewed_datasets_have_several_right_answers():
    assert not is_also_right("chain_sum", {"answer": "1", "metadata": {}}, "1")
    assert set(CHECKS) | OURS <= set(table())
    assert all(table()[name].judge != "scorer" and table()[name].reason == fault for name, fault in DISTRUSTED.items())


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        (
            "-2169",
            ["-2169.0", "-2,169", " -2169 ", "-2169.", "-4338/2"],
            ["2169", "-21,69", "-2 169", "-2169 or 1", "-2_169", "--2169", ""],
        ),
        ("1 2\n3 4", ["1  2 \n 3 4\n"], ["1 2 3 4", "12\n3 4", "1 2\n34", "1 2\n3 4\n5", "[[1,2],[3,4]]"]),
        (
            "[[0, 1], [1, 0]]",
            ["[[0,1],[1,0]]"],
            ["[[0,1],[1,0],[1,0]]", "[[0,1],[1,0,0]]", "[[false,true],[true,false]]", "[" * 20_000],
        ),
        ("True", [], ["true", "1", "False", "True True"]),
    ],
)
def test_our_own_comparison_knows_other_spellings_and_nothing_else(reference: str, right: list[str], wrong: list[str]):
    assert [text for text in right if not says(text, reference)] == []
    assert [text for text in wrong if says(text, reference)] == []


def test_where_a_scorer_fails_our_own_comparison_may_judge(pools: tuple[WorkerPool, WorkerPool], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reasoning_gym_admission, "OURS", {"contains"})
    found = admission(pools[0], "contains", seeds=(1,))
    assert found.judge == "comparison"
    assert "gets 1, where '12' is asked for" in found.reason
    monkeypatch.setattr(reasoning_gym_admission, "is_right", lambda name, entry, text: True)
    assert "and our own comparison: " in admission(pools[0], "contains", seeds=(1,)).reason
    assert is_right("contains", {"answer": "12", "metadata": {}}, "12.0")


@pytest.mark.parametrize("name", ["gcd", "knights_knaves", "shortest_path", "complex_arithmetic", "binary_matrix"])
def test_a_sample_of_the_table_is_found_again(pool: WorkerPool, name: str):
    assert admission(pool, name) == table()[name]


def test_the_table_says_why_each_other_dataset_is_not_safe():
    assert sum(found.is_safe for found in table().values()) >= 50
    assert all(found.judge == "scorer" or found.reason for found in table().values())
    stored = json.loads(reasoning_gym_admission.TABLE.read_text())
    assert (stored["seeds"], stored["tasks_per_seed"]) == (list(reasoning_gym_admission.SEEDS), 8)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_table_is_found_again():
    found, stored = dict(admit_all()), dict(table())
    assert {name: admission.judge for name, admission in found.items()} == {name: kept.judge for name, kept in stored.items()}
    # What is made by the order of a set differs from process to process, and so may the first fault that is found in it.
    fixed = [name for name, admission in stored.items() if "another process makes other tasks" not in admission.reason]
    assert {name: found[name] for name in fixed} == {name: stored[name] for name in fixed}
