"""Any JSON as a reference is taken or refused with a sentence when tasks are loaded, and any text is then scored."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.audit_samples import missing_options, samples_of
from verifiers.errors import InvalidReference
from verifiers.protocol import Verifier
from verifiers.registry import entries, find
from verifiers.types import Score, Task

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
INSTRUCTED = st.fixed_dictionaries({"instruction_id_list": JSON, "kwargs": JSON})
CODE = st.fixed_dictionaries({"cases": JSON, "entry_point": JSON})
TESTED = st.fixed_dictionaries({"test_list": JSON, "test": JSON})


def built(name: str) -> Verifier:
    samples = samples_of(name)
    return find(name).build(samples[0].options if samples else {}, workers=1)


def refusal(verifier: Verifier, reference: Any) -> str | None:
    """Why a reference is refused; None when it is taken. Any other exception fails the test."""
    try:
        verifier.prepare(reference)
    except InvalidReference as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def verifiers() -> dict[str, Verifier]:
    ours = [entry for entry in entries() if entry.plugin is None and entry.origin.count("/verifiers/")]
    return {entry.name: built(entry.name) for entry in ours if not missing_options(entry)}


@given(JSON | INSTRUCTED | CODE | TESTED)
@settings(max_examples=150, deadline=None)
def test_any_reference_is_taken_or_refused_with_a_sentence(verifiers: dict[str, Verifier], reference: Any):
    for name, verifier in verifiers.items():
        assert refusal(verifier, reference) != "", name


@given(JSON, st.text(max_size=30))
@settings(max_examples=80, deadline=None)
def test_what_was_taken_can_be_scored_at_once_or_asks_a_worker(verifiers: dict[str, Verifier], reference: Any, text: str):
    for name, verifier in verifiers.items():
        score_now = getattr(verifier, "score_now", None)
        if score_now is None:
            continue
        if refusal(verifier, reference) is not None:
            continue
        for completion in (text, f"\\boxed{{{text}}}"):
            assert isinstance(score_now(Task("t", "", reference, "mix"), completion, num_tokens=3), Score | None), name


@pytest.mark.parametrize(
    "reference", [{"a": [1]}, [], None, True, "", {"instruction_id_list": ["x"]}, float("nan"), "\ud800", 10**4000]
)
def test_well_known_nonsense_is_no_exception_either(verifiers: dict[str, Verifier], reference: Any):
    for name, verifier in verifiers.items():
        assert refusal(verifier, reference) != "", name


def test_closing_them_all_is_possible(verifiers: dict[str, Verifier]):
    for verifier in verifiers.values():
        asyncio.run(verifier.close())
