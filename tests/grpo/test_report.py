"""`grpo report` and `grpo compare`: what stands in the page, whatever became of the run. How it looks is test_report_browser.py."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_runs import METRICS, charts, group, make_run, page_data

from grpo.cli import main, make_parser
from grpo.config import RunConfig
from grpo.folder import RunFolder
from grpo.plan import Stage
from grpo.report.estimates import accuracy_interval
from grpo.report.page import write_comparison, write_report
from grpo.stages import write_report as write_stage_report

EVALUATED = {"eval/sampled_accuracy": 0.25, "eval/greedy_accuracy": 0.5, "eval/num_tasks": 64, "time/evaluate_s": 2.0}


def reported(run: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return page_data(write_report(run, **options).path)


def test_the_page_lies_in_the_run_folder_and_the_command_says_what_it_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", groups={1: [group([1, 0])]})
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert "All 2 completions that the run stored, of 1 step." in said
    assert said.rstrip().endswith(f"MB -> {run / 'report.html'}")
    assert not list(run.glob("*.partial"))


def test_the_curves_are_the_metrics(tmp_path: Path):
    page, _ = reported(make_run(tmp_path / "run", metrics={1: METRICS, 2: METRICS | {"reward/mean": 0.75}}))
    (series,) = charts(page)["Mean reward"]["series"]
    assert (series["steps"], series["values"]) == ([1, 2], [0.5, 0.75])
    assert series["meaning"] == "mean reward of the scored completions"
    assert charts(page)["Mean reward"]["better"] == "higher"
    outcomes = charts(page)["Outcomes of math"]
    assert (outcomes["kind"], [one["name"] for one in outcomes["series"]]) == ("stack", ["correct", "wrong"])
    times = {one["name"]: one["values"][0] for one in charts(page)["Seconds of a step"]["series"]}
    assert times == {"waiting for groups": 1.0, "update": 0.5, "the rest": pytest.approx(0.25)}


def test_no_metric_is_lost(tmp_path: Path):
    own = {"mine/speed": 3.0, "sandbox/ok": 5.0, "policy/kl": 0.01, "policy/clipped_fraction": 0.0}
    page, _ = reported(make_run(tmp_path / "run", metrics={1: METRICS | own}))
    assert page["sections"][-1]["title"] == "Everything else"
    assert {"mine/speed", "sandbox/ok", "policy/clipped_fraction"} <= charts(page).keys()
    assert "KL to the reference policy" in charts(page)


def test_held_out_accuracy_has_the_interval_of_its_tasks(tmp_path: Path):
    page, _ = reported(make_run(tmp_path / "run", metrics={0: EVALUATED, 3: METRICS}))
    sampled, greedy = charts(page)["Held-out accuracy (pass@1)"]["series"]
    assert (sampled["low"][0], sampled["high"][0]) == pytest.approx(accuracy_interval(0.25, 64), abs=1e-5)
    assert (greedy["low"][0], greedy["high"][0]) == pytest.approx(accuracy_interval(0.5, 64), abs=1e-5)


def test_a_run_that_did_not_log_the_number_of_tasks_says_it_in_its_config(tmp_path: Path):
    old = {name: value for name, value in EVALUATED.items() if name != "eval/num_tasks"}
    page, _ = reported(make_run(tmp_path / "run", metrics={0: old}, evaluation={"num_tasks": 16}))
    sampled, _ = charts(page)["Held-out accuracy (pass@1)"]["series"]
    assert (sampled["low"][0], sampled["high"][0]) == pytest.approx(accuracy_interval(0.25, 16), abs=1e-5)


def test_pass_at_k_of_the_training_prompts(tmp_path: Path):
    """Two prompts of 4 completions, 1 and 4 of them correct: pass@1 is (0.25 + 1) / 2, pass@4 is 1."""
    page, _ = reported(make_run(tmp_path / "run", groups={2: [group([1, 0, 0, 0]), group([1, 1, 1, 1], task="u")]}))
    one, four = charts(page)["pass@k, training prompts"]["series"]
    assert (one["name"], one["steps"], one["values"]) == ("pass@1", [2], [0.625])
    assert 0.0 < one["low"][0] < 0.3  # two prompts say little
    assert 0.9 < one["high"][0] <= 1.0
    assert (four["name"], four["values"]) == ("pass@4", [1.0])


def test_unscored_completions_are_no_failures(tmp_path: Path):
    page, _ = reported(make_run(tmp_path / "run", groups={1: [group([1, None, None, 0]), group([1, 1, 1, 1], task="u")]}))
    values = {one["name"]: one["values"] for one in charts(page)["pass@k, training prompts"]["series"]}
    assert values == {"pass@1": [0.75], "pass@4": [1.0]}  # of the first two were scored: it says nothing about four


def test_what_is_left_out_is_said(tmp_path: Path):
    run = make_run(tmp_path / "run", groups={step: [group([1, 0], task=f"t{i}") for i in range(8)] for step in (1, 2, 3)})
    page, rollouts = reported(run, per_step=4)
    assert page["rollouts"].startswith("12 of the 48 completions that the run stored, from all 3 steps")
    assert [(one["step"], len(one["completions"])) for one in rollouts] == [(step, 2) for step in (1, 1, 2, 2, 3, 3)]
    page, rollouts = reported(run, take_all=True)
    assert len(rollouts) == 24
    assert page["rollouts"] == "All 48 completions that the run stored, of 3 steps."


HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'><!--",
    "{{rollouts}} {{script}} {{title}} \x00\x1b[31m\x07 \u2028\u2029 \u202eevil\u202c \ufeff",
    "\ud800 alone \udfff \U0001f600 é 中 \r\n\t",
    "]]>`${1}` \\u003c/script> &lt;b&gt; 'quoted' \"twice\"",
]


def test_nothing_a_model_wrote_is_html(tmp_path: Path):
    run = make_run(tmp_path / "run", groups={1: [group([1] * 5, texts=HOSTILE, task=HOSTILE[0], prompt=HOSTILE[1])]})
    text = write_report(run).path.read_text()
    assert "hacked" not in text
    assert len(re.findall("<script", text)) == 3  # two of data, one that runs
    _, (shown,) = page_data(run / "report.html")
    as_stored = [text.encode("utf-8", "backslashreplace").decode() for text in HOSTILE]
    assert [completion["text"] for completion in shown["completions"]] == as_stored


def test_a_run_of_a_hostile_name_has_a_title_of_text(tmp_path: Path):
    run = make_run(tmp_path / "<img src=x>&'")
    assert "<title>&lt;img src=x&gt;&amp;&#x27;</title>" in write_report(run).path.read_text()


def test_the_page_may_run_its_own_script_alone_and_loads_nothing(tmp_path: Path):
    text = write_report(make_run(tmp_path / "run")).path.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function", text)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda place: make_run(place, metrics={}), "metrics.jsonl holds no step yet"),
        (lambda place: make_run(place, metrics={1: METRICS}), "The run was not evaluated"),
        (lambda place: make_run(place, metrics={1: {"loss/value": 0.3}}, objective={"name": "sft"}), "There are no rollouts"),
        (
            lambda place: make_run(place, metrics={1: METRICS | {"collector/refused_groups": 3}}, groups={1: [group([1, 0])]}),
            "The objective refused some groups",
        ),
    ],
)
def test_what_is_missing_is_said_and_the_rest_is_shown(tmp_path: Path, make: Any, told: str):
    page, _ = reported(make(tmp_path / "run"))
    assert any(told in note for note in page["notes"]), page["notes"]


def test_a_torn_last_line_and_odd_values_are_left_out(tmp_path: Path):
    run = make_run(tmp_path / "run", metrics={1: METRICS})
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "reward/mean": NaN, "note": "text", "x": true, "policy/entropy": 0.5}\n{"step": 3, "rew')
    page, _ = reported(run)
    assert charts(page)["Entropy"]["series"][0]["steps"] == [1, 2]
    assert charts(page)["Mean reward"]["series"][0]["steps"] == [1]
    assert page["status"] == "stopped at step 2 of 3"


def test_a_damaged_config_costs_the_config_alone(tmp_path: Path):
    run = make_run(tmp_path / "run")
    for damage in ("{", "[]", '{"config": 3}'):
        (run / "config.json").write_text(damage)
        page, _ = reported(run)
        assert "Mean reward" in charts(page)
        assert "so the config is unknown" in page["notes"][0]


def test_a_run_says_how_it_stands(tmp_path: Path):
    run = make_run(tmp_path / "run", metrics={2: METRICS})
    assert reported(run)[0]["status"] == "stopped at step 2 of 3"
    folder = RunFolder(run)
    folder.acquire()
    assert reported(run)[0]["status"] == "training, step 2 of 3"
    folder.release()
    assert reported(make_run(tmp_path / "done"))[0]["status"] == "done, step 3 of 3"
    early = make_run(tmp_path / "early", metrics={1: METRICS | {"eval/sampled_accuracy": 0.9}}, evaluation={"stop_at": 0.8})
    assert reported(early)[0]["status"] == "done, step 1 of 3"


@pytest.mark.parametrize("command", [["report"], ["watch"], ["compare", "other"]])
def test_what_is_no_run_is_refused_with_a_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]):
    name, *others = command
    make_run(tmp_path / "runs" / "real")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "file").write_text("")
    places = [str(make_run(tmp_path / other)) for other in others]
    for wrong, said in (
        ("none", "there is no such folder. Give the folder of a run"),
        ("empty", "holds no run: neither config.json"),
        ("file", "this is a file"),
    ):
        assert main([name, *places, str(tmp_path / "runs" / wrong)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert str(tmp_path / "runs" / "real") in error  # what could have been meant


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run")
    assert main(["report", str(run), "-o", str(tmp_path / "none" / "x.html")]) == 2
    assert "the page cannot be written: No such file or directory. Say with -o" in capsys.readouterr().err


def test_the_run_itself_is_left_as_it_is(tmp_path: Path):
    run = make_run(tmp_path / "run", groups={1: [group([1, 0])]})
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    write_report(run, tmp_path / "elsewhere.html")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_compared_runs_share_their_charts_and_show_what_differs(tmp_path: Path):
    one = make_run(tmp_path / "one", metrics={1: METRICS | EVALUATED})
    two = make_run(tmp_path / "two", metrics={1: METRICS, 2: METRICS}, learner={"learning_rate": 1e-5})
    page, rollouts = page_data(write_comparison([one, two], tmp_path / "both.html").path)
    assert not rollouts
    shared = charts(page)["Mean reward"]["series"]
    assert [(series["name"], series["color"], series["steps"]) for series in shared] == [("one", 0, [1]), ("two", 1, [1, 2])]
    greedy = charts(page)["Held-out accuracy (pass@1): greedy"]["series"]
    assert [(series["name"], series["color"]) for series in greedy] == [("one", 0)]
    assert page["tables"][0]["rows"] == [["learner.learning_rate", "1e-06", "1e-05"]]
    assert [tile["label"] for tile in page["tiles"]] == ["one", "two"]


def test_a_run_keeps_its_color_where_another_lacks_the_metric(tmp_path: Path):
    one = make_run(tmp_path / "one", metrics={1: METRICS})
    two = make_run(tmp_path / "two", metrics={1: METRICS | EVALUATED})
    page, _ = page_data(write_comparison([one, two], tmp_path / "both.html").path)
    assert [series["color"] for series in charts(page)["Held-out accuracy (pass@1): greedy"]["series"]] == [1]


def test_runs_of_one_name_are_told_apart_and_one_run_is_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    same = [make_run(tmp_path / place / "run") for place in ("a", "b")]
    page, _ = page_data(write_comparison(same, tmp_path / "both.html").path)
    assert [tile["label"] for tile in page["tiles"]] == [str(run) for run in same]
    assert main(["compare", str(same[0]), str(same[0]), "-o", str(tmp_path / "x.html")]) == 2
    assert "compare needs two runs or more" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_loads_neither_torch_nor_ray(tmp_path: Path):
    run = make_run(tmp_path / "run", groups={1: [group([1, 0])]})
    script = (
        "import sys\nfrom grpo.cli import main\n"
        f"assert main(['report', {str(run)!r}]) == 0 and main(['watch', '--once', {str(run)!r}]) == 0\n"
        "print('loaded:', [name for name in ('torch', 'ray', 'transformers', 'vllm') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100)
    assert finished.stdout.endswith("loaded: []\n"), finished.stdout + finished.stderr


@pytest.mark.slow
def test_a_run_that_ends_writes_its_report_and_no_fault_there_is_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = RunConfig.model_validate({"tasks": {"source": "tasks.jsonl"}})
    stage = Stage(config, RunFolder(make_run(tmp_path / "run", groups={1: [group([1, 0])]})), tmp_path / "a.toml")
    write_stage_report(stage)
    page, rollouts = page_data(stage.folder.report)
    assert (page["status"], len(rollouts)) == ("done, step 3 of 3", 1)
    write_stage_report(Stage(config, RunFolder(tmp_path / "gone"), tmp_path / "a.toml"))
    assert "no report was written: UserError:" in caplog.text
    assert f"`grpo report {tmp_path / 'gone'}` tries again" in caplog.text


def test_every_file_of_the_page_is_packaged():
    import tomllib

    root = Path(__file__).parents[2]
    packaged = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["grpo.report"]
    files = [path for path in (root / "grpo" / "report").iterdir() if path.is_file() and path.suffix != ".py"]
    assert files
    assert all(any(path.match(pattern) for pattern in packaged) for path in files)


def test_the_commands_of_the_operating_page_parse():
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    asked = [make_parser().parse_args(shlex.split(line)[1:]).command.__module__ for line in lines if line.startswith("grpo ")]
    assert {"grpo.commands.report", "grpo.commands.watch"} <= set(asked)


def test_the_data_of_a_page_is_plain_json_whatever_it_holds(tmp_path: Path):
    page, rollouts = reported(make_run(tmp_path / "run", groups={1: [group([1, None])]}))
    assert json.loads(json.dumps([page, rollouts], allow_nan=False)) == [page, rollouts]
