"""Groups that are finished and not learnt from yet, as JSON: what a checkpoint keeps of them beside their place in the stream."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from rollout.types import Completion, Group, VersionSpan
from verifiers.types import Outcome, Score, Task, Verdict


class Judged(NamedTuple):
    """A group without its task, which the task stream has."""

    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]

    def of(self, task: Task) -> Group:
        return Group(task, self.completions, self.verdicts)


def to_json(judged: Mapping[int, Judged]) -> str:
    """By position. Plain ASCII, so that lone surrogates in a text survive; numbers come back as they were, to the bit."""
    return json.dumps({position: [list(map(dataclasses.asdict, part)) for part in each] for position, each in judged.items()})


def from_json(text: str) -> dict[int, Judged]:
    return {
        int(position): Judged(tuple(map(_completion, completions)), tuple(map(_verdict, verdicts)))
        for position, (completions, verdicts) in json.loads(text).items()
    }


def _completion(fields: dict[str, Any]) -> Completion:
    logprobs = fields["behavior_logprobs"]
    lists: dict[str, Any] = {
        "prompt_ids": tuple(fields["prompt_ids"]),
        "token_ids": tuple(fields["token_ids"]),
        "behavior_logprobs": None if logprobs is None else tuple(logprobs),
        "version_spans": tuple(VersionSpan(*span) for span in fields["version_spans"]),
    }
    return Completion(**fields | lists)


def _verdict(fields: dict[str, Any]) -> Verdict:
    scores = tuple(Score(**score | {"outcome": Outcome(score["outcome"])}) for score in fields["scores"])
    return Verdict(fields["reward"], fields["is_correct"], scores, fields["cause"])
