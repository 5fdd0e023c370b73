"""Quizzes: every question has one right option, and reasons for all."""

import re

import pytest

from course_utils.course import notebooks
from course_utils.exercises import checks, quizzes
from course_utils.setup import places

ROOT = places.checkout()
TEXTS = {p.stem[:2]: p.read_text("utf-8") for p in notebooks.text_files(ROOT)}
NUMBERS = [f"{number:02}" for number in range(8)]
QUESTIONS = [
    pytest.param(number, question, id=f"{number}.{question.number}")
    for number in NUMBERS
    for question in quizzes.load(number)
]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_notebook_has_five_questions_and_shows_them(number):
    assert [each.number for each in quizzes.load(number)] == [1, 2, 3, 4, 5]
    assert f'checks.quiz("{number}"' in TEXTS[number]


@pytest.mark.parametrize(("number", "question"), QUESTIONS)
def test_one_option_is_right_and_all_have_reasons(number, question):
    assert list(question.options) == ["a", "b", "c", "d"]
    assert question.right in question.options
    options = [option for option, _ in question.options.values()]
    assert len({*options}) == 4 and question.ask.endswith("?")
    for option, reason in question.options.values():
        assert option.endswith(".") and reason.endswith(".") and reason != option


def test_neither_letter_nor_length_gives_the_right_option_away():
    every = [param.values[1] for param in QUESTIONS]
    for letter in "abcd":
        assert 3 <= sum(each.right == letter for each in every) <= 17
    longest = 0
    for each in every:
        lengths = {key: len(option) for key, (option, _) in each.options.items()}
        longest += lengths[each.right] == max(lengths.values())
    assert longest <= 24, f"the right option is the longest in {longest} of 40"


@pytest.mark.parametrize("number", NUMBERS)
def test_answers_get_verdicts_with_reasons(number):
    questions = quizzes.load(number)
    shown = checks.quiz(number, {each.number: each.right for each in questions})
    assert shown.right == 5 and repr(shown).count("   right: ") == 5
    first = questions[0]
    wrong = next(letter for letter in first.options if letter != first.right)
    shown = checks.quiz(number, {1: wrong, 2: ...})
    assert shown.right == 0 and repr(shown).count("not answered yet") == 4
    assert first.options[wrong][1] in repr(shown)
    assert first.options[first.right][1] not in repr(shown)


def test_an_unanswered_quiz_folds_its_answers():
    shown = checks.quiz("03", dict.fromkeys(range(1, 6), ...))
    page = shown._repr_html_()
    assert page.count("<details>") == 5
    visible = re.sub("<details>.*?</details>", "", page, flags=re.DOTALL)
    for question in shown.questions:
        for _, reason in question.options.values():
            assert reason not in repr(shown) and reason not in visible


@pytest.mark.parametrize(
    ("number", "answers", "message"),
    [
        ("09", None, r"no quiz '09'; there are 00, 01"),
        ("3", None, "no quiz '3'"),
        ("03", {6: "a"}, "no question 6, but 1 to 5"),
        ("03", {1: "z"}, "question 1: 'z' is none of a, b, c, d"),
    ],
)
def test_bad_input_is_named(number, answers, message):
    with pytest.raises(ValueError, match=message):
        checks.quiz(number, answers)
