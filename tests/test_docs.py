"""What the documents say of defaults, targets and files is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from grpo.cli import make_parser
from grpo.config import RunConfig, flatten, load_config
from grpo.metric_table import METRICS
from tests.documents import PAGES, ROOT, commands, section
from tests.integration.documented_cases import ELSEWHERE, TYPED

TUNING = (ROOT / "docs/tuning.md").read_text()
DEFAULTS = flatten(RunConfig.model_validate({"tasks": {"source": "tasks.jsonl"}}))


@pytest.mark.parametrize(("name", "said"), re.findall(r"^\| `([\w.]+)` \| (.+?) \|", TUNING, re.MULTILINE))
def test_a_default_in_the_tuning_page_is_the_default(name: str, said: str) -> None:
    value = DEFAULTS[name]
    assert said == (str(tuple(value)) if isinstance(value, list) else str(value))


def test_what_the_tuning_page_names_exists() -> None:
    metrics = set(re.findall(r"`(\w+/\w+)`", TUNING))
    assert metrics <= set(METRICS)
    settings = {name for name in re.findall(r"`(\w+\.\w+)(?: = [^`]+)?`", TUNING) if not name.endswith(("toml", "md"))}
    assert settings <= set(DEFAULTS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("line", commands("grpo"))
def test_every_command_parses(line: str) -> None:
    args = make_parser().parse_args(shlex.split(line, comments=True)[1:])
    config = getattr(args, "config", None)
    if config is not None and str(config).startswith("configs/"):
        load_config(ROOT / config, getattr(args, "overrides", []))


@pytest.mark.parametrize("line", [*commands("python"), *commands("pytest")])
def test_every_benchmark_and_test_that_a_document_names_is_there(line: str) -> None:
    files = [word for word in shlex.split(line, comments=True) if word.endswith(".py")]
    assert files
    for file in files:
        assert (ROOT / file).is_file(), file


def benchmarks_in_text() -> list[str]:
    return sorted({name for page in PAGES for name in re.findall(r"`python (benchmarks/\w+\.py)", page.read_text())})


@pytest.mark.parametrize("file", benchmarks_in_text())
def test_the_benchmark_of_every_figure_is_there(file: str) -> None:
    assert (ROOT / file).is_file()


def test_every_target_that_contributing_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_command_of_the_documents_is_typed_somewhere_and_no_other() -> None:
    typed = [line for lines in (TYPED, *ELSEWHERE.values()) for line in lines if line.startswith("grpo ")]
    assert sorted({*typed}) == commands("grpo")


@pytest.mark.parametrize(("test", "lines"), ELSEWHERE.items())
def test_the_test_that_a_command_is_left_to_takes_it_from_the_documents(test: str, lines: list[str]) -> None:
    source = (ROOT / test).read_text()
    taken = [line for page, title in re.findall(r'section\("([\w/.]+)", "([\w ]+)"\)', source) for line in section(page, title)]
    assert set(lines) <= {*taken, *(line for line in commands("grpo") if f'"{line}"' in source)}
