"""A file of recorded completions in, a file of verdicts out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.cli import main
from sandbox.errors import UserError
from verifiers.recorded import verify_file
from verifiers.reward import RewardMix


def verify(tmp_path: Path, *lines: str | bytes | dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    written = []
    for line in lines:
        text = json.dumps(line) if isinstance(line, dict) else line
        written.append(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "cases.jsonl").write_bytes(b"\n".join(written))
    verify_file(tmp_path / "cases.jsonl", tmp_path / "out.jsonl", progress=False, **options)
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def case(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "prompt": "6 * 7?", "reference": "42", "rewards": "math", "completion": r"\boxed{42}"} | changes


def test_a_line_out_has_the_reward_and_every_score_with_its_reason(tmp_path: Path):
    (line,) = verify(tmp_path, case())
    seconds = line["scores"][0].pop("seconds")
    assert seconds >= 0
    score = {"verifier": "math", "outcome": "correct", "value": 1.0, "reason": "the same text", "extracted": "42"}
    assert line == {"id": "a", "reward": 1.0, "cause": None, "scores": [score]}


BAD_LINES = [
    ("not json", "line 2: not JSON"),
    ("[1, 2]", "line 2: not a JSON object"),
    ("[" * 100_000, "line 2: not JSON"),
    (b"\xff\xfe", "line 2: not UTF-8"),
    ('{"id": "b", "reference": ' + "1" * 5000 + "}", "line 2: not JSON: Exceeds the limit"),
    ({"id": "b", "reference": "1", "rewards": "math"}, "completion is missing"),
    (case(id="b", completion=7), "completion is 7, but it should be text"),
    (case(id="b", rewards="mth"), "its rewards are 'mth', which is not a reward mix. Did you mean math?"),
    (case(id="b", reference=""), "states no answer"),
    (case(id="b", reference={"cases": []}), "math needs an answer"),
]


@pytest.mark.parametrize(("bad", "cause"), BAD_LINES)
def test_a_bad_line_becomes_a_line_out_with_its_cause_and_the_rest_goes_on(tmp_path: Path, bad: Any, cause: str):
    before, fault, after = verify(tmp_path, case(id="a"), bad, case(id="c"))
    assert (before["reward"], after["reward"]) == (1.0, 1.0)
    assert fault["reward"] is None
    assert fault["scores"] == []
    assert cause in fault["cause"]
    assert fault["id"] == (bad["id"] if isinstance(bad, dict) else None)


def test_lines_come_out_in_the_order_they_went_in_though_some_take_longer(tmp_path: Path):
    cases = [case(id=i, reference=r"\sqrt{8}", completion=r"\boxed{2\sqrt2}") if i % 7 == 0 else case(id=i) for i in range(100)]
    lines = verify(tmp_path, *cases, workers=1)
    assert [line["id"] for line in lines] == list(range(100))
    assert {line["reward"] for line in lines} == {1.0}


def test_the_number_of_tokens_is_passed_on_where_it_was_recorded(tmp_path: Path):
    mixes = {"short": RewardMix.model_validate({"length": {"options": {"max_tokens": 10, "buffer_tokens": 4}}})}
    known, unknown = verify(tmp_path, case(rewards="short", num_tokens=8), case(rewards="short"), mixes=mixes)
    assert known["reward"] == 0.5
    assert unknown["reward"] is None
    assert "number of tokens" in unknown["cause"]


def test_any_text_survives_the_way_through_the_file(tmp_path: Path):
    (line,) = verify(tmp_path, case(completion="\ud800\x00 \\boxed{4\ud8002}"))
    assert line["scores"][0]["extracted"] == "4\ud8002"
    assert line["reward"] == 0.0


FIELDS = {"reference": "{gold}", "rewards": "math", "completion": r"It is \boxed{{{answer}}}, $n"}


def test_fields_of_other_names_are_filled_in(tmp_path: Path):
    right, wrong, missing = verify(
        tmp_path,
        {"id": 1, "gold": 42, "answer": "42"},
        {"id": 2, "gold": "42", "answer": "41"},
        {"id": 3, "gold": "42"},
        fields=FIELDS,
    )
    assert (right["reward"], wrong["reward"], missing["reward"]) == (1.0, 0.0, None)
    assert missing["cause"] == f"line 3: it has no field 'answer', which completion is made of: {FIELDS['completion']}"


def test_a_template_that_is_none_says_so(tmp_path: Path):
    (line,) = verify(tmp_path, {"id": 1, "answer": "42"}, fields={"completion": r"\boxed{answer"})
    assert "Double the braces that are none" in line["cause"]


def test_the_command_line_takes_templates(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "cases.jsonl").write_text(json.dumps({"id": 1, "gold": "42", "answer": "so it is 42"}))
    command = ["verify", str(tmp_path / "cases.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    filled = ["reference={gold}", "rewards=math_lenient", "completion={answer}"]
    assert main([*command, *(word for field in filled for word in ("--field", field))]) == 0
    assert "1 lines, 1 judged, 1 correct" in capsys.readouterr().out
    assert main([*command, "--field", "reference"]) == 2


def test_the_summary_counts(tmp_path: Path):
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join([json.dumps(case()), json.dumps(case(completion="?")), "bad", ""]))
    summary = verify_file(cases, tmp_path / "out.jsonl", progress=False)
    assert (summary.num_lines, summary.num_judged, summary.num_correct, summary.mean_reward) == (3, 2, 1, 0.5)
    assert summary.faults == {"bad line": 1}


def test_an_empty_file_is_no_fault(tmp_path: Path):
    assert verify(tmp_path) == []


def test_a_missing_file_and_writing_over_the_input_are_the_users_mistakes(tmp_path: Path):
    with pytest.raises(UserError, match="there is no file"):
        verify_file(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
    (tmp_path / "cases.jsonl").write_text("")
    with pytest.raises(UserError, match="also the file to read"):
        verify_file(tmp_path / "cases.jsonl", tmp_path / "cases.jsonl")
    with pytest.raises(UserError, match="No such file or directory"):
        verify_file(tmp_path / "cases.jsonl", tmp_path / "no" / "out.jsonl")


PLUGIN = """
from verifiers.registry import rule
from verifiers.types import correct, wrong

@rule("polite")
def polite(task, text):
    return correct("") if "please" in text else wrong("")

@rule("picky")
def picky(task, text, *, word: str):
    return correct("") if word in text else wrong("")
"""


def test_plugins_judge_too(tmp_path: Path):
    plugin = tmp_path / "polite_rule.py"
    plugin.write_text(PLUGIN)
    mixes = {"manners": RewardMix.model_validate({"polite": {}})}
    (line,) = verify(tmp_path, case(rewards="manners", completion="please"), mixes=mixes, plugins=[str(plugin)])
    assert line["reward"] == 1.0


def test_a_rule_of_a_plugin_is_a_mix_of_its_own_name_unless_only_a_config_could_complete_it(tmp_path: Path):
    plugin = tmp_path / "polite_rule.py"
    plugin.write_text(PLUGIN)
    right, wrong, unknown = verify(
        tmp_path,
        case(rewards="polite", completion="please"),
        case(rewards="polite", completion="now"),
        case(rewards="picky"),
        plugins=[str(plugin)],
    )
    assert (right["reward"], wrong["reward"], unknown["reward"]) == (1.0, 0.0, None)
    assert "its rewards are 'picky', which is not a reward mix" in unknown["cause"]
