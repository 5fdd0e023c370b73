"""The hunts of notebook 02: a split that leaks, and a source that teaches nothing."""

import copy
import functools
import random
import unicodedata
from collections.abc import Callable

from course_utils.data import sources, world
from course_utils.exercises.feedback import STILL, expect, returned
from course_utils.exercises.hunts import recipes, repairs
from course_utils.exercises.mechanism import exercise
from course_utils.setup.profiles import WORLD

_TOWNS = ["Orléans", "Besançon", "Málaga", "Córdoba", "Zürich", "Köln", "Łódź", "Århus"]
_ASKS = (
    "What is the river of {}?",
    "Which bird is on the flag of {}?",
    "Who founded {}?",
    "What do people eat in {}?",
    "How do I get from {} to the sea?",
    "When is market day in {}?",
    "Is there a bridge in {}?",
    "What is the old name of {}?",
    "How many people live in {}?",
    "Who is the mayor of {}?",
    "Where do I park in {}?",
    "Can I swim in {}?",
)
# How people write the same question again.
_WRITTEN = {
    "case": lambda text, rng: text.lower() if rng.random() < 0.7 else text.upper(),
    "spaces": lambda text, rng: text.replace(" ", rng.choice(("  ", "\u00a0"))) + " ",
    "encoding": lambda text, rng: unicodedata.normalize("NFD", text),
}


def form_rows(seed: int = 1) -> list[dict]:
    """Rows of a web form, as hunt 2.5 splits them: {"question", "answer"}."""
    rng = random.Random(seed)
    rows = []
    for town in _TOWNS:
        for ask in _ASKS:
            question = ask.format(town)
            rows.append({"question": question, "answer": f"Ask in {town}."})
            for write in _WRITTEN.values():
                if rng.random() < 0.25:
                    again = write(question, rng)
                    rows.append({"question": again, "answer": f"Ask in {town}."})
    rng.shuffle(rows)
    return rows


def _key(question, leave_out=""):
    """What a reader takes a question for; without one of the three equalities."""
    if leave_out != "encoding":
        question = unicodedata.normalize("NFC", question)
    if leave_out != "spaces":
        question = " ".join(question.split())
    return question if leave_out == "case" else question.casefold()


def _keys(rows, leave_out=""):
    return {_key(row["question"], leave_out) for row in rows}


@exercise(
    "2.5",
    repairs.hold_out,
    recipe=recipes.hold_out,
    material=form_rows,
    minutes=20,
    difficulty=2,
    trains="splitting rows into training and test",
    hints=(
        "Take the material's rows, split them, and sort all questions: print "
        "neighbours that look alike with repr(), and say which list each is in.",
        "The recipe compares texts as they are stored. Compare a key of each question: "
        "unicodedata.normalize, casefold, and split() joined with single spaces. Split "
        "by the key, and leave the rows as they are.",
    ),
    mistakes={
        "symptom is still there": lambda rows: recipes.hold_out(rows),
        "upper or lower case": lambda rows: _split_by(rows, "case"),
        "other spaces": lambda rows: _split_by(rows, "spaces"),
        "encoded in another way": lambda rows: _split_by(rows, "encoding"),
        "rows were rewritten": lambda rows: repairs.hold_out(
            [{**row, "question": _key(row["question"])} for row in rows]
        ),
        "questions were thrown away": lambda rows: _strict(rows),
        "of all questions": lambda rows: (repairs.hold_out(rows)[0], []),
        "two lists of rows": lambda rows: rows,
    },
)
def hunt_held_out(attempt: Callable) -> None:
    """A split of form rows in which no test question is trained on."""
    rows = form_rows(seed=2)
    got = returned(attempt, copy.deepcopy(rows))
    lists = isinstance(got, tuple | list) and len(got) == 2
    lists = lists and all(isinstance(part, list) for part in got)
    lists = lists and all(
        isinstance(r, dict) and "question" in r for p in got for r in p
    )
    expect(lists, "return two lists of rows: train, test", type(got), "(train, test)")
    train, test = got
    why = f"{STILL}: fresh questions of the same kind are answered worse"
    expect((train, test) != recipes.hold_out(rows), why, "the same split", "another")
    changed = [row for row in [*train, *test] if row not in rows]
    why = "rows were rewritten: the model must read what people really type"
    expect(not changed, why, changed[:1], "the rows as they came")
    every, trained, tested = _keys(rows), _keys(train), _keys(test)
    share = f"{len(tested) / len(every):.0%}"
    why = "the test holds too few or too many of all questions"
    expect(0.1 <= len(tested) / len(every) <= 0.35, why, share, "about 20%")
    lost = len(every - trained - tested)
    why = "questions were thrown away that are not in the test at all"
    expect(lost <= 0.02 * len(every), why, f"{lost} of {len(every)}", "none")
    for kind, words in (
        ("case", "only in upper or lower case"),
        ("spaces", "only in other spaces"),
        ("encoding", "only in letters that are encoded in another way"),
    ):
        # Equal by all rules, and not by the rules without this one.
        leaks = _keys(train) & _keys(test)
        strict = _keys(train, kind) & _keys(test, kind)
        hidden = [k for k in leaks if not any(_key(each) == k for each in strict)]
        why = f"test questions are trained on that differ {words}"
        expect(not hidden, why, f"{len(hidden)} of {len(tested)}", "none")
    leaks = trained & tested
    why = "test questions are trained on, word for word"
    expect(not leaks, why, f"{len(leaks)} of {len(tested)}", "none")


