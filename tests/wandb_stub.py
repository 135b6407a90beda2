"""A loopback server that speaks as much of W&B's API as its client needs to run, resume, send files and artifacts, and alert.

It records what arrives, and can be told to answer nothing or 500. `python -m tests.wandb_stub PORT` serves one by hand.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "0" * 40
ENTITY = "someone"


@dataclass
class StubRun:
    """What the server knows of one run."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)  # file -> lines
    is_complete: bool = False
    display_name: str = ""
    times_begun: int = 0

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]

    def take(self, file: str, offset: int, content: list[str]) -> None:
        """Lines replace what stands from their offset on, as at W&B: the same chunk sent twice is there once."""
        kept = self.lines.setdefault(file, [])
        assert offset <= len(kept), f"{file}: lines from {offset} on arrived, but only {len(kept)} are there"
        kept[offset : offset + len(content)] = content


class WandbStub:
    """A server in a thread of its own. `mode` is "ok", "error" (it answers 500) or "hang" (it answers nothing for now)."""

    def __init__(self, port: int = 0) -> None:
        self.runs: dict[str, StubRun] = {}
        self.alerts: list[dict[str, Any]] = []
        self.artifacts: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.unknown: list[str] = []  # operations it has no answer to
        self.mode = "ok"
        self.num_refused = 0
        self._socket = socket.create_server(("127.0.0.1", port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "no_proxy": "127.0.0.1"}

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def wait_for(self, condition: Any, *, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < deadline, f"it did not come: {self.runs}, {self.unknown}"
            time.sleep(0.02)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.SockSite(runner, self._socket).start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        while self.mode == "hang":
            await asyncio.sleep(0.02)
        if self.mode == "error":
            self.num_refused += 1
            return web.Response(status=500, text="the stub was told to fail")
        if request.path == "/graphql":
            asked = json.loads(body)
            return web.json_response({"data": self._operation(asked["query"], asked.get("variables") or {})})
        if match := re.fullmatch(r"/files/[^/]*/[^/]*/([^/]+)/file_stream", request.path):
            return web.json_response(self._stream(match[1], json.loads(body)))
        if request.method == "PUT":
            self.files[request.path.removeprefix("/upload/")] = body
        return web.json_response({})

    def _stream(self, name: str, sent: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        for file, chunk in (sent.get("files") or {}).items():
            if file in ("wandb-history.jsonl", "wandb-events.jsonl"):
                run.take(file, chunk["offset"], chunk["content"])
        run.is_complete = run.is_complete or bool(sent.get("complete"))
        return {}

    def _operation(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = match[1] if match else query[:80]
        handler = getattr(self, f"_on_{name}", None)
        if handler is None:
            self.unknown.append(name)
            return {}
        return handler(given)

    def _on_UpsertBucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given["name"]
        is_new = name not in self.runs
        run = self.runs.setdefault(name, StubRun(name))
        if given.get("config"):
            run.config = {key: value["value"] for key, value in json.loads(given["config"]).items() if key != "_wandb"}
        run.display_name = given.get("displayName") or run.display_name
        project = {"id": "P", "name": given.get("project") or "p", "entity": {"id": "E", "name": ENTITY}}
        bucket = {
            "id": f"id-{name}",
            "name": name,
            "displayName": run.display_name,
            "description": "",
            "config": given.get("config"),
        }
        lines = len(run.lines.get("wandb-history.jsonl", []))
        return {"upsertBucket": {"bucket": bucket | {"project": project, "historyLineCount": lines}, "inserted": is_new}}

    def _on_RunResumeStatus(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given["name"])
        project = {"id": "P", "name": given.get("project"), "entity": {"id": "E", "name": ENTITY}}
        if run is None:
            return {"model": project | {"bucket": None}}
        history, events = run.lines.get("wandb-history.jsonl", []), run.lines.get("wandb-events.jsonl", [])
        bucket = {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.display_name,
            "summaryMetrics": json.dumps(self._summary(run)),
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "logLineCount": 0,
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": project | {"bucket": bucket}}

    @staticmethod
    def _summary(run: StubRun) -> dict[str, Any]:
        return {name: value for row in run.history for name, value in row.items()}

    def _on_CreateRunFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}}

    def _on_CreateArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        number = len(self.artifacts)
        given = given.get("input") or given
        self.artifacts.append(given | {"metadata": json.loads(given.get("metadata") or "{}"), "is_committed": False})
        artifact = {"id": f"A{number}", "state": "PENDING", "artifactSequence": {"id": "S", "latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def _on_CreateArtifactManifest(self, given: dict[str, Any]) -> dict[str, Any]:
        given = given.get("input") or given
        name = f"manifest-{given.get('artifactID')}"
        file = {"id": "F", "name": name, "displayName": name, "uploadUrl": f"{self.url}/upload/{name}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "M", "file": file}}}

    def _on_CreateArtifactFiles(self, given: dict[str, Any]) -> dict[str, Any]:
        specs = (given.get("input") or given).get("artifactFiles") or given.get("artifactFiles")
        edges = [
            {
                "node": {
                    "id": f"F{i}",
                    "name": spec["name"],
                    "displayName": spec["name"],
                    "uploadUrl": f"{self.url}/upload/{spec['artifactID']}/{spec['name']}",
                    "uploadHeaders": [],
                    "storagePath": spec["name"],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": spec["artifactID"]},
                }
            }
            for i, spec in enumerate(specs)
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_CommitArtifact(self, given: dict[str, Any]) -> dict[str, Any]:
        number = (given.get("input") or given)["artifactID"]
        self.artifacts[int(number[1:])]["is_committed"] = True
        return {"commitArtifact": {"artifact": {"id": number, "digest": "", "versionIndex": 0, "state": "COMMITTED"}}}

    def _on_NotifyScriptableRunAlert(self, given: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(given)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _on_ArtifactType(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _on_Viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "V", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}}

    def tables(self) -> list[dict[str, Any]]:
        """The rows of every table file that arrived with an artifact, in order."""
        return [json.loads(body) for name, body in self.files.items() if name.endswith(".table.json") and name.startswith("A")]


if __name__ == "__main__":
    import sys

    stub = WandbStub(int(sys.argv[1]))
    print(stub.url, flush=True)
    try:
        while True:
            time.sleep(1)
            print(sorted((run.name, run.steps[-1:]) for run in stub.runs.values()), stub.unknown, flush=True)
    except KeyboardInterrupt:
        stub.close()
