"""The commands about jobs, as far as they can be tried without a cluster."""

from __future__ import annotations

import json
import os
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from grpo.cli import main, make_parser
from grpo.exit_codes import ExitCode
from grpo.jobs.server import JobServer, ServerFault

ROOT = Path(__file__).parents[2]


def test_exit_codes_are_told_in_help_and_docs_alike(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        make_parser().parse_args(["--help"])
    told = capsys.readouterr().out
    page = (ROOT / "docs/operating.md").read_text()
    for code in ExitCode:
        assert f"{code.value:<5}{code.meaning}" in told
        assert f"| {code.value} | {code.meaning} |" in page


def test_a_wrong_command_line_is_the_persons_mistake(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["launch"])
    assert ended.value.code == ExitCode.USER_ERROR


def test_a_run_of_this_machine_is_resumed_by_the_words_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/command.json").write_text(f'{{"folder": "{tmp_path}", "arguments": ["train", "gone.toml"]}}')
    monkeypatch.chdir(ROOT)
    assert main(["resume", str(tmp_path / "run"), "--set", "steps=9"]) == ExitCode.USER_ERROR
    assert "gone.toml: cannot be read" in capsys.readouterr().err
    assert os.getcwd() == str(tmp_path)


@pytest.mark.slow  # jobs.py imports Ray
class TestRequests:
    def test_ray_calls_failed_what_was_stopped_or_mistaken(self):
        from grpo.jobs.server import outcome

        assert [outcome("FAILED", code) for code in (130, 2, 1, -9, None)] == ["stopped", "user error", "fault", "fault", "fault"]
        assert [outcome(word, None) for word in ("PENDING", "RUNNING", "STOPPED")] == ["waiting", "running", "ended by Ray"]
        assert outcome("SUCCEEDED", 0) == "done"

    def test_a_request_becomes_a_command_that_our_own_parser_reads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        from grpo.jobs.launch import Request, checked, new_id, request_of, runtime_env, variables
        from grpo.jobs.server import Job

        monkeypatch.chdir(ROOT)
        request = checked(Request("configs/quickstart.toml", "/shared/my run", ("objective.clip_high=0.3",), ("--fresh",)))
        words = shlex.split(request.entrypoint("grpo.cli", "train", *request.settings, *request.arguments))
        assert words[0] == "exec"
        args = make_parser().parse_args(words[4:])
        assert str(args.run_dir) == "/shared/my run"
        assert args.overrides == ["objective.clip_high=0.3", "ray_address=auto"]
        assert args.fresh

        job = Job("j", "RUNNING", None, "", "", request.metadata, {}, 0.0, None)
        assert request_of(job) == request
        assert new_id("/shared/my run").startswith("grpo-my-run-20")
        monkeypatch.setenv("TOKEN_OF_MINE", "t")
        assert variables(["A=b=c", "TOKEN_OF_MINE"]) == {"RAY_JOB_STOP_WAIT_TIME_S": "120", "A": "b=c", "TOKEN_OF_MINE": "t"}

        lock = tmp_path / "my.lock"
        lock.write_text("# made\ntorch==2.13.0\n    # via x\nray==2.60.0 ; python_version > '3'\n")
        installing = Request("configs/quickstart.toml", "/r", install=str(lock))
        assert runtime_env(installing, tmp_path)["pip"]["packages"] == ["torch==2.13.0", "ray==2.60.0"]
        assert installing.entrypoint("grpo.cli").startswith("exec python -m"), "what Ray installs has its own interpreter"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["launch", "configs/quickstart.toml", "--run-dir", "runs/x"], "needs an absolute path, on a file system"),
            (["launch", "/etc/x.toml", "--run-dir", "/shared/x"], "is not below this folder"),
            (["launch", "configs/quickstart.toml", "--run-dir", "/x", "--set", "stps=1"], "Did you mean steps"),
            (["launch", "configs/quickstart.toml", "--run-dir", "/x", "--install", "no.lock"], "no such file"),
            (["launch", "configs/quickstart.toml", "--run-dir", "/x"], "no job server answers"),
            (["jobs", "--address", "ftp://x"], "expected http://HEAD:8265"),
            (["stop", "some-job"], "no job server answers"),
        ],
    )
    def test_mistakes_are_told_before_anything_is_sent(
        self, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ):
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
        before = dict(os.environ)
        assert main(arguments) == ExitCode.USER_ERROR
        assert message in capsys.readouterr().err
        assert dict(os.environ) == before, "Ray reads its variables once: a later cluster would have others than its clients"

    def test_ray_reads_the_cluster_of_the_example(self):
        import yaml
        from ray.autoscaler._private.util import prepare_config, validate_config

        cluster = prepare_config(yaml.safe_load((ROOT / "configs/cluster/ray.yaml").read_text()))
        validate_config(cluster)
        assert len(cluster["provider"]["worker_ips"]) == cluster["max_workers"] == 3


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str | None]]]:
    """The address of a job server that has no jobs, and what stood in the Authorization header of each request."""
    seen: list[str | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            body = b"[]" if "jobs" in self.path else json.dumps({"version": "4", "ray_version": "2", "ray_commit": "c"}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"RAY_AUTH_TOKEN": "t0ken"}, "Bearer t0ken"),
        ({"RAY_AUTH_TOKEN_PATH": "kept"}, "Bearer from-a-file"),
        ({"RAY_AUTH_TOKEN": "t0ken", "RAY_AUTH_MODE": "disabled"}, None),
        ({}, None),
    ],
)
def test_a_token_is_sent_unless_the_mode_says_otherwise(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: tuple[str, list[str | None]],
    variables: dict[str, str],
    sent: str | None,
) -> None:
    """Ray itself has read its mode when it was imported."""
    (tmp_path / "kept").write_text("from-a-file\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("grpo.jobs.server.TOKEN", tmp_path / "none")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    address, seen = asked
    assert JobServer(address).jobs() == []
    assert seen
    assert set(seen) == {sent}
    assert os.environ.get("RAY_AUTH_MODE") == variables.get("RAY_AUTH_MODE")


@pytest.mark.parametrize("num_failures", [2, 3])
def test_a_client_server_that_died_as_it_was_started_is_asked_again(monkeypatch: pytest.MonkeyPatch, num_failures: int) -> None:
    tries = []

    def connect(address: str, headers: dict[str, str]) -> object:
        tries.append(address)
        if len(tries) <= num_failures:
            raise ConnectionAbortedError("Initialization failure from server")
        return object()

    monkeypatch.setattr("grpo.jobs.server.JobSubmissionClient", connect)
    monkeypatch.setattr("grpo.jobs.server.time.sleep", lambda seconds: None)
    if num_failures == 2:
        JobServer("ray://head:10001")
    else:
        with pytest.raises(ServerFault, match=r"starts no process for this one .* http://HEAD:8265 needs no such process"):
            JobServer("ray://head:10001")
    assert tries == ["ray://head:10001"] * 3
