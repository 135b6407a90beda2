"""The report in a real browser: it draws, it filters, it follows a prompt, and whatever a model wrote stays text."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from browser import Page, browser, chromium
from report_runs import METRICS, group, make_run
from test_report import EVALUATED, HOSTILE

from grpo.report.page import write_comparison, write_report
from verifiers.types import Message

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="there is no chromium here: apt-get install chromium"),
]
TEXTS = "[...document.querySelectorAll('.cards pre')].map((pre) => pre.textContent)"
LISTED = "[...document.querySelectorAll('.groups .where')].map((where) => where.textContent)"
COUNT = "document.querySelector('.count').textContent"


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A browser's page that must not have complained, nor asked the network for anything."""
    async with browser() as opened:
        yield opened
        assert opened.troubles == []
        assert [url for url in opened.requests if not url.startswith(("file:", "about:"))] == []


def run_of_three_steps(folder: Path) -> Path:
    """The prompt t1 comes at every step, the others once; the first completion of each group is right."""
    metrics = {step: METRICS | {"reward/mean": step / 4} for step in (1, 2, 3)}
    metrics[0] = EVALUATED
    groups = {step: [group([1, 0, 0.5], task="t1"), group([1, None], task=f"only{step}", prompt="2+2=")] for step in (1, 2, 3)}
    return make_run(folder, metrics=dict(sorted(metrics.items())), groups=groups)