def _split_by(rows, leave_out):
    """A repair that forgets one of the three equalities."""
    questions = sorted(_keys(rows, leave_out))
    asked = set(random.Random(0).sample(questions, round(0.2 * len(questions))))
    parts = ([], [])
    for row in rows:
        parts[_key(row["question"], leave_out) in asked].append(row)
    return parts


def _strict(rows):
    """A repair that also drops what merely resembles a test question."""
    train, test = repairs.hold_out(rows)
    begins = {" ".join(_key(row["question"]).split()[:3]) for row in test}
    kept = [r for r in train if " ".join(_key(r["question"]).split()[:3]) not in begins]
    return kept, test


@functools.cache
def _decided():
    """Pairs of the lab's world of which the verifier calls exactly one answer good."""
    card = sources.cards()["ultrafeedback"]
    pairs, _ = sources.to_pairs(card, sources.load_rows(card, WORLD))
    found = []
    for pair in pairs:
        answers = [pair[side][0]["content"] for side in ("chosen", "rejected")]
        good = [all(world.verify(pair["prompt"], each)) for each in answers]
        if good[0] != good[1]:
            good_first = answers if good[0] else answers[::-1]
            found.append((pair["prompt"][-1]["content"], *good_first))
    return found


def judged_rows(seed: int = 1) -> list[dict]:
    """Rows of three sources, as hunt 2.6 turns them into pairs.

    {"source", "question", "answers": [first, second]}, and the judge's word: `stars`
    of both answers, or the number of the `better` one.
    """
    rng = random.Random(seed)
    rows = []
    for number, (question, good, bad) in enumerate(rng.sample(_decided(), 150)):
        good_first = rng.random() < 0.5
        source = ("stars", "duel", "label")[number % 3]
        row = {"source": source, "question": question}
        row["answers"] = [good, bad] if good_first else [bad, good]
        if source == "stars":
            row["stars"] = [5, 2] if good_first else [2, 5]
            if number % 15 == 0:
                row["stars"] = [4, 4]
        else:
            row["better"] = (not good_first) + (source == "duel")
        rows.append(row)
    rng.shuffle(rows)
    return rows


@exercise(
    "2.6",
    repairs.judged_pairs,
    recipe=recipes.judged_pairs,
    material=judged_rows,
    minutes=20,
    difficulty=2,
    trains="joining sources that were judged differently",
    hints=(
        "Section 9 judges answers source by source. Do that here: for each source, in "
        "what share of the pairs is the chosen answer better than the rejected one?",
        "Print collections.Counter of the judge's column for each source: the numbers "
        "that occur say where that source begins to count.",
    ),
    mistakes={
        "symptom is still there": lambda rows: recipes.judged_pairs(rows),
        "as a coin would": lambda rows: _with_rule(rows, duel=lambda n: n != 0),
        "the wrong way round": lambda rows: _with_rule(rows, duel=lambda n: n == 2),
        "label: chosen and rejected": lambda rows: _with_rule(
            rows, duel=lambda n: n == 1, label=lambda n: n == 1
        ),
        "pairs are missing": lambda rows: [
            pair for pair in repairs.judged_pairs(rows) if pair["source"] != "duel"
        ],
        "did not decide": lambda rows: [
            *repairs.judged_pairs(rows),
            *repairs.judged_pairs(rows)[:9],
        ],
        "a list of pairs": lambda rows: "pairs",
    },
)
def hunt_idle_source(attempt: Callable) -> None:
    """Pairs whose chosen answer is the one that each source's judge preferred."""
    rows = judged_rows(seed=2)
    got = returned(attempt, copy.deepcopy(rows))
    keys = {"source", "question", "chosen", "rejected"}
    pairs = isinstance(got, list) and all(isinstance(pair, dict) for pair in got)
    pairs = pairs and all(keys <= set(pair) for pair in got)
    expect(
        pairs, f"return a list of pairs, dicts with {sorted(keys)}", type(got), "list"
    )
    why = f"{STILL}: one source is as good as absent"
    expect(got != recipes.judged_pairs(rows), why, "the same pairs", "other pairs")
    better = {(question, good, bad) for question, good, bad in _decided()}
    for source in ("stars", "label", "duel"):
        mine = [pair for pair in got if pair["source"] == source]
        decided = [row for row in rows if row["source"] == source]
        decided = [row for row in decided if row.get("stars") != [4, 4]]
        n, expected = len(mine), len(decided)
        why = f"{source}: pairs are missing, and nothing is wrong with their texts"
        expect(n >= expected, why, n, expected)
        why = f"{source}: there are pairs of rows that the judge did not decide"
        expect(n == expected, why, n, expected)
        right = [(p["question"], p["chosen"], p["rejected"]) in better for p in mine]
        share, goal = f"{sum(right)} of {n} pairs are right", f"{n} of {n}"
        why = f"{source}: chosen and rejected are the wrong way round"
        expect(sum(right) > 0.2 * n, why, share, goal)
        why = f"{source}: it chooses as a coin would, so its pairs cancel out"
        expect(sum(right) > 0.8 * n, why, share, goal)
        expect(all(right), f"{source}: some pairs are turned", share, goal)


def _with_rule(rows, duel, label=lambda number: number == 0):
    """Pairs by these readings of `better`: a repair that changes one or both."""
    rules, turned = {"duel": duel, "label": label}, []
    for row in rows:
        if row["source"] in rules:
            row = {
                **row,
                "stars": [5, 2] if rules[row["source"]](row["better"]) else [2, 5],
            }
        turned.append({**row, "name": row["source"], "source": "stars"})
    names = [row["name"] for row in turned if row["stars"][0] != row["stars"][1]]
    pairs = repairs.judged_pairs(turned)
    return [{**pair, "source": name} for pair, name in zip(pairs, names, strict=True)]
