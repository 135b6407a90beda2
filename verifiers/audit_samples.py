"""What each verifier should say: references and mutants of them, completions that deserve full marks, and completions that do not.

Those of the built-in verifiers stand here. A plugin adds its own with `sample`, beside its rule.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from verifiers.code_hacks import FORMS, in_block, right_programs, wrong_programs
from verifiers.countdown_hacks import NUMBERS, RIGHT, TARGET, countdown_hacks
from verifiers.judge_hacks import judge_hacks
from verifiers.math_hacks import math_hacks
from verifiers.reasoning_gym_neighbours import garbage, programs

if TYPE_CHECKING:
    from verifiers.registry import Entry


@dataclass(frozen=True, slots=True)
class Sample:
    """One reference under one set of options. `num_tokens` is the length that each completion is given."""

    reference: Any
    options: Mapping[str, Any]
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    num_tokens: int | None = None


_samples: dict[str, list[Sample]] = {}


def sample(
    name: str,
    *,
    reference: Any = None,
    options: Mapping[str, Any] | None = None,
    right: Iterable[str] = (),
    wrong: Iterable[str] = (),
    num_tokens: int | None = None,
) -> None:
    """Say what the verifier `name` should make of some completions. The same sample twice is one."""
    added = Sample(reference, dict(options or {}), tuple(right), tuple(wrong), num_tokens)
    known = _samples.setdefault(name, [])
    if added not in known:
        known.append(added)


def samples_of(name: str) -> tuple[Sample, ...]:
    """The samples of a verifier, in the order they were added."""
    return tuple(_samples.get(name, ()))


def missing_options(entry: Entry, given: Iterable[str] = ()) -> list[str]:
    """Options that a verifier needs and that none of its own samples states; none for a verifier without samples."""
    samples = samples_of(entry.name)
    stated = {*given, *itertools.chain.from_iterable(each.options for each in samples)}
    needed = [name for name, field in entry.options.model_fields.items() if field.is_required()]
    return [name for name in needed if name not in stated] if samples else []


def mutants(reference: Any) -> Iterator[str]:
    """References that differ from one: each digit changed, one more digit, another sign. None of what is no text or number."""
    if isinstance(reference, bool) or not isinstance(reference, (str, int, float)):
        return
    text = str(reference)
    for match in list(re.finditer(r"\d", text))[:8]:
        yield f"{text[: match.start()]}{(int(match[0]) + 1) % 10}{text[match.end() :]}"
    if text.isdigit():
        yield from (f"{text}7", f"-{text}", f"{text}.5", f"{text}0")


for _number in (2, 42, 1000):
    sample("math", reference=str(_number), right=[rf"<think>well</think> It is $\boxed{{{_number}}}$."], wrong=math_hacks(_number))
sample("math", reference="#### 72", right=[r"\boxed{72}", r"\boxed{72.0}"], wrong=[r"\boxed{73}", "72"])
sample(
    "math",
    reference=r"\frac{\sqrt{3}}{3}",
    right=[r"\boxed{\frac{1}{\sqrt{3}}}"],
    wrong=[r"\boxed{\frac{1}{3}}", r"\boxed{0.57735}"],
)
sample(
    "math", reference=r"\{1, 2\}", right=[r"\boxed{\{2, 1\}}"], wrong=[r"\boxed{(1, 2)}", r"\boxed{\{1\}}", r"\boxed{\{1, 2, 3\}}"]
)
sample("math", reference="[0, 1)", right=[r"\boxed{0 \leq x < 1}"], wrong=[r"\boxed{(0, 1)}", r"\boxed{[0, 1]}"])
sample("math", reference="42", options={"lenient": True}, right=["so it is 42"], wrong=["so it is 41", "42 or 43"])

sample(
    "format",
    options={"preset": "think_answer"},
    right=["<think>a</think><answer>b</answer>"],
    wrong=[
        "<answer>b</answer>",
        "<think>a</think>b",
        "<think><think>a</think><answer>b</answer>",
        "x<think>a</think><answer>b</answer>",
    ],
)
sample(
    "format", options={"preset": "think_boxed"}, right=[r"<think>a</think> \boxed{1}"], wrong=[r"\boxed{1}", r"<think>a</think>1"]
)
sample(
    "format", options={"preset": "boxed"}, right=[r"It is \boxed{1}."], wrong=[r"\boxed{1} or \boxed{2}", r"\boxed{1} more", "1"]
)
sample("format", options={"pattern": "[a-c]+"}, right=["abc"], wrong=["abcd", "xabc", "abc\n\n"])
sample("tags", options={"names": ["plan"]}, right=["<plan>a</plan>"], wrong=["<plan></plan>", "<plan>a", "</plan>a<plan>"])
sample("length", options={"max_tokens": 10, "buffer_tokens": 4}, right=["any"], num_tokens=6)
sample("length", options={"max_tokens": 10, "buffer_tokens": 4}, wrong=["any"], num_tokens=8)
sample("count", options={"unit": "words", "at_most": 2}, right=["two words", "<think>a b c</think>d"], wrong=["now three words"])
sample("repetition", options={"num_words": 2}, right=["no word stands here twice"], wrong=["so it is so it is so it is"])
sample(
    "instructions",
    reference={"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]},
    right=['"well then"'],
    wrong=['"well, then"', "well then", ""],
)

sample(
    "countdown",
    reference={"numbers": list(NUMBERS), "target": TARGET, "solution": RIGHT},
    right=[f"<answer>{RIGHT}</answer>", "<think>2*3*4?</think><answer>(1 + 3) \\times (4 + 2) = 24</answer>"],
    wrong=(f"<answer>{answer}</answer>" for answer in countdown_hacks()),
)
sample(
    "reasoning_gym",
    reference={"dataset": "decimal_chain_sum", "answer": "-4", "metadata": {}},
    right=["<answer>-4</answer>", "<think><answer>4</answer></think> It is <answer> -4.0 </answer>."],
    wrong=[
        *(f"<answer>{text}</answer>" for text in ("4", "-5", "-4 or 4", "-4.0001", "It is -4", "- 4", "", "<answer>-4", "NaN")),
        *(f"<answer>{text}</answer>" for text in (*programs("/tmp/audited"), *garbage())),
        "<answer>-4</answer> <answer>4</answer>",
        "<answer>-4",
        "-4",
        "\\boxed{-4}",
    ],
)

_INCREMENT = {"entry_point": "f", "cases": [{"args": [1], "expected": 2}, {"args": [5], "expected": 6}]}
_ALWAYS_EQUAL = "class E(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef f(x): return E(0)"
sample(
    "unit_tests",
    reference=_INCREMENT,
    right=["def f(x):\n    return x + 1", "```python\nf = lambda x: x + 1\n```"],
    wrong=[
        "def f(x):\n    return x + 2",
        "def f(x):\n    return 2",
        "def f(x):\n    return None",
        "def f(x):\n    print(x + 1)",
        "def f(x):\n    return str(x + 1)",
        "import sys\nsys.exit(0)",
        "import os\ndef f(x):\n    os._exit(0)",
        "def f(x):\n    raise SystemExit",
        "print('passed')",
        _ALWAYS_EQUAL,
        "",
    ],
)

# Each program in a third of the forms; the tests try all of them in all.
for _number, _form in enumerate(FORMS):
    sample(
        "unit_tests",
        reference=FORMS[_form],
        options={"limits": {"cpu_s": 1.0, "wall_s": 3.0}},
        right=itertools.islice(map(in_block, right_programs()), _number % 3, 50, 3),
        wrong=itertools.islice(map(in_block, wrong_programs(walls=True)), _number % 3, 150, 3),
    )

# Which endpoint, which model and which principles, only a config can say.
sample("judge", reference="Forty-two.", wrong=judge_hacks())
