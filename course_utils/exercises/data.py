"""Exercises of notebook 02: rules, prompts of dialogues, counts."""

import copy
from collections.abc import Callable

import pyarrow as pa

from course_utils.data import sources
from course_utils.exercises import solutions
from course_utils.exercises.feedback import (
    as_bool,
    as_number,
    expect,
    no_return,
    returned,
)
from course_utils.exercises.mechanism import exercise, judge

_ROWS = pa.table(
    {
        "status": [
            "unchanged",
            "tie",
            "swapped",
            "unchanged",
            "unchanged",
            "swapped",
            "swapped",
        ],
        "chosen_score": [9.0, 10.0, 8.0, 7.0, 10.0, 9.0, None],
        "in_gsm8k_train": [False, False, False, False, True, False, False],
    }
)


@exercise(
    "2.1",
    solutions.my_rule,
    minutes=5,
    difficulty=1,
    trains="a rule over columns",
    hints=(
        "Join three conditions with `and`. Columns stand bare, words stand in quotes.",
        "The pieces are: status != 'tie', chosen_score >= 8, not in_gsm8k_train.",
    ),
    value=True,
    mistakes={
        "a string": True,
        "does not run": "status != tie and chosen_score >= 8",
        "yes or no": "chosen_score",
        "ties are kept": "chosen_score >= 8 and not in_gsm8k_train",
        "changed sides": "status == 'unchanged' and chosen_score >= 8 "
        "and not in_gsm8k_train",
        "at least 8": "status != 'tie' and chosen_score > 8 and not in_gsm8k_train",
        "flagged": "status != 'tie' and chosen_score >= 8",
        "keeps other rows": "status != 'tie' and not in_gsm8k_train",
    },
)
def my_rule(attempt: object) -> None:
    """A rule over the columns of intel-orca, as a string."""
    why = "a rule is a string that compares columns with values"
    expect(isinstance(attempt, str), why, attempt, "'... and ...'")
    try:
        mask = sources.Rule(attempt).mask(_ROWS)
        got = mask.fill_null(False).to_pylist()  # a missing value keeps no row
    except (ValueError, KeyError) as error:
        why = "the rule does not run; names of columns stand bare, words in quotes"
        names = ", ".join(_ROWS.column_names)
        expect(False, f"{why}: {error}", attempt, f"columns: {names}")
    why = "a rule says yes or no of every row"
    expect(all(isinstance(each, bool) for each in got), why, got, "a column of bool")
    expected = [True, False, True, False, False, True, False]
    why = "ties are kept: two equal ratings say nothing about which answer is better"
    expect(not got[1], why, got, expected)
    why = "flagged rows are kept: they resemble problems that benchmarks ask"
    expect(not got[4], why, got, expected)
    why = "pairs that changed sides are good pairs, only ties are not"
    expect(got[5], why, got, expected)
    why = "at least 8: the row whose score is 8 belongs to it"
    expect(got[2], why, got, expected)
    expect(got == expected, "the rule keeps other rows", got, expected)


def _turn(role, content):
    return {"role": role, "content": content}


_BEFORE = [
    _turn("user", "I am Ada."),
    _turn("assistant", "Hello."),
    _turn("user", "Who?"),
]
_DIALOGUE = {
    "prompt": "I am Ada.",
    "chosen": [*_BEFORE, _turn("assistant", "You are Ada.")],
    "rejected": [*_BEFORE, _turn("assistant", "You are Ben.")],
}


@exercise(
    "2.2",
    solutions.prompt_of,
    minutes=5,
    difficulty=1,
    trains="the prompt of a dialogue",
    hints=(
        "The answer is the last message of `chosen`. What does the model read before "
        "it?",
        "A slice of row['chosen'] without its last message; a slice makes a new list "
        "and leaves the row as it was.",
    ),
    mistakes={
        "that is only the first turn; the question in it is not the one answered": (
            lambda row: row["chosen"][:1]
        ),
        "a prompt is a list of messages": lambda row: row["prompt"],
        "the chosen answer itself is in the prompt: the model would only copy it": (
            lambda row: row["chosen"]
        ),
        "that is only the last question; who asks stands in the turns before it": (
            lambda row: row["chosen"][-2:-1]
        ),
        "the row was changed": lambda row: row["chosen"].pop() and row["chosen"],
        "the assistant's earlier turns belong to the context too": (
            lambda row: [m for m in row["chosen"] if m["role"] == "user"]
        ),
        "is there a return": no_return,
        "these are not the context of the answer": lambda row: [],
    },
)
def prompt_of(attempt: Callable) -> None:
    """The prompt of a multi-turn row: the messages before the answer."""
    row = copy.deepcopy(_DIALOGUE)
    got = returned(attempt, row)
    why = "a prompt is a list of messages here, each with role and content"
    expect(isinstance(got, list), why, got, _BEFORE)
    why = "the row was changed: whoever reads it next finds an answer missing"
    expect(row == _DIALOGUE, why, row["chosen"], _DIALOGUE["chosen"])
    judge("2.2", attempt, [(_DIALOGUE,)], lambda got: got)


