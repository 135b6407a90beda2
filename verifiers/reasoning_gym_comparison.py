"""Our own comparison of an answer with a reference of reasoning-gym.

It judges the datasets whose scorers failed the admission test although one answer is right, or a short check tells which are. For
the others it says which neighbours of a reference are right too, so that the test blames no scorer for accepting them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

Entry = dict[str, Any]

STEPS = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}


def is_right(name: str, entry: Entry, answer: str) -> bool:
    """Whether an answer is the reference, spelled otherwise at most, or passes the check of its dataset. Raises nothing."""
    return says(answer, entry["answer"]) or is_also_right(name, entry, answer)


def is_also_right(name: str, entry: Entry, answer: str) -> bool:
    """Whether an answer passes the check of its dataset. False for a dataset that has none, because one answer is right."""
    check = CHECKS.get(name)
    try:
        return check is not None and check(entry, answer)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, InvalidOperation, RecursionError):
        return False


def says(answer: str, reference: str) -> bool:
    """Whether the lines hold the same words, or both are one number, or one JSON value."""
    if [line.split() for line in answer.strip().splitlines()] == [line.split() for line in reference.strip().splitlines()]:
        return True
    numbers = number(answer), number(reference)
    if None not in numbers:
        return numbers[0] == numbers[1]
    values = _dumped(answer), _dumped(reference)
    return None not in values and values[0] == values[1]


def number(text: str) -> Fraction | None:
    """An integer, decimal or fraction, with thousands separated by commas or not; None for anything else."""
    text = text.strip()
    if re.fullmatch(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", text):
        text = text.replace(",", "")
    if len(text) > 100 or not re.fullmatch(r"[-+]?(?:[0-9]+/[0-9]+|[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]{1,3})?|[0-9]+\.)", text):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def value(text: str) -> Any:
    """The JSON value of a text; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def same_groups(entry: Entry, answer: str) -> bool:
    """Groups of words, in any order, each in any order."""
    return _groups(answer) == _groups(entry["answer"])


def same_partitions(entry: Entry, answer: str) -> bool:
    """A set of partitions: their order and how often one is named do not matter, the order inside one does."""
    return set(map(tuple, json.loads(answer))) == set(map(tuple, json.loads(entry["answer"])))


def same_roles(entry: Entry, answer: str) -> bool:
    """Who is what, in any order: statements such as `Ann is a hero`, and nothing else."""
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


def same_list(entry: Entry, answer: str) -> bool:
    """Words between commas, in order."""
    return _listed(answer) == _listed(entry["answer"])


def same_numbers(entry: Entry, answer: str) -> bool:
    """A list of numbers in order, each in quotes of either kind or in none, equal to the last digit."""
    numbers = [number(str(each)) for each in json.loads(answer.replace("'", '"'))]
    return None not in numbers and numbers == [number(each) for each in json.loads(entry["answer"].replace("'", '"'))]


def same_product(entry: Entry, answer: str) -> bool:
    """The same factors, in any order, with the sign that the question asks for."""
    factors, known = (sorted(map(str.strip, text.split("\u00d7"))) for text in (answer, entry["answer"]))
    return factors == known


def a_solved_board(entry: Entry, answer: str) -> bool:
    """One of the boards that solve it, which the entry lists."""
    return any(says(answer, board) for board in entry["metadata"]["valid_answers"])


def sums_fit(entry: Entry, answer: str) -> bool:
    """A grid of 0 and 1 whose rows and columns have the weighted sums that are asked for."""
    asked, grid = entry["metadata"], [line.split() for line in answer.strip().splitlines()]
    if len(grid) != asked["n_rows"] or any(len(row) != asked["n_cols"] or not set(row) <= {"0", "1"} for row in grid):
        return False
    return [_weighted(row) for row in grid] == asked["row_sums"] and [
        _weighted(column) for column in zip(*grid, strict=True)
    ] == asked["col_sums"]


CHECKS: dict[str, Callable[[Entry, str], bool]] = {
    "group_anagrams": same_groups,
    "kakurasu": sums_fit,
    "knight_swap": knights_swapped,
    "knights_knaves": same_roles,
    "n_queens": a_solved_board,
    "number_sorting": same_numbers,
    "palindrome_partitioning": same_partitions,
    "power_function": three_digits,
    "prime_factorization": same_product,
    "shortest_path": as_short_a_path,
    "tower_of_hanoi": as_few_moves,
    "word_sorting": same_list,
}

# What was found against scorers by more tasks than the test takes.
DISTRUSTED = {"codeio": "its scorer gives full marks to a number whose seventeenth digit is wrong"}

# Judged here if the scorer fails the test: `is_right` knows all right answers in the form that the question asks for.
OURS = frozenset(
    {
        "binary_matrix",
        "bitwise_arithmetic",
        "calendar_arithmetic",
        "chain_sum",
        "codeio",
        "coin_flip",
        "game_of_life",
        "game_of_life_halting",
        "gsm_symbolic",
        "kakurasu",
        "knights_knaves",
        "letter_jumble",
        "n_queens",
        "number_format",
        "number_sorting",
        "prime_factorization",
        "products",
        "spell_backward",
        "spiral_matrix",
        "string_insertion",
        "survo",
        "time_intervals",
        "word_sorting",
    }
)


def _dumped(text: str) -> str | None:
    """A JSON value spelled in one way, in which true is not 1."""
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except (ValueError, RecursionError):
        return None


def _listed(answer: str) -> list[str]:
    return [word.strip() for word in answer.split(",")]


def _weighted(cells: Sequence[str]) -> int:
    return sum(place for place, cell in enumerate(cells, 1) if cell == "1")


def _groups(answer: str) -> list[list[str]]:
    return sorted(sorted(group) for group in json.loads(answer))


def _roles(entry: Entry, answer: str) -> set[tuple[str, str]]:
    """Names and roles. Raises ValueError, or IndexError, for an answer that holds any other words."""
    names = {name.lower() for name in entry["metadata"]["names"]}
    terms = entry["metadata"]["knight_knave_terms"]
    words = [word for word in re.findall(r"\w+|[^\w\s,.]", answer.lower()) if word not in ("and", "a", "an")]
    roles = set()
    for index in range(0, len(words), 3):
        name, verb, role = words[index : index + 3]
        if name not in names or verb != "is" or role not in (terms["knight"], terms["knave"]):
            raise ValueError(f"{name} {verb} {role} says nothing about who is what")
        roles.add((name, role))
    return roles


def _cell(grid: list[list[str]], mark: str) -> tuple[int, int]:
    return next((r, row.index(mark)) for r, row in enumerate(grid) if mark in row)
