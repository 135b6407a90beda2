"""Every command of the documents is typed, in a folder that the documents and the commands before it have filled.

The cases stand in documented_cases.py. What `make`, `pip`, `pytest` and the benchmarks do is not looked at here.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from grpo.cli import main
from tests.documents import ROOT, blocks
from tests.integration.documented_cases import ADMIT, BEFORE, SUMS, TYPED, marks_of
from tests.integration.runs import MARK, cluster_of, wait_until_gone
from tests.verifiers.judge_endpoint import endpoint, verdict
from verifiers import reasoning_gym_admission

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def answer(request: dict[str, Any]) -> str:
    """Of a model that adds and subtracts, or of one that grades: what says why gets full marks, and nothing else gets any."""
    material = request["messages"][-1]["content"]
    if request["model"] == "my-model":
        terms = re.findall(r"[+-]?\d+", material.partition("=")[0].replace(" ", ""))
        return rf"It is \boxed{{{sum(map(int, terms))}}}. <answer>{sum(map(int, terms))}</answer>"
    grade = 4 if "because" in material else 0
    return verdict(request, grade_1=grade, grade_2=grade, grade_3=grade)


def text_of(file: Path) -> str:
    """What stands in it; of a page also the data that it carries deflated."""
    text = file.read_text()
    deflated = re.search(r'id="page-data">([\w+/=]+)', text)
    return text + zlib.decompress(base64.b64decode(deflated[1])).decode() if deflated else text


class Newcomer:
    """Types commands in a folder, each once, after those that make what it reads."""

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        self.folder = folder
        self._names = names
        self._said: dict[str, str] = {}
        self._typist = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("typist.py")],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            | {MARK: str(folder), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "COLUMNS": "160"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def types(self, line: str) -> None:
        """Fails unless it says and makes what its case tells."""
        if line in self._said:
            return
        case = (TYPED | BEFORE)[line]
        for before in case.after:
            self.types(before)
        for name, content in case.given.items():
            text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
            (self.folder / name).write_text(text)
        for name in case.makes:
            for there in self.folder.glob(name):
                there.unlink()
        self._said[line] = said = self._typed(line + case.shorter, case.exit_codes)
        for sentence in case.says:
            assert re.search(sentence, said, re.MULTILINE), f"{line}: {sentence}\n{said}"
        for name, text in case.makes.items():
            assert any(re.search(text, text_of(made)) for made in self.folder.glob(name)), f"{line}: {name}: {text}\n{said}"

    def _typed(self, line: str, exit_codes: tuple[int, ...]) -> str:
        for word, meant in self._names.items():
            line = line.replace(word, meant)
        assert self._typist.stdin is not None
        assert self._typist.stdout is not None
        self._typist.stdin.write(json.dumps(shlex.split(line)[1:]) + "\n")
        self._typist.stdin.flush()
        answered = self._typist.stdout.readline()
        assert answered, f"{line}: ended the process, {self._typist.wait()}"
        exit_code, said = json.loads(answered)
        assert exit_code in exit_codes, f"{line}: exit code {exit_code}\n{said}"
        return said

    def leave(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):  # a command that hangs is found afterwards, and ended
            self._typist.communicate(timeout=30)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    """In a folder with what the documents say is there: the configs, tasks of one's own, and the file that the README prints."""
    folder = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, SUMS)))
    (folder / "my_rules.py").write_text(
        next(block for block in blocks("python", (ROOT / "README.md").read_text()) if block.startswith("# my_rules.py\n"))
    )
    judge = folder / "configs/judge.toml"
    with pytest.MonkeyPatch.context() as patch, endpoint(answer) as api:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        judge.write_text(judge.read_text().replace("http://127.0.0.1:8001/v1", api.base_url))
        names = {"http://127.0.0.1:8000/v1": api.base_url, "CASES.jsonl": "cases.jsonl", "OUT.jsonl": "verdicts.jsonl"}
        with cluster_of(folder, 4) as cluster:
            newcomer = Newcomer(folder, names | {"CLUSTER": cluster})
            yield newcomer
            newcomer.leave()
    wait_until_gone(folder)


@pytest.mark.parametrize("line", [pytest.param(line, id=line, marks=marks_of(line)) for line in TYPED if line != ADMIT])
def test_a_command_of_the_documents_does_what_its_page_says(newcomer: Newcomer, line: str) -> None:
    newcomer.types(line)


def test_the_admission_of_some_datasets_is_what_the_table_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, some = dict(reasoning_gym_admission.table()), ("chain_sum", "puzzle24")
    monkeypatch.setattr(reasoning_gym_admission, "TABLE", tmp_path / "table.json")
    monkeypatch.setattr(reasoning_gym_admission, "names", lambda pool: some)

    assert main(ADMIT.split()[1:]) == 0

    said = capsys.readouterr().out
    assert all(re.search(sentence, said, re.MULTILINE) for sentence in TYPED[ADMIT].says), said
    assert dict(reasoning_gym_admission.table()) == {name: stored[name] for name in some}
    reasoning_gym_admission.table.cache_clear()
