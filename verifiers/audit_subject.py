"""What an audit tries and what it says: a sample with the verifier that was built for it, and a finding."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from sandbox.protocol import Sandbox
from verifiers.audit_samples import Sample
from verifiers.protocol import StatesReference, Verifier
from verifiers.registry import Entry
from verifiers.types import Score, Task

DEADLINE_S = 20.0


class Finding(NamedTuple):
    """What one check found. `passed` is None where the check does not apply to this verifier, and `detail` says why."""

    check: str
    passed: bool | None
    detail: str


class Subject(NamedTuple):
    """One sample and the verifier that was built for it."""

    entry: Entry
    sample: Sample
    verifier: Verifier
    sandbox: Sandbox | None = None

    @property
    def task(self) -> Task:
        return Task("audit", "", self.sample.reference, "audit")

    @property
    def right(self) -> tuple[str, ...]:
        """Completions that deserve full marks; what the verifier itself writes from the reference is one."""
        stated = self.verifier.example(self.sample.reference) if isinstance(self.verifier, StatesReference) else None
        return (*self.sample.right, *([stated] if stated is not None else []))

    async def score(self, text: str, verifier: Verifier | None = None) -> Score:
        scoring = (verifier or self.verifier).score(self.task, text, num_tokens=self.sample.num_tokens)
        return await asyncio.wait_for(scoring, DEADLINE_S)
