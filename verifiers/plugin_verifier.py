"""Verifiers of plugins, each in worker processes of its own: what they do wrong stays there, and we decide when they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verifiers.deadline import InWorkers, Overrun, WorkerLost, WorkerPool
from verifiers.errors import InvalidReference, VerifierError
from verifiers.types import Outcome, Score, Task, infra

CHILD = Path(__file__).with_name("plugin_child.py")
MEMORY_MB = 4096


class PluginFault(VerifierError):
    """A plugin's verifier raised, ended or never ended, or returned what is no score."""


class PluginRule(InWorkers):
    """The rule `name` that `plugin` registers, as a Verifier.

    Whatever it does (raise, never end, exhaust memory, end its process, return nonsense) is an infrastructure fault of its own
    check and nobody else's, with the plugin named.
    """

    def __init__(self, plugin: str, name: str, options: Mapping[str, Any], *, workers: int, deadline_s: float) -> None:
        self._plugin = plugin
        setup = {
            "plugin": plugin,
            "name": name,
            "options": options,
            "workers": workers,
            "sys_path": [os.path.abspath(path) for path in sys.path],
        }
        pool = WorkerPool(
            CHILD,
            setup=setup,
            size=workers,
            deadline_s=deadline_s,
            clock="wall",  # a plugin may wait for a service, and may wait for ever
            memory_mb=MEMORY_MB,
            recycle_mb=MEMORY_MB // 2,
        )
        super().__init__(pool)

    def prepare(self, reference: Any) -> None:
        """A rule takes any reference."""

    async def score(self, task: Task, text: str, *, num_tokens: int | None = None) -> Score:
        fields = {"id": task.id, "prompt": task.prompt, "reference": task.reference, "rewards": task.rewards}
        try:
            reply = await self._pool.ask({"method": "score", "task": fields, "text": text, "num_tokens": num_tokens})
        except (Overrun, WorkerLost) as error:
            return infra(f"plugin {self._plugin}: {error}")
        if "said" not in reply:
            raise PluginFault(f"plugin {self._plugin}: {reply.get('fault') or reply.get('refused')}")
        outcome, value, reason, extracted = reply["said"]
        return Score(Outcome(outcome), value, reason, extracted)


class PluginVerifier(PluginRule):
    """The same for a class, which also has something to say of references."""

    def prepare(self, reference: Any) -> None:
        """What the plugin's own `prepare` says. Waits for a worker."""
        self._ask_and_wait({"method": "prepare", "reference": reference})

    def example(self, reference: Any) -> str | None:
        """What the plugin's own `example` says, None where it has none. Waits for a worker."""
        return self._ask_and_wait({"method": "example", "reference": reference})

    def _ask_and_wait(self, question: dict[str, Any]) -> Any:
        try:
            reply = self._pool.ask_and_wait(question)
        except (Overrun, WorkerLost) as error:
            raise PluginFault(f"plugin {self._plugin}: {error}") from None
        if "refused" in reply:
            raise InvalidReference(reply["refused"])
        if "fault" in reply:
            raise PluginFault(f"plugin {self._plugin}: {reply['fault']}")
        return reply["said"]
