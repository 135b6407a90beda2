"""Datasets with several right answers: our own check of each, by which the admission test tells those from wrong ones.

Only the admission test asks here. Judging completions is left to reasoning-gym's scorers; whether they agree is what is tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

Entry = dict[str, Any]

STEPS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}


def is_also_right(name: str, entry: Entry, answer: str) -> bool:
    """Whether an answer that differs from the reference is right too. False for a dataset that has one right answer."""
    check = CHECKS.get(name)
    try:
        return check is not None and check(entry, answer)
    except (ValueError, TypeError, KeyError, IndexError, InvalidOperation):
        return False


def same_groups(entry: Entry, answer: str) -> bool:
    """Groups of words, in any order, each in any order."""
    return _groups(answer) == _groups(entry["answer"])


def same_partitions(entry: Entry, answer: str) -> bool:
    """A set of partitions: their order and how often one is named do not matter, the order inside one does."""
    return set(map(tuple, json.loads(answer))) == set(map(tuple, json.loads(entry["answer"])))


def same_roles(entry: Entry, answer: str) -> bool:
    """Who is what, in any order, whatever the words between."""
    return _roles(entry, answer) == _roles(entry, entry["answer"])


def as_short_a_path(entry: Entry, answer: str) -> bool:
    """Leads from * to # without leaving the grid or entering an X, and is no longer than the reference."""
    grid, moves = entry["metadata"]["matrix"], answer.split()
    (row, column), goal = _cell(grid, "*"), _cell(grid, "#")
    for move in moves:
        row, column = row + STEPS[move][0], column + STEPS[move][1]
        if row < 0 or column < 0 or grid[row][column] == "X":
            return False
    return (row, column) == goal and len(moves) == len(entry["answer"].split())


def as_few_moves(entry: Entry, answer: str) -> bool:
    """Every disk moves from the top of one peg onto nothing smaller; all end on the target peg, in no more moves than needed."""
    asked = entry["metadata"]
    pegs: dict[int, list[int]] = {peg: [] for peg in range(1, asked["num_pegs"] + 1)}
    pegs[asked["start_peg"]] = list(range(asked["num_disks"], 0, -1))
    moves = [tuple(map(int, re.findall(r"\d+", line))) for line in answer.splitlines()]
    for disk, source, target in moves:
        if pegs[source].pop() != disk or (pegs[target] and pegs[target][-1] < disk):
            return False
        pegs[target].append(disk)
    return len(pegs[asked["target_peg"]]) == asked["num_disks"] and len(moves) <= asked["solution_length"]


def knights_swapped(entry: Entry, answer: str) -> bool:
    """The colours take turns, each knight goes where the board lets it and nobody stands; in the end they have changed places."""
    asked = entry["metadata"]
    stands, turn = dict(asked["pieces"]), asked["start_turn"]
    moves = [move.split(",") for move in json.loads(answer)]
    for color, start, end in moves:
        if color != turn or stands[start] != color or stands[end] is not None or end not in asked["board"][start]:
            return False
        stands[start], stands[end], turn = None, color, "B" if turn == "w" else "w"
    other = {"w": "B", "B": "w", None: None}
    return stands == {cell: other[piece] for cell, piece in asked["pieces"].items()} and len(moves) <= len(asked["solution"])


def three_digits(entry: Entry, answer: str) -> bool:
    """The same number to three significant digits, which is what the question asks for."""
    return f"{Decimal(answer):.2e}" == f"{Decimal(entry['answer']):.2e}"


CHECKS: dict[str, Callable[[Entry, str], bool]] = {
    "group_anagrams": same_groups,
    "knight_swap": knights_swapped,
    "knights_knaves": same_roles,
    "palindrome_partitioning": same_partitions,
    "power_function": three_digits,
    "shortest_path": as_short_a_path,
    "tower_of_hanoi": as_few_moves,
}


def _groups(answer: str) -> list[list[str]]:
    return sorted(sorted(group) for group in json.loads(answer))


def _roles(entry: Entry, answer: str) -> set[tuple[str | None, str]]:
    names = {name.lower() for name in entry["metadata"]["names"]}
    terms = entry["metadata"]["knight_knave_terms"]
    roles, current = set(), None
    for word in re.findall(r"\w+", answer.lower()):
        if word in names:
            current = word
        elif word in (terms["knight"], terms["knave"]):
            roles.add((current, word))
    return roles


def _cell(grid: list[list[str]], mark: str) -> tuple[int, int]:
    return next((r, row.index(mark)) for r, row in enumerate(grid) if mark in row)