@exercise(
    "2.3",
    solutions.swapped_digits,
    minutes=10,
    difficulty=2,
    trains="checking a published count",
    hints=(
        "Compare the two numbers as text, place by place. In how many places do they "
        "differ?",
        "Exactly two places must differ, and the digit of one at the first place is "
        "the digit of the other at the second place, both ways round.",
    ),
    mistakes={
        "a sign, and no proof": lambda a, b: (a - b) % 9 == 0 and a != b,
        "equal numbers": lambda a, b: sorted(str(a)) == sorted(str(b)),
        "three digits": lambda a, b: a != b and sorted(str(a)) == sorted(str(b)),
        "not only neighbours": lambda a, b: (
            a != b
            and any(
                str(b) == str(a)[:i] + str(a)[i + 1] + str(a)[i] + str(a)[i + 2 :]
                for i in range(len(str(a)) - 1)
            )
        ),
        "7,958 and 7,985": lambda a, b: False,
        "is there a return": no_return,
    },
)
def swapped_digits(attempt: Callable) -> None:
    """Whether one number becomes the other when two digits change places."""
    for a, b, expected, why in (
        (7958, 7985, True, "7,958 and 7,985 differ by two digits that changed places"),
        (2299, 2299, False, "two equal numbers have no swap between them"),
        (100, 109, False, "a difference divisible by 9 is a sign, and no proof"),
        (123, 231, False, "three digits moved from 123 to 231, and a swap moves two"),
        (1234, 1432, True, "any two digits may change places, not only neighbours"),
        (12, 120, False, "a digit more is no swap"),
        (5924, 5922, False, "one digit alone cannot change places"),
        (210, 120, True, "digits at the beginning may change places too"),
    ):
        got = as_bool(returned(attempt, a, b), "do two digits change places?")
        expect(got == expected, f"{why}: {a} and {b}", got, expected)


def _runs(text, run):
    said = text.split()
    return [tuple(said[i : i + run]) for i in range(len(said) - run + 1)]


@exercise(
    "2.4",
    solutions.similarity,
    minutes=10,
    difficulty=2,
    trains="near repeats: runs of words",
    hints=(
        "Make a set of runs for each text: tuples of `run` words that follow each "
        "other.",
        "words[i : i + run] for i in range(len(words) - run + 1). Then divide the "
        "size of the intersection by the size of the union, and mind an empty union.",
    ),
    mistakes={
        "a word in the middle breaks two runs of two: this counts words, not runs": (
            lambda a, b, run: solutions.similarity(a, b, 1)
        ),
        "the runs of either text count below the line, not of only one of the two": (
            lambda a, b, run: (
                len({*_runs(a, run)} & {*_runs(b, run)}) / len({*_runs(a, run)})
            )
        ),
        "the last run is missing": lambda a, b, run: (
            len({*_runs(a, run)[:-1]} & {*_runs(b, run)[:-1]})
            / len({*_runs(a, run)[:-1]} | {*_runs(b, run)[:-1]})
        ),
        "a text with no run at all is like no other": lambda a, b, run: (
            solutions.similarity(a, b, run) if _runs(a, run) else 1.0
        ),
        "is there a return": no_return,
        "this pair is judged wrongly": lambda a, b, run: 0.5,
    },
)
def similarity(attempt: Callable) -> None:
    """Jaccard similarity of the runs of words of two texts."""
    cases = [
        ("a b c d e f", "a b c d x e f"),
        ("a b c", "a b c d e"),
        ("a b c", "x b c"),
    ]
    judge("2.4", attempt, [(*c, 2) for c in cases], as_number, "the similarity")
    judge("2.4", attempt, [("a", "b c", 2)], as_number, "the similarity")
