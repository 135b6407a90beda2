"""An OpenAI-compatible endpoint on this machine that answers as a test says, over real connections."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from verifiers.judge import Judge
from verifiers.types import Task

TASK = Task("t", "Why is the sky blue?", "Because of scattering.", "judged")
PRINCIPLES = ("Be brief.", "Be kind.")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. `cut` closes the connection after half of the body, `delay_s` is waited before the first byte."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: bool = False


def said(text: str | None, *, finish_reason: str = "stop", tokens: int | None = 100) -> bytes:
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {} if tokens is None else {"usage": {"total_tokens": tokens}}
    return json.dumps({"object": "chat.completion", "choices": [choice], **usage}).encode()


def code_of(request: Mapping[str, Any]) -> str:
    """The code of the question that a request puts."""
    found = re.search(r"The code is ([0-9a-f]+)", request["messages"][1]["content"])
    assert found
    return found[1]


def verdict(request: Mapping[str, Any], **values: Any) -> str:
    """A judge's answer in the form that was asked for."""
    return f"It is what it is.\n{json.dumps({'code': code_of(request), **values})}"


def grading(grade: int) -> Callable[[dict[str, Any]], str]:
    return lambda request: verdict(request, grade=grade)


class Server(ThreadingHTTPServer):
    request_queue_size = 128  # of the usual 5 a sixth that comes at the same time is tried again a second later


class Endpoint:
    """What it was asked (`requests`, `headers`, `paths`), and how many requests it held at one time at most."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer | str]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    endpoint.requests.append(request)
                    endpoint.headers.append(dict(self.headers))
                    endpoint.paths.append(self.path)
                    endpoint._at_once += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._at_once)
                try:
                    given = endpoint.answer(request)
                    self._send(Answer(body=said(given)) if isinstance(given, str) else given)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with endpoint._lock:
                        endpoint._at_once -= 1

            def _send(self, answer: Answer) -> None:
                time.sleep(answer.delay_s)
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
                if answer.cut:
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def options(self, **options: Any) -> dict[str, Any]:
        return {"principles": PRINCIPLES, "base_url": self.base_url, "model": "judge-1", **options}

    def judge(self, **options: Any) -> Judge:
        return Judge(**self.options(**options))


@contextmanager
def endpoint(answer: Callable[[dict[str, Any]], Answer | str]) -> Iterator[Endpoint]:
    """An endpoint that listens until the block ends."""
    made = Endpoint(answer)
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()
