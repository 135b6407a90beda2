"""A first rule and its test, for somebody to change."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import NamedTuple

from sandbox.errors import UserError
from verifiers.registry import entries

RULE = '''"""The rule `{name}`. Name this file under `plugins` in a config, and the rule in a reward mix."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from verifiers.audit_samples import sample
from verifiers.extract import final_region
from verifiers.registry import rule
from verifiers.types import Score, Task, correct, wrong


@rule("{name}")
def {name}(
    task: Task,
    text: str,
    *,
    max_words: Annotated[int, Field(ge=1, description="More words than this, after the reasoning, are too many.")] = 50,
) -> Score:
    """Whether the answer, without its reasoning, has at most max_words words."""
    words = len(final_region(text).split())
    told = f"{{words}} words, at most {{max_words}} allowed"
    return correct(told) if words <= max_words else wrong(told)


# `grpo audit {name} --plugin {name}.py` tries these, and much besides.
sample("{name}", options={{"max_words": 3}}, right=["two words", "<think>as many as you like</think>"], wrong=["now it is four"])
'''

TEST = '''"""The rule `{name}` judges as it says. Run: pytest test_{name}.py"""

from pathlib import Path

import pytest
from {name} import {name}

from verifiers.audit import audit
from verifiers.registry import load_plugins
from verifiers.types import Outcome, Task

TASK = Task(id="1", prompt="Name two colours.", reference=None, rewards="mine")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("red and green", Outcome.CORRECT),
        ("red, green and blue", Outcome.WRONG),
        ("<think>there are so many of them</think> red", Outcome.CORRECT),
        ("", Outcome.CORRECT),
    ],
)
def test_an_answer_may_have_three_words(text, outcome):
    assert {name}(TASK, text, max_words=3).outcome is outcome


def test_the_rule_passes_its_audit():
    load_plugins([str(Path(__file__).with_name("{name}.py"))])
    assert [finding for finding in audit("{name}") if finding.passed is False] == []
'''


class Scaffold(NamedTuple):
    """The two files that were written."""

    rule: Path
    test: Path


def write_scaffold(name: str, folder: Path) -> Scaffold:
    """Write NAME.py and test_NAME.py. Raises UserError for a name that cannot be one, or is taken, and overwrites nothing."""
    if not name.isidentifier() or keyword.iskeyword(name) or not name.isascii():
        raise UserError(
            f"{name!r} cannot be the name of a rule and of a file. Use letters, digits and underscores, as in few_words."
        )
    taken = {entry.name: entry.origin for entry in entries()}
    if name in taken:
        raise UserError(f"there is a verifier {name} already: {taken[name]}. Use another name.")
    files = Scaffold(folder / f"{name}.py", folder / f"test_{name}.py")
    for path in files:
        if path.exists():
            raise UserError(f"{path} exists already. Use another name, or another folder with --folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.rule.write_text(RULE.format(name=name))
        files.test.write_text(TEST.format(name=name))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}.") from None
    return files
