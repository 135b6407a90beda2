"""The door: rules, verifiers, options, plugins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from verifiers import registry
from verifiers.errors import VerifierError
from verifiers.registry import entries, find, load_plugins, rule, verifier
from verifiers.types import Score, Task, correct

TASK = Task("t", "", None, "mix")
RULE = "from verifiers.registry import rule\nfrom verifiers.types import correct\n"


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    entries()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def write_rule(path: Path, name: str, function: str = "short_enough") -> Path:
    path.write_text(
        f'{RULE}@rule("{name}")\ndef {function}(task, text, *, limit: int = 5):\n    "Short."\n    return correct(str(limit))\n'
    )
    return path


async def test_a_rule_is_built_with_its_options():
    @rule("shouting")
    def shouting(task: Task, text: str, *, marks: int = 1) -> Score:
        return correct(f"{marks} {text}")

    score = await find("shouting").build({"marks": 3}).score(TASK, "hey")
    assert score.reason == "3 hey"


async def test_the_number_of_tokens_is_passed_and_is_no_option():
    @rule("counting")
    def counting(task: Task, text: str, *, num_tokens: int | None) -> Score:
        return correct(f"{num_tokens}")

    built = find("counting").build({})
    assert (await built.score(TASK, "", num_tokens=7)).reason == "7"
    with pytest.raises(VerifierError, match="It has no options"):
        find("counting").build({"num_tokens": 7})


def test_a_class_gets_its_options_and_its_number_of_workers():
    @verifier("pooled")
    class Pooled:
        def __init__(self, *, depth: int = 2, workers: int) -> None:
            self.made_with = (depth, workers)

        def prepare(self, reference: Any) -> None: ...
        async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
            return correct("")

        async def close(self) -> None: ...

    built: Any = find("pooled").build({"depth": 4}, workers=3)
    assert built.made_with == (4, 3)
    assert list(find("pooled").options.model_fields) == ["depth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_token": 5, "buffer_tokens": 1, "max_tokens": 2}, "max_token is not an option of length. Did you mean max_tokens?"),
        ({"max_tokens": "5", "buffer_tokens": 1}, "max_tokens is '5', but it should be a whole number."),
        ({"max_tokens": True, "buffer_tokens": 1}, "max_tokens is true, but it should be a whole number."),
        ({"max_tokens": 5}, "buffer_tokens is missing: length needs it."),
        ({"max_tokens": 0, "buffer_tokens": 1}, "max_tokens is 0, but it should be greater than 0."),
    ],
)
def test_options_that_do_not_fit_are_explained(options: dict[str, Any], message: str):
    with pytest.raises(VerifierError) as caught:
        find("length").build(options, where="rewards.mine.length.options")
    assert str(caught.value) == f"rewards.mine.length.options.{message}"


def test_an_unknown_verifier_gets_a_hint_and_the_list():
    with pytest.raises(VerifierError, match=r"'mth' is not a verifier. Did you mean math\? Known are .*format, .*length, .*math"):
        find("mth")


def test_a_plugin_file_is_loaded_once_and_its_rule_found(tmp_path: Path):
    path = write_rule(tmp_path / "my_rules.py", "short_enough")
    load_plugins([str(path), f"{path}:short_enough"])
    assert find("short_enough").summary == "Short."
    assert str(path) in find("short_enough").origin


def test_a_dotted_module_is_a_plugin_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_rule(tmp_path / "my_lab_rules.py", "from_a_lab")
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["my_lab_rules"])
    assert find("from_a_lab").name == "from_a_lab"


def test_two_verifiers_of_one_name_are_refused_and_both_origins_named(tmp_path: Path):
    first = write_rule(tmp_path / "first.py", "same")
    second = write_rule(tmp_path / "second.py", "same")
    load_plugins([str(first)])
    with pytest.raises(VerifierError, match=rf"two verifiers are called same: .*{first.name}.* and .*{second.name}"):
        load_plugins([str(second)])


def test_a_plugin_cannot_take_the_name_of_a_built_in(tmp_path: Path):
    with pytest.raises(VerifierError, match="two verifiers are called math"):
        load_plugins([str(write_rule(tmp_path / "mine.py", "math"))])


def test_importing_the_same_origin_again_is_no_clash(tmp_path: Path):
    path = write_rule(tmp_path / "again.py", "again")
    load_plugins([str(path)])
    for name in [name for name in sys.modules if name.startswith("again_")]:
        del sys.modules[name]
    load_plugins([str(path)])


@pytest.mark.parametrize(
    ("content", "plugin", "message"),
    [
        (None, "none.py", "there is no file"),
        ("raise RuntimeError('no')", "mine.py", "could not be imported: RuntimeError: no"),
        ("import sys; sys.exit(3)", "mine.py", "could not be imported: SystemExit: 3"),
        (RULE + "@rule('abc')\ndef f(task, text): ...", "mine.py:abd", "registers no verifier abd. Did you mean abc?"),
        (RULE + "@rule('abc')\ndef f(text): ...", "mine.py", "a rule takes"),
        (RULE + "@rule('abc')\ndef f(task, text, **options): ...", "mine.py", "cannot be checked"),
        (None, "no.such.module", "could not be imported: ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_says_why(tmp_path: Path, content: str | None, plugin: str, message: str):
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    with pytest.raises(VerifierError, match=message.replace("(", r"\(").replace("?", r"\?")):
        load_plugins([str(tmp_path / plugin) if ".py" in plugin else plugin])