async def choose(page: Page, name: str, value: str) -> None:
    await page.value(
        f"(() => {{ const field = document.querySelector('[name={name}]'); field.value = {value!r};"
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    await page.value("new Promise((done) => setTimeout(done, 300))")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True])
async def test_the_page_draws_and_nothing_sticks_out(page: Page, tmp_path: Path, width: int, dark: bool):
    await page.open(write_report(run_of_three_steps(tmp_path / "run")).path, width=width, dark=dark)
    assert await page.value("document.title") == "run"
    assert await page.value("document.querySelectorAll('svg polyline').length") >= 10
    assert await page.value("document.querySelectorAll('svg polygon.band').length") >= 1
    assert "NaN" not in await page.value("document.querySelector('main').innerHTML")
    assert await page.value("document.documentElement.scrollWidth - innerWidth") <= 0
    ink, paper = [await page.value(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")]
    assert (sum(map(int, ink[4:-1].split(", "))) > sum(map(int, paper[4:-1].split(", ")))) == dark
    shot = tmp_path / "shot.png"
    await page.screenshot(shot)
    assert shot.stat().st_size > 10_000


async def test_the_address_holds_the_filters(page: Page, tmp_path: Path):
    await page.open(write_report(run_of_three_steps(tmp_path / "run")).path, address="#step=2&outcome=wrong&verifier=math")
    assert await page.value(LISTED) == ["step 21/3"]
    assert await page.value(TEXTS) == ["text 1 of t1"]
    assert await page.value(COUNT) == "1 completion in 1 of 6 groups "
    assert await page.value("[...document.querySelectorAll('select')].map((one) => one.value)") == ["2", "wrong", "math"]


async def test_filters_narrow_the_list_and_are_written_into_the_address(page: Page, tmp_path: Path):
    await page.open(write_report(run_of_three_steps(tmp_path / "run")).path)
    assert await page.value(COUNT) == "15 completions in 6 of 6 groups "
    await choose(page, "outcome", "infra")
    assert await page.value(COUNT) == "3 completions in 3 of 6 groups "
    await choose(page, "step", "3")
    assert await page.value("location.hash") == "#step=3&outcome=infra"
    await choose(page, "q", "of only3")
    assert await page.value("document.querySelector('.cards mark').textContent") == "of only3"
    await choose(page, "q", "nowhere")
    assert "Clear a filter" in await page.value("document.querySelector('.detail').textContent")
    await page.value("document.querySelector('form button').click()")
    assert await page.value(COUNT) == "15 completions in 6 of 6 groups "


async def test_every_score_shows_its_reason(page: Page, tmp_path: Path):
    await page.open(write_report(run_of_three_steps(tmp_path / "run")).path)
    rows = await page.value(
        "[...document.querySelector('.scores').rows].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert rows == [["math", "correct", "1", "as it is"]]


async def test_a_prompt_is_followed_across_steps(page: Page, tmp_path: Path):
    await page.open(write_report(run_of_three_steps(tmp_path / "run")).path, address="#task=t1")
    assert await page.value(LISTED) == ["step 11/3", "step 21/3", "step 31/3"]
    timeline = "[...document.querySelectorAll('.timeline button')]"
    assert await page.value(f"{timeline}.length") == 3
    await page.value(f"{timeline}[2].click()")
    assert await page.value("location.hash") == "#task=t1&open=3.0"
    assert (await page.value("document.querySelector('.detail h3').textContent")).startswith("Step 3, prompt t1")


async def test_a_conversation_is_shown_turn_by_turn(page: Page, tmp_path: Path):
    talk = (Message("system", "be brief"), Message("user", "1+1=?\n<b>"))
    run = make_run(tmp_path / "run", groups={1: [group([1], prompt=talk)]})
    await page.open(write_report(run).path)
    assert await page.value("document.querySelector('.prompt-text').textContent") == "system: be brief\n\nuser: 1+1=?\n<b>"


async def test_charts_are_read_and_opened_with_the_keyboard(page: Page, tmp_path: Path):
    await page.open(write_report(run_of_three_steps(tmp_path / "run")).path)
    await page.value("document.querySelector('svg').focus()")
    await page.press("ArrowLeft")
    await page.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert await page.value("document.querySelector('.chart .at').textContent") == "step 2"
    assert (await page.value("document.querySelector('.legend b').textContent")).startswith("0.5")
    await page.press("Enter")
    assert await page.value("location.hash") == "#step=2"
    label = await page.value("document.querySelector('svg').getAttribute('aria-label')")
    assert label == "Mean reward. reward: from 0.25 at step 1 to 0.75 at step 3. The higher the better."


async def test_whatever_a_model_wrote_stays_text(page: Page, tmp_path: Path):
    texts = [*HOSTILE, "x" * 200_000, "a\n" * 5000]
    hostile = group([0.5] * len(texts), texts=texts, task=HOSTILE[0], prompt=HOSTILE[1])
    run = make_run(tmp_path / "<img src=x onerror=hacked=3>", groups={1: [hostile]})
    path = write_report(run, tmp_path / "page.html").path
    for width in (1280, 390):
        await page.open(path, width=width, address="#q=script")
        assert await page.value("typeof window.hacked") == "undefined"
        assert await page.value("document.querySelectorAll('main img, main script').length") == 0
        assert await page.value("document.documentElement.scrollWidth - innerWidth") <= 0
    await page.open(path)
    shown = await page.value(TEXTS)
    assert shown[:2] == HOSTILE[:2]
    assert shown[2] == "{{rollouts}} {{script}} {{title}} \\x00\\x1b[31m\\x07 \\u2028\\u2029 \\u202eevil\\u202c \\ufeff"
    assert shown[3] == "\\ud800 alone \\udfff \U0001f600 é 中 \\x0d\n\t"
    assert shown[4] == HOSTILE[4]
    assert "null" not in await page.value("document.querySelector('.detail').textContent")
    assert "188000 characters are left out here" in shown[5]


@pytest.mark.parametrize(
    ("metrics", "stored"),
    [
        ({}, False),
        ({1: METRICS}, True),
        ({0: EVALUATED}, False),
        ({5: {"loss/value": -0.5}}, False),
        ({1: {"loss/value": 0.0}}, True),
    ],
)
async def test_a_run_that_has_little_to_show_has_a_whole_page(page: Page, tmp_path: Path, metrics: dict, stored: bool):
    run = make_run(tmp_path / "run", metrics=metrics, groups={1: [group([None, None])]} if stored else None)
    await page.open(write_report(run).path)
    assert await page.value("document.getElementById('fault').hidden")
    assert await page.value("document.getElementById('rollouts').hidden") == (not stored)
    assert "NaN" not in await page.value("document.querySelector('main').innerHTML")


async def test_compared_runs_lie_over_one_another(page: Page, tmp_path: Path):
    one = run_of_three_steps(tmp_path / "one")
    two = make_run(tmp_path / "two", metrics={1: METRICS, 2: METRICS}, learner={"learning_rate": 1e-5})
    await page.open(write_comparison([one, two], tmp_path / "both.html").path)
    legend = "[...document.querySelector('.legend').children].map((line) => line.textContent)"
    assert [line.split("0.")[0] for line in await page.value(legend)] == ["one", "two"]
    strokes = "[...document.querySelectorAll('.chart')[0].querySelectorAll('polyline')].map((line) => line.style.stroke)"
    assert await page.value(strokes) == ["var(--c0)", "var(--c1)"]
    assert "learner.learning_rate" in await page.value("document.querySelector('#config table').textContent")
    assert await page.value("document.getElementById('rollouts').hidden")
