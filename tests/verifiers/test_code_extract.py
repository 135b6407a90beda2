"""Which part of a completion is the program."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.code_extract import Block, Code, code_blocks, defines, extract_code

F, G = "def f(x):\n    return x\n", "def g(x):\n    return 2\n"


def block(source: str, language: str = "python") -> str:
    return f"```{language}\n{source}```\n"


@pytest.mark.parametrize(
    ("text", "source", "place"),
    [
        (block(F), F, "the last code block that defines f"),
        ("Here it is:\n" + block(F) + "Done.", F, "the last code block that defines f"),
        (block(F) + "It prints:\n" + block("f(1) is 1\n"), F, "the last code block that defines f"),
        (block(F) + block(G), F, "the last code block that defines f"),
        (block(G) + block(F.replace("x\n", "1\n")) + block(F), F, "the last code block that defines f"),
        (block(G) + block("h = 1\n"), "h = 1\n", "the last code block"),
        (block(F) + block("./run\n", "bash") + block("f x = x\n", "haskell"), F, "the last code block that defines f"),
        (block(F, "") + block(F, "text"), F, "the last code block that defines f"),
        (block(F, "Python3"), F, "the last code block that defines f"),
        (block(F, ' {.python title="a"}'), F, "the last code block that defines f"),
        (f"~~~py\n{F}~~~", F, "the last code block that defines f"),
        (f"````python\n{F}s = '```'\n````", F + "s = '```'\n", "the last code block that defines f"),
        (f"```python\n{F}", F, "the last code block that defines f"),  # cut off, or never closed
        ("1. so:\n   ```python\n   def f(x):\n       return x\n   ```\n", F, "the last code block that defines f"),
        ("\tso\n\t```\n\tdef f(x):\n\t    return x\n\t```\n", F, "the last code block that defines f"),
        (
            "```python\r\ndef f(x):\r\n    return x\r\n```\r\n",
            "def f(x):\r\n    return x\r\n",
            "the last code block that defines f",
        ),
        (f"<think>{block(G)}{block('def f(): 1')}</think>{block(F)}", F, "the last code block that defines f"),
        (f"{block(F)}<think>{block(G)}", F, "the last code block that defines f"),
        (F, F, "the whole text"),
        (f"\n{F}", f"\n{F}", "the whole text"),
    ],
)
def test_the_program_of_a_function_is_found(text: str, source: str, place: str):
    assert extract_code(text, entry_point="f") == Code(source, place, source)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "nothing was written"),
        (" \n\t", "nothing was written"),
        (f"<think>{block(F)}", "nothing after the reasoning"),
        (f"<think>{block(F)}</think>", "nothing after the reasoning"),
        ("I cannot do that.", "no code block, and the text itself does not define f"),
        (G, "no code block, and the text itself does not define f"),
        (f"    {F}", "no code block, and the text itself does not define f"),
        (block("int f(int x);\n", "c") + block("f:\n", "asm"), "no Python code block (found asm, c)"),
    ],
)
def test_where_there_is_no_program_the_reason_is_told(text: str, place: str):
    assert extract_code(text, entry_point="f") == Code(None, place)


def test_a_fence_can_be_required():
    assert extract_code(F, entry_point="f", fence="required") == Code(None, "no code block")
    assert extract_code("    return x", entry_point="f", prompt="def f(x):\n", fence="required") == Code(None, "no code block")
    assert extract_code(block(F), entry_point="f", fence="required").source == F


def test_a_script_is_the_last_block_or_the_whole_text():
    assert extract_code(block("a\n") + block("b\n"), entry_point=None).source == "b\n"
    assert extract_code("print(input())", entry_point=None) == Code("print(input())", "the whole text", "print(input())")


PROMPT = 'import math\n\ndef f(x):\n    """Double."""\n'


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("    return 2 * x", PROMPT + "    return 2 * x"),
        ("\n    return 2 * x\n", PROMPT + "\n    return 2 * x\n"),
        ("\treturn 2 * x", PROMPT + "\treturn 2 * x"),
        ("    return 2 * x\n```\nThat is all.", PROMPT + "    return 2 * x\n"),
        (f"    return 2 * x\n\n{block(G)}", PROMPT + "    return 2 * x\n\n"),
        (block("    return 2 * x\n"), PROMPT + "    return 2 * x\n"),
        (block(F), f"{PROMPT}\n{F}"),
        (f" Here it is:\n{block(F)}", f"{PROMPT}\n{F}"),  # many tokenizers begin a text with a space
        (F, f"{PROMPT}\n{F}"),
    ],
)
def test_a_prompt_is_continued_or_stands_before_a_new_definition(text: str, source: str):
    assert extract_code(text, entry_point="f", prompt=PROMPT).source == source


@pytest.mark.parametrize(
    ("source", "is_defined"),
    [
        ("def f(): 1", True),
        ("async  def f (x): 1", True),
        ("class f: pass", True),
        ("x = 1\nf = lambda x: x", True),
        ("f: Callable[[int], int] = abs", True),
        ("def ff(): 1", False),
        ("  def f(): 1", False),
        ("# def f(): 1", False),
        ("f == 1", False),
        ("print(f)", False),
    ],
)
def test_a_definition_begins_a_line(source: str, is_defined: bool):
    assert defines(source, "f") is is_defined


def test_a_method_is_defined_by_its_class():
    assert defines("class Solution:\n    def f(self): 1", "Solution.f")
    assert not defines("def f(): 1", "Solution.f")


def test_blocks_are_taken_in_order_with_their_languages():
    text = "a\n```Python x=1\n1\n```\n``` \n2\n~~~\n```\nend ``` not a fence\n~~~~json\n3\n~~~~~"
    assert code_blocks(text) == [Block("python", "1\n"), Block("", "2\n~~~\n"), Block("json", "3\n")]


HUGE = {
    "a program of 10 MB": block("x = 1\n" * 1_700_000),
    "ten thousand fences": "```\n" * 10_000,
    "ten thousand fences of growing length": "\n".join("`" * (3 + n % 300) for n in range(10_000)),
    "spaces": " " * 10_000_000,
    "backticks": "`" * 10_000_000,
    "indented fences": ("\t" * 1000 + "```\n") * 5000,
    "nothing but openers": "<think>" * 1_000_000,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE.keys())
def test_a_huge_text_takes_linear_time(text: str):
    started = time.process_time()
    extract_code(text, entry_point="f", prompt=PROMPT)
    assert time.process_time() - started < 3


PIECES = ["```", "~~~", "\n", " ", "def f", "python", "\0"]


@given(st.text(st.characters(codec=None, categories=None)) | st.lists(st.sampled_from(PIECES)).map("".join))
def test_any_text_has_a_program_or_a_reason(text: str):
    for prompt in ("", PROMPT):
        code = extract_code(text, entry_point="f", prompt=prompt)
        assert code.place
        assert code.source is None or code.source.endswith(code.written)
