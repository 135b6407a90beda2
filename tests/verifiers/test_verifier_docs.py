"""docs/verifiers.md says what is true: its commands parse, its mixes work, its rule passes its audit."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from grpo.cli import make_parser
from verifiers.audit import audit
from verifiers.registry import entries, load_plugins
from verifiers.reward import RewardMix, built_in_mixes
from verifiers.service import Text, VerifierService
from verifiers.service_pool import VerifiersConfig
from verifiers.types import Task

PAGE = (Path(__file__).parents[2] / "docs" / "verifiers.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_every_command_of_the_page_parses(line: str):
    assert make_parser().parse_args(shlex.split(line, comments=True)[1:]).command


@pytest.mark.parametrize("block", blocks("toml"))
def test_every_mix_and_setting_of_the_page_works(block: str):
    settings = tomllib.loads(block)
    VerifiersConfig.model_validate(settings.pop("verifiers", {}))
    VerifierService({name: RewardMix.model_validate(mix) for name, mix in settings.pop("rewards", {}).items()})


def test_the_page_names_the_mixes_and_verifiers_that_exist():
    assert all(f"`{name}`" in PAGE for name in built_in_mixes())
    assert all(f"`{entry.name}`" in PAGE for entry in entries() if "/verifiers/" in entry.origin)


def test_the_rule_of_the_page_passes_its_audit(tmp_path: Path):
    (rule,) = blocks("python")
    (tmp_path / "polite.py").write_text(rule)
    load_plugins([str(tmp_path / "polite.py")])
    findings = audit("polite")
    assert [finding for finding in findings if finding.passed is False] == []
    assert sum(finding.passed is True for finding in findings) >= 6


RIGHT_IN_THE_TABLE = [("42", "x = 42"), ("15 cm", "15"), ("1, 2", "2, 1"), (r"\pm 2", "2, -2"), (r"0.42", r"42\%")]
WRONG_IN_THE_TABLE = [
    ("42", r"42\%"),
    ("15 cm", "15 m"),
    ("1/3", "0.333"),
    ("10", "9+1"),
    ("10", r"\sqrt{100}"),
    ("(1,2)", r"\{1,2\}"),
    ("(1,2)", "[1,2]"),
    ("x = 3", "z = 3"),
    ("C", "c"),
    ("f(x)", "f(y)"),
    ("42", "4 2"),
]


async def test_the_table_of_the_page_is_true():
    service = VerifierService({})
    for pairs, reward in ((RIGHT_IN_THE_TABLE, 1.0), (WRONG_IN_THE_TABLE, 0.0)):
        for reference, answer in pairs:
            (verdict,) = await service.judge(Task("t", "", reference, "math"), [Text(f"\\boxed{{{answer}}}", None)])
            assert verdict.reward == reward, (reference, answer, verdict.scores[0].reason)
    await service.close()
