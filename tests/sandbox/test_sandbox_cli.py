"""`grpo sandbox ...` as it is typed: what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from grpo.cli import main, make_parser
from sandbox.ownership import LABEL_CREATED, LABEL_OWNER, Owner


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text("print(input()[::-1])")
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["build", "--packages", "python3-numpy", "--rebuild"],
        ["build", "--method", "debian", "--mirror", "http://mirror.example/debian"],
        ["doctor", "--level", "gvisor"],
        ["run", "answer.py", "--stdin", "case.txt", "--seconds", "2", "--memory", "64", "--level", "fresh", "--image", "x"],
        ["clean", "--images"],
    ],
)
def test_the_commands_parse(words: list[str]):
    make_parser().parse_args(["sandbox", *words])


def test_every_command_of_the_page_on_the_sandbox_parses():
    page = (Path(__file__).parents[2] / "docs/sandbox.md").read_text()
    commands = [shlex.split(line, comments=True)[1:] for line in page.splitlines() if line.startswith("grpo ")]
    assert len(commands) >= 5
    for words in commands:
        make_parser().parse_args(words)


@pytest.mark.parametrize("command", ["build", "doctor", "run", "clean"])
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["sandbox", command, "--help"])
    assert len(capsys.readouterr().out.split()) > 40


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--seconds", "0"], "--seconds is 0.0: Input should be greater than 0."),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--seconds", "1e9"], "--seconds is 1000000000.0"),
        (["--memory", "1"], "--memory is 1: "),
        (["--memory", "99999999"], "--memory is 99999999: "),
        (["--stdin", "/nonexistent/case.txt"], "/nonexistent/case.txt cannot be read: No such file or directory."),
    ],
)
def test_a_mistake_of_the_user_exits_with_2(program: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    assert main(["sandbox", "run", str(program), *words]) == 2
    assert says in capsys.readouterr().err


def test_a_missing_program_exits_with_2(capsys: pytest.CaptureFixture[str]):
    assert main(["sandbox", "run", "/nonexistent/answer.py"]) == 2
    assert "/nonexistent/answer.py cannot be read" in capsys.readouterr().err


def test_the_level_without_walls_is_not_for_the_command_line(program: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["sandbox", "run", str(program), "--level", "none"])
    assert "invalid choice: 'none'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run", "PROGRAM"], ["build"], ["clean"]])
def test_without_a_daemon_it_exits_with_1_and_names_what_remains(
    command: list[str], program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    assert main(["sandbox", *(str(program) if word == "PROGRAM" else word for word in command)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("SandboxUnavailable: ")
    assert "bubblewrap" in error
    assert "Traceback" not in error


def execution(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_program_runs_in_a_jail(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "case.txt").write_text("abc\n")
    assert main(["sandbox", "run", str(program), "--stdin", str(tmp_path / "case.txt"), "--level", "bubblewrap"]) == 0
    assert execution(capsys)["stdout"] == "cba\n"


@pytest.mark.docker
def test_a_program_that_fails_was_still_run(program: Path, image: str, capsys: pytest.CaptureFixture[str]):
    assert main(["sandbox", "run", str(program)]) == 0  # it reads a line where there is none
    told = execution(capsys)
    assert (told["ending"], told["exit_code"]) == ("exited", 1)
    assert told["stderr"].rstrip().endswith("EOFError: EOF when reading a line")


@pytest.mark.docker
@pytest.mark.parametrize(
    ("source", "ending"),
    [
        (b"import time\nwhile True: pass", "cpu_time"),
        (b"x = '\0'", "exited"),
        (b"\xff\xfe\x00program", "exited"),
        (b"#" * (1 << 20) + b"\nprint(1)", "refused"),
    ],
)
def test_any_bytes_can_be_run(source: bytes, ending: str, tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "program.py").write_bytes(source)
    assert main(["sandbox", "run", str(tmp_path / "program.py"), "--seconds", "0.3"]) == 0
    told = execution(capsys)
    assert told["ending"] == ending
    assert told["exit_code"] in (None, 1)


@pytest.mark.docker
def test_an_image_that_is_not_there_exits_with_1(program: Path, capsys: pytest.CaptureFixture[str], client: Any):
    assert main(["sandbox", "run", str(program), "--image", "grpo-sandbox:mine"]) == 1
    assert "there is no image grpo-sandbox:mine here" in capsys.readouterr().err


@pytest.mark.docker
def test_clean_removes_a_dead_owners_container_and_no_other(image: str, client: Any, capsys: pytest.CaptureFixture[str]):
    me = Owner.current()
    owners = {"dead": me._replace(start_ticks=me.start_ticks + 1), "alive": me}
    containers = {
        name: client.containers.create(image, ["python3"], labels={LABEL_OWNER: str(owner), LABEL_CREATED: "0"})
        for name, owner in owners.items()
    } | {"not ours": client.containers.create(image, ["python3"])}
    try:
        assert main(["sandbox", "clean"]) == 0
        out = capsys.readouterr().out
        assert f"container {containers['dead'].id[:12]}: its owner, process {me.pid}, is dead" in out
        left = {container.id for container in client.containers.list(all=True)}
        assert [name for name, container in containers.items() if container.id in left] == ["alive", "not ours"]
    finally:
        for container in containers.values():
            if container.id in {c.id for c in client.containers.list(all=True)}:
                container.remove(force=True)
