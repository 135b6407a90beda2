"""Where the answer is looked for."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.extract import Extraction, boxed_answer, boxed_spans, final_region, last_answer, lenient_answer, only_formula


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("no tags", "no tags"),
        ("<think>a</think>b", "b"),
        ("the prompt opened it</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>never ends \\boxed{1}", ""),
        ("b<think>c", "b"),
        ("<think>a</think>b<think>c", "b"),
        ("", ""),
    ],
)
def test_the_final_region_is_what_follows_the_reasoning(text: str, region: str):
    assert final_region(text) == region


@pytest.mark.parametrize(
    ("region", "extraction"),
    [
        (r"so \boxed{5}", Extraction("5")),
        (r"\boxed{\frac{1}{2}}", Extraction(r"\frac{1}{2}")),
        (r"\boxed {5}", Extraction("5")),
        (r"\fbox{5}", Extraction("5")),
        (r"\boxed{\{1, 2\}}", Extraction(r"\{1, 2\}")),
        (r"\boxed{\boxed{5}}", Extraction(r"\boxed{5}")),
        (r"\boxed{1} so in all \boxed{2}", Extraction("2", ("1",))),
        (r"\boxed{2} so in all \boxed{2}", Extraction("2")),
        (r"\boxed{1}, \boxed{2} and \boxed{3}", Extraction("1, 2, 3")),
        (r"$x = \boxed{1}$ \text{ or } $x = \boxed{2}$", Extraction("1, 2")),
        (r"\boxed{1} \text{ for part (a) and } \boxed{2}", Extraction("1, 2")),
        (r"\boxed{1} \text{ hence } \boxed{2}", Extraction("2", ("1",))),
        (r"\boxed{28}\%", Extraction(r"28\%")),
        (r"$\boxed{28}$ percent", Extraction(r"28\%")),
        (r"{ \boxed{5}", Extraction("5")),
        (r"} \boxed{5}", Extraction("5")),
        (r"\boxed{5} \boxed{6", Extraction("5")),
        (r"\boxed{5", None),
        (r"\boxed 5", None),
        ("5", None),
    ],
)
def test_the_last_balanced_box_is_the_answer(region: str, extraction: Extraction | None):
    assert boxed_answer(region) == extraction


@pytest.mark.parametrize(
    ("region", "answer"),
    [
        ("42", "42"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("The cost is 40 plus 2, so 42.", "42"),
        ("It is $x^2$ as we saw", "x^2"),
        ("It is $28$ percent", r"28\%"),
        ("First $3$ and then we get 4", "4"),
        ("The final answer is $7$. I checked 3 times.", "7"),
        ("Final Answer: The largest n is 34.", "34"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("Sum: 2,74 a piece", "2,74"),
        ("how many $? just about 1$", "1"),
        ("The roots are $1$ and $2$", "1, 2"),
        ("It is 5 or 6.", "5, 6"),
        ("The answer is $x=1$, $x=2$, or $x=3$. I checked 9 times.", "x=1, x=2, x=3"),
        ("The answer is not 5. It is 6.", "6"),
        ("We get \\[ \n 9 \n \\]", " \n 9 \n "),
    ],
)
def test_a_lenient_answer_is_the_last_one_stated(region: str, answer: str):
    found = last_answer(region)
    assert found is not None
    assert found.answer == answer


@pytest.mark.parametrize("region", ["We get $ \n 9 \n $", "We get \\( \n 9 \n \\)", "so \\( 9 and that is 9"])
def test_no_digits_are_rescued_from_a_formula_that_does_not_end(region: str):
    assert last_answer(region) is None


@pytest.mark.parametrize(
    ("region", "answer"),
    [
        (r"\boxed{5} and nothing else", "5"),
        (r"\boxed{5}, so the answer is 6", "5"),  # only a *final* answer is later than the box
        (r"$a = \boxed{5}$. Final Answer: The final answer is $60$. I hope it is correct.", "60"),
        (r"$a = \boxed{5}$. The final answer is correct.", "5"),
        (r"**Final Answer**: \boxed{7}", "7"),
        ("no box, the answer is 8", "8"),
    ],
)
def test_a_final_answer_after_the_box_is_the_lenient_answer(region: str, answer: str):
    found = lenient_answer(region)
    assert found is not None
    assert found.answer == answer


@pytest.mark.parametrize("region", ["", "   ", "nothing was found here"])
def test_a_text_that_states_nothing_has_no_lenient_answer(region: str):
    found = last_answer(region)
    assert found is None or not found.answer.strip(" abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize(
    ("answer", "formula"),
    [
        ("the answer is $5$", "5"),
        ("$5$", "$5$"),
        ("either $5$ or $6$", "either $5$ or $6$"),
        ("$5$ but maybe 6", "$5$ but maybe 6"),
        ("not $5$ = 6", "not $5$ = 6"),
    ],
)
def test_words_around_one_formula_are_left_out(answer: str, formula: str):
    assert only_formula(answer) == formula


@given(
    st.text(alphabet="\\{}boxed 1", max_size=80)
    | st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\{", "\\}", "\\\\", "1"])).map("".join)
)
def test_every_box_is_balanced_and_boxes_do_not_overlap(text: str):
    previous_end = 0
    for start, end in boxed_spans(text):
        assert start >= previous_end
        previous_end = end
        content = text[start:end]
        assert content.startswith("\\boxed")
        plain = content.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        assert plain.count("{") == plain.count("}")


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 100_000, "{" * 700_000 + "\\boxed{1}", "\\boxed{1}" * 50_000, "<think>" * 100_000, "$" * 500_000]
)
def test_a_megabyte_is_searched_in_well_under_a_second_or_so(text: str):
    started = time.perf_counter()
    boxed_answer(final_region(text))
    last_answer(final_region(text))
    assert time.perf_counter() - started < 3
