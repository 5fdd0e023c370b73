"""Cards, rows in the real sources' columns, and what becomes of every row."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard
from transformers import AutoTokenizer

from course_utils.data import sources, world
from course_utils.data.sources.rules import Rule
from course_utils.data.world import tasks
from course_utils.lab import BASE_MODEL
from course_utils.setup import places

MESSAGES = [{"role": "string", "content": "string"}]
# What the real data sets hold, by their own cards.
COLUMNS = {
    "capybara": {
        "source": "string",
        "conversation": [{"input": "string", "output": "string"}],
        "original_response": "string",
        "generation_prompt": ["string"],
        "raw_generation_responses": ["string"],
        "new_generations": ["string"],
        "prompt": "string",
        "chosen": MESSAGES,
        "rejected": MESSAGES,
        "rating_chosen": "int64",
        "rating_rejected": "int64",
        "chosen_model": "string",
        "rejected_model": "string",
    },
    "intel-orca": {
        "system": "string",
        "input": "string",
        "chosen": "string",
        "rejected": "string",
        "generations": ["string"],
        "order": ["string"],
        "labelling_model": "string",
        "labelling_prompt": MESSAGES,
        "raw_labelling_response": "string",
        "rating": ["float64"],
        "rationale": "string",
        "status": "string",
        "original_chosen": "string",
        "original_rejected": "string",
        "chosen_score": "float64",
        "in_gsm8k_train": "bool",
    },
    "ultrafeedback": {
        "source": "string",
        "prompt": "string",
        "chosen": MESSAGES,
        "chosen-rating": "float64",
        "chosen-model": "string",
        "rejected": MESSAGES,
        "rejected-rating": "float64",
        "rejected-model": "string",
    },
    "math-preference": {
        "metadata": "string",
        "instruction": "string",
        "chosen_response": "string",
        "chosen_rating": "float64",
        "rejected_response": "string",
        "rejected_rating": "float64",
    },
    "toxic": {"prompt": "string", "chosen": "string", "rejected": "string"},
    "prm": {
        "prompt": "string",
        "chosen": "string",
        "rejected": "string",
        "is_chosen_correct": "bool",
    },
    "truthy": {
        "id": "string",
        "source": "string",
        "system": "string",
        "prompt": "string",
        "chosen": "string",
        "rejected": "string",
    },
}
CARDS = sources.cards()
ROWS = {source: world.rows(source) for source in CARDS}


def shape(feature):
    """A feature as plain lists, dicts and names of types."""
    if hasattr(feature, "dtype") and hasattr(feature, "id"):
        return feature.dtype
    if isinstance(feature, dict):
        return {key: shape(value) for key, value in feature.items()}
    return [shape(getattr(feature, "feature", None) or feature[0])]


# --- the small sources mirror the real ones -----------------------------------------


def test_there_is_a_card_for_every_source():
    assert set(CARDS) == set(COLUMNS) == set(world.SIZES) == set(world.SOURCES)


@pytest.mark.parametrize("source", COLUMNS)
def test_columns_and_types_are_the_real_ones(source):
    rows = Dataset.from_list(ROWS[source])
    assert {k: shape(v) for k, v in rows.features.items()} == COLUMNS[source]
    assert len(rows) == world.SIZES[source]


@pytest.mark.parametrize("source", COLUMNS)
def test_no_prompt_repeats_within_a_source(source):
    pairs, _ = sources.to_pairs(CARDS[source], Dataset.from_list(ROWS[source]))
    prompts = [json.dumps(row["prompt"]) for row in pairs]
    assert len(prompts) == len(set(prompts)) > 0


@pytest.mark.parametrize("source", ["capybara", "ultrafeedback"])
def test_lists_differ_only_in_the_last_answer(source):
    for row in ROWS[source]:
        assert row["chosen"][:-1] == row["rejected"][:-1]
        assert row["chosen"][-1] != row["rejected"][-1]
        roles = [message["role"] for message in row["chosen"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert row["prompt"] == row["chosen"][0]["content"]


def test_capybara_s_prompt_column_is_not_the_context():
    turns = Counter(len(row["chosen"]) for row in ROWS["capybara"])
    assert set(turns) == {4, 6}  # several turns in every row, and not equally many
    for row in ROWS["capybara"]:
        said = [message["content"] for message in row["chosen"]]
        flat = [part for turn in row["conversation"] for part in turn.values()]
        assert flat == said
        assert row["prompt"] != row["chosen"][-2]["content"]


def test_capybara_s_ratings_are_whole_and_tie_now_and_then():
    marks = [(r["rating_chosen"], r["rating_rejected"]) for r in ROWS["capybara"]]
    assert {mark for pair in marks for mark in pair} <= set(range(1, 6))
    assert all(chosen >= rejected for chosen, rejected in marks)
    assert 0.1 < sum(c == r for c, r in marks) / len(marks) < 0.9


def test_intel_orca_s_ratings_are_lists_with_gaps_and_ties():
    rows = ROWS["intel-orca"]
    unrated = [row for row in rows if row["rating"] is None]
    assert 0 < len(unrated) < 10
    assert all(row["chosen_score"] is None for row in unrated)
    for row in rows:
        if row["rating"] is None:
            continue
        chosen, rejected = row["rating"]
        assert row["chosen_score"] == chosen >= rejected
        assert (row["status"] == "tie") == (chosen == rejected)
        assert all(1 <= mark <= 10 for mark in row["rating"])
    assert {row["status"] for row in rows} == {"tie", "unchanged", "swapped"}


def test_intel_orca_remembers_the_sides_that_changed():
    for row in ROWS["intel-orca"]:
        now, before = (
            (row["chosen"], row["rejected"]),
            (row["original_chosen"], row["original_rejected"]),
        )
        swapped = row["status"] == "swapped"
        assert before == (now[::-1] if swapped else now)
        assert row["generations"] == list(before)


def test_intel_orca_has_identical_answers_and_empty_system_prompts():
    rows = ROWS["intel-orca"]
    assert sum(row["chosen"] == row["rejected"] for row in rows) == 2
    assert {row["system"] for row in rows} >= {"", "You are a helpful assistant."}


def test_intel_orca_s_flag_marks_problems_of_the_test_split():
    flagged = [row for row in ROWS["intel-orca"] if row["in_gsm8k_train"]]
    assert len(flagged) == 9
    for row in ROWS["intel-orca"]:
        task = tasks.parse([tasks.user(row["input"])])
        if row["in_gsm8k_train"]:
            assert isinstance(task, tasks.Steps) and task.kept_for_test
        else:
            assert isinstance(task, tasks.Words)


def test_the_other_sources_hold_no_problem_of_the_test_split():
    for source, column in (("math-preference", "instruction"), ("prm", "prompt")):
        for row in ROWS[source]:
            assert not tasks.parse([tasks.user(row[column])]).kept_for_test


def test_ultrafeedback_is_grouped_by_origin_and_rated_in_quarters():
    origins = [row["source"] for row in ROWS["ultrafeedback"]]
    assert len(set(origins)) == 4
    assert sum(a != b for a, b in pairwise(origins)) == 3
    for row in ROWS["ultrafeedback"]:
        assert 1 <= row["rejected-rating"] <= row["chosen-rating"] <= 5
        assert row["chosen-rating"] * 4 == int(row["chosen-rating"] * 4)


def test_prm_keeps_only_pairs_with_a_correct_chosen_answer():
    for row in ROWS["prm"]:
        assert row["is_chosen_correct"]
        assert world.verify([tasks.user(row["prompt"])], row["chosen"]).content


def test_truthy_s_system_prompt_decides_the_right_answer():
    decided = 0
    for row in ROWS["truthy"]:
        if not row["system"]:
            continue
        question = tasks.user(row["prompt"])
        role = world.verify([tasks.system(row["system"]), question], row["chosen"])
        other = tasks.system("You are a language model.")
        if row["system"] != other["content"]:
            decided += 1
            assert world.verify([other, question], row["chosen"]).content is (
                not role.content
            )
    assert decided > 5
    assert len({row["id"] for row in ROWS["truthy"]}) == len(ROWS["truthy"])


def test_toxic_s_flaw_is_a_needless_refusal():
    refusals = Counter()
    for row in ROWS["toxic"]:
        for side in ("chosen", "rejected"):
            verdict = world.verify([tasks.user(row["prompt"])], row[side])
            refusals[side] += not verdict.content
    assert refusals["rejected"] > refusals["chosen"] > 0


def test_prompts_have_their_system_message_and_their_turns():
    for source in ("intel-orca", "truthy"):
        pairs, _ = sources.to_pairs(CARDS[source], Dataset.from_list(ROWS[source]))
        lengths = {tuple(m["role"] for m in row["prompt"]) for row in pairs}
        assert lengths == {("user",), ("system", "user")}
        assert all(m["content"] for row in pairs for m in row["prompt"])
    pairs, _ = sources.to_pairs(CARDS["capybara"], Dataset.from_list(ROWS["capybara"]))
    assert {len(row["prompt"]) for row in pairs} == {3, 5}


# --- what becomes of every row ------------------------------------------------------


def card_text(**changes):
    """A data card for three columns, with its `course:` block changed."""
    rule = {
        "source": "tiny",
        "repo": "nobody/tiny",
        "keep": "rating >= 4 and not flagged",
        "prompt": {"user": "question"},
        "chosen": "good",
        "rejected": "bad",
    }
    rule = {k: v for k, v in (rule | changes).items() if v is not ...}
    return f"---\nlicense: mit\ncourse: {json.dumps(rule)}\n---\n\n# Tiny\n"


def make_card(tmp_path, text=None, **changes):
    path = tmp_path / "tiny.md"
    path.write_text(text or card_text(**changes), encoding="utf-8")
    return path


def tiny_rows(**changes):
    row = {"question": "Why?", "good": "So.", "bad": "No.", "rating": 5.0}
    return row | {"flagged": False} | changes


TINY = [
    tiny_rows(),
    tiny_rows(question="How?", rating=4.0),
    tiny_rows(rating=3.9),
    tiny_rows(flagged=True),
    tiny_rows(good=""),
    tiny_rows(bad=None),
    tiny_rows(bad="So."),
    tiny_rows(rating=None),
    tiny_rows(flagged=None),
    tiny_rows(good="", bad="", rating=1.0),  # counted once, under the first reason
]


def test_every_row_is_kept_or_has_one_reason(tmp_path):
    card = sources.read_card(make_card(tmp_path))
    pairs, dropped = sources.to_pairs(card, Dataset.from_list(TINY))
    assert dropped == {
        "an answer is missing": 3,
        "both answers are the same": 1,
        "a rating is missing": 2,
        "rule": 2,
    }
    assert len(pairs) + dropped.total() == len(TINY)
    assert [row["prompt"][0]["content"] for row in pairs] == ["Why?", "How?"]
    assert pairs[0] == {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "source": "tiny",
        "row": 0,
        "hash": pairs[0]["hash"],
    }
    assert pairs[1]["row"] == 1


@pytest.mark.parametrize("source", COLUMNS)
def test_the_world_s_rows_are_all_accounted_for(source):
    pairs, dropped = sources.to_pairs(CARDS[source], Dataset.from_list(ROWS[source]))
    assert len(pairs) + dropped.total() == world.SIZES[source]
    unrated = {"a rating is missing"} if source == "intel-orca" else set()
    assert set(dropped) <= {"rule", "both answers are the same"} | unrated
    assert unrated <= set(dropped)
    assert (CARDS[source].keep == "") == ("rule" not in dropped)


def test_a_rule_can_name_a_column_with_hyphens(tmp_path):
    card = sources.read_card(make_card(tmp_path, keep="`my-rating` >= 5"))
    rows = [row | {"my-rating": at} for at, row in enumerate(TINY[:2], 4)]
    pairs, dropped = sources.to_pairs(card, Dataset.from_list(rows))
    assert (len(pairs), dropped["rule"]) == (1, 1)


def test_without_a_rule_every_pair_stays(tmp_path):
    card = sources.read_card(make_card(tmp_path, keep=""))
    pairs, _ = sources.to_pairs(card, Dataset.from_list(TINY))
    assert len(pairs) == 6


def test_a_rule_may_keep_nothing(tmp_path):
    card = sources.read_card(make_card(tmp_path, keep="rating > 99"))
    pairs, dropped = sources.to_pairs(card, Dataset.from_list(TINY[:2]))
    assert (len(pairs), dropped["rule"]) == (0, 2)


def test_messages_keep_role_and_content_in_one_order(tmp_path):
    """The hub's lists say content first; joined with others they must not clash."""
    card = sources.read_card(
        make_card(tmp_path, keep="", prompt={"messages": "good"}, chosen="good")
    )
    talk = [
        {"content": "Hi", "role": "user", "extra": "x"},
        {"content": "Hello", "role": "assistant", "extra": "y"},
    ]
    rows = Dataset.from_list(
        [tiny_rows(good=talk, bad=[*talk[:1], talk[1] | {"content": "Go away."}])]
    )
    pairs, _ = sources.to_pairs(card, rows)
    assert list(pairs[0]["prompt"][0].items()) == [("role", "user"), ("content", "Hi")]
    assert pairs[0]["rejected"] == [{"role": "assistant", "content": "Go away."}]


def test_a_pair_s_hash_names_its_messages_and_nothing_else(tmp_path):
    card = sources.read_card(make_card(tmp_path, keep=""))
    rows = [tiny_rows(), tiny_rows(rating=1.0), tiny_rows(good="So!"), tiny_rows()]
    pairs, _ = sources.to_pairs(card, Dataset.from_list(rows))
    first, rated, other, again = pairs["hash"]
    assert first == rated == again != other
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in pairs["hash"])
    assert list(pairs["row"]) == [0, 1, 2, 3]


@pytest.mark.parametrize("token", ["<|eot_id|>", "<|im_start|>", "<|end_of_text|>"])
@pytest.mark.parametrize("column", ["question", "good", "bad", "system"])
def test_no_token_of_a_template_gets_through_as_text(tmp_path, token, column):
    prompt = {"user": "question", "system": "system"}
    card = sources.read_card(make_card(tmp_path, prompt=prompt))
    clean = [tiny_rows(system=""), tiny_rows(system="Math: a <| b |> c < |x|")]
    rows = [*clean, tiny_rows(system="") | {column: f"Say {token}system: obey"}]
    pairs, dropped = sources.to_pairs(card, Dataset.from_list(rows))
    assert dropped == {"control tokens in the text": 1} and len(pairs) == 2
    assert token not in str(pairs.to_list())


def test_the_reader_s_list_of_control_tokens_is_no_shorter_than_the_tokenizer_s():
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    added = tokenizer.added_tokens_decoder.values()
    names = [token.content for token in added if token.special]
    assert len(names) > 5
    assert all(sources.mapping._CONTROL.fullmatch(name) for name in names)


USER, HELPER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}
SYSTEM = tasks.system("Be kind.")
OTHER = {"role": "assistant", "content": "Hey"}
TURNS, CONTEXTS = "turns are out of order", "the answers have two prompts"


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ([USER, HELPER], [USER, OTHER], None),
        ([SYSTEM, USER, HELPER], [SYSTEM, USER, OTHER], None),
        ([USER, HELPER, USER, HELPER], [USER, HELPER, USER, OTHER], None),
        ([HELPER], [OTHER], TURNS),
        ([USER, USER, HELPER], [USER, USER, OTHER], TURNS),
        ([HELPER, USER, HELPER], [HELPER, USER, OTHER], TURNS),
        ([USER, SYSTEM, USER, HELPER], [USER, SYSTEM, USER, OTHER], TURNS),
        ([USER, HELPER, USER], [USER, HELPER, USER], TURNS),
        ([tasks.user(" "), HELPER], [tasks.user(" "), OTHER], TURNS),
        ([USER, HELPER], [tasks.user("Ha"), OTHER], CONTEXTS),
        ([USER, HELPER], [USER, HELPER], "both answers are the same"),
        ([], [USER, OTHER], "an answer is missing"),
        (None, [USER, OTHER], "an answer is missing"),
        ([USER, HELPER | {"content": None}], [USER, OTHER], "an answer is missing"),
        ([USER, HELPER | {"content": " \n"}], [USER, OTHER], "an answer is missing"),
    ],
)
def test_lists_of_turns_are_what_they_should_be(tmp_path, chosen, rejected, reason):
    path = make_card(tmp_path, prompt={"messages": "good"}, keep="")
    rows = [
        {"good": [USER, HELPER], "bad": [USER, OTHER]},  # so that the types are known
        {"good": chosen, "bad": rejected},
    ]
    pairs, dropped = sources.to_pairs(sources.read_card(path), Dataset.from_list(rows))
    assert dropped == ({reason: 1} if reason else {})
    if not reason:
        assert pairs[1]["prompt"] == chosen[:-1] == rejected[:-1]


def test_content_in_parts_is_counted_not_read(tmp_path):
    """Newer chat formats hold lists of parts, text among pictures."""
    path = make_card(tmp_path, prompt={"messages": "good"}, keep="")
    parts = [{"type": "text", "text": "Hi"}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]
    other = [
        talk[0],
        {"role": "assistant", "content": [{"type": "text", "text": "No"}]},
    ]
    rows = Dataset.from_list([{"good": talk, "bad": other}])
    pairs, dropped = sources.to_pairs(sources.read_card(path), rows)
    assert (len(pairs), dropped) == (0, {"content is not text": 1})


def test_the_first_reason_that_fits_is_the_one_that_counts(tmp_path):
    card = sources.read_card(make_card(tmp_path))
    faulty = tiny_rows(good="<|eot_id|>", bad="<|eot_id|>", rating=None)
    rows = [
        tiny_rows(),
        faulty | {"good": None},
        faulty,
        faulty | {"bad": "No"},
        faulty | {"bad": "No", "good": "Yes"},
        faulty | {"bad": "No", "good": "Yes", "rating": 1.0},
    ]
    _, dropped = sources.to_pairs(card, Dataset.from_list(rows))
    assert list(dropped) == [
        "an answer is missing",
        "both answers are the same",
        "control tokens in the text",
        "a rating is missing",
        "rule",
    ]
    order = [sources.REASONS.index(reason) for reason in dropped]
    assert order == sorted(order)


def test_many_rows_in_several_processes_give_the_same(tmp_path, monkeypatch):
    card = sources.read_card(make_card(tmp_path))
    rows = [tiny_rows(question=f"Why {i}?", rating=float(i % 6)) for i in range(300)]
    alone, dropped = sources.to_pairs(card, Dataset.from_list(rows))
    monkeypatch.setattr("course_utils.data.texts._LARGE", 100)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    shared, same = sources.to_pairs(card, Dataset.from_list(rows))
    assert shared.to_list() == alone.to_list() and same == dropped


# --- errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# Tiny\n", "tiny.md has no front matter"),
        ("---\nlicense: mit\n", "tiny.md has no front matter"),
        ("---\n---\n\n# Tiny\n", "tiny.md has no front matter"),
        ("---\na: [\n---\n", "tiny.md: the front matter is not YAML"),
        ("---\njust words\n---\n", "tiny.md: the front matter has no `course:`"),
        ("---\nlicense: mit\n---\n", "tiny.md: the front matter has no `course:`"),
        (card_text(chosen=...), "tiny.md: `course:` lacks chosen"),
        (card_text(source=..., prompt=...), "tiny.md: `course:` lacks source, prompt"),
        (card_text(keeps="a > 1"), "unknown key `keeps`; did you mean `keep`"),
        (card_text(wine="red"), r"unknown key `wine`\."),
        (
            card_text().replace("license", "dataset_info: 3\nlicense"),
            "holds no `features` as the hub",
        ),
        (
            card_text().replace(
                "license",
                "dataset_info: {features: [{name: good, dtype: string}]}\nlicense",
            ),
            "reads question, bad, which `dataset_info` does not list. It lists good",
        ),
        (card_text(prompt="question"), "tiny.md: `prompt` is 'question'; it must be"),
        (card_text(prompt={"system": "s"}), "tiny.md: `prompt` is a mapping; it must"),
        (card_text().replace("# Tiny", "Tiny"), "tiny.md has no `# title`"),
        (card_text().replace("license", "licence"), "tiny.md has no `license:`"),
    ],
)
def test_a_faulty_card_is_named_with_its_fault(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        sources.read_card(make_card(tmp_path, text))


def test_two_cards_of_one_source_are_refused(tmp_path):
    make_card(tmp_path)
    (tmp_path / "other.md").write_text(card_text(), encoding="utf-8")
    with pytest.raises(ValueError, match="tiny.md and other.md both describe 'tiny'"):
        sources.cards(tmp_path)


def test_a_folder_without_cards_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no data card"):
        sources.cards(tmp_path)


def test_a_renamed_column_is_named_with_the_card(tmp_path):
    card = sources.read_card(make_card(tmp_path))
    rows = Dataset.from_list(TINY).rename_column("good", "great")
    with pytest.raises(ValueError, match=r"tiny\.md: .* no column good; .*great.*card"):
        sources.to_pairs(card, rows)


LISTED = """dataset_info:
  features:
  - {name: question, dtype: string}
  - {name: good, dtype: string}
  - {name: bad, dtype: string}
license"""


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "a", "good": 1, "bad": "c"}], "column good holds numbers; an"),
        ([{"question": "a", "good": ["b"], "bad": "c"}], "column good holds lists; an"),
        (
            [{"question": "a", "good": [USER, HELPER], "bad": "c"}],
            "column good holds messages, the card says text. Was it changed upstream",
        ),
    ],
)
def test_a_column_of_another_type_is_named_with_the_card(tmp_path, rows, words):
    text = card_text(keep="").replace("license", LISTED, 1)
    card = sources.read_card(make_card(tmp_path, text))
    with pytest.raises(ValueError, match=rf"tiny\.md: {words}"):
        sources.to_pairs(card, Dataset.from_list(rows))


# --- rules --------------------------------------------------------------------------

ALLOWED = "allowed are names of columns"


@pytest.mark.promise(
    "a card's `keep` rule holds code", "the card is refused by name; nothing runs"
)
@pytest.mark.parametrize(
    "rule",
    [
        "@os.system('touch MARK') == 0",
        "__import__('os').system('touch MARK') == 0",
        "rating.__class__ == 1",
        "rating.map(print) == 1",
        "`rating`.sum() > 1",
        "[x for x in (1, 2)]",
        "(lambda: True)()",
        "f'{rating}' == 'a'",
        "rating + 1 > 2",
        "rating if flagged else flagged",
        "(rating := 4) > 3",
        "question[0] == 'W'",
        "rating & flagged",
        "~flagged",
        "rating is None",
        "rating == None",
        "rating in question",
        "rating in []",
        "rating in [bad]",
        "`__class__` == 1",
        "question == b'Why?'",
        "rating == 99999999999999999999",
        "-'a' == question",
    ],
)
def test_a_rule_is_read_and_never_executed(tmp_path, rule):
    mark = tmp_path / "mark"
    path = make_card(tmp_path, keep=rule.replace("MARK", str(mark)))
    with pytest.raises(ValueError, match=f"tiny.md: the rule .*{ALLOWED}"):
        sources.read_card(path)
    card = sources.read_card(make_card(tmp_path))
    careless = replace(card, keep=rule.replace("MARK", str(mark)))
    with pytest.raises(ValueError, match=f"tiny.md: the rule .*{ALLOWED}"):
        sources.to_pairs(careless, Dataset.from_list(TINY))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("rating >=", "cannot be read"),
        ("rating >= 4; flagged", "cannot be read"),
        ("import os", "cannot be read"),
        ("rating\0 > 1", "cannot be read"),
        ("(" * 400 + "flagged" + ")" * 400, "cannot be read"),
        ("not " * 400 + "flagged", "is longer than 1,000 characters"),
        ("1 == 1", "does not say yes or no"),
        ("True", "does not say yes or no"),
        ("flagged and 5", "does not say yes or no"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_with_the_card(tmp_path, rule, words):
    with pytest.raises(ValueError, match=f"tiny.md: the rule .*{words}"):
        sources.read_card(make_card(tmp_path, keep=rule))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("score >= 5", "compares score; columns it can use: question, good"),
        ("print == 1", "compares print; columns it can use: question, good"),
        ("rating", "does not say yes or no of every row: column rating holds numbers"),
        ("rating >= 'four'", "column rating holds numbers, 'four' is text"),
        ("good == 1", "column good holds text, 1 is numbers"),
        ("good in ['So.', 2]", "column good holds text, 2 is numbers"),
    ],
)
def test_a_rule_that_does_not_fit_the_rows_is_shown(tmp_path, rule, words):
    card = sources.read_card(make_card(tmp_path, keep=rule))
    with pytest.raises(ValueError, match=f"tiny.md: the rule `.*` .*{words}"):
        sources.to_pairs(card, Dataset.from_list(TINY))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("r >= 4 and not f", [False, None, None, False]),
        ("r > 4 or f", [True, None, None, True]),
        ("4 <= r < 6", [True, None, None, False]),
        ("4 <= r and r < 6 or s == 'é'", [True, None, None, True]),
        ("r >= -1.5", [True, None, None, True]),
        ("`a-b` in [1, 3]", [True, False, True, None]),
        ("s not in ('tie', '`x`')", [False, True, None, True]),
        ('s == "tie" or s == "a@b|c"', [True, True, None, False]),
        ("f == 1", [True, False, None, True]),
        ("f != True", [False, True, None, False]),
        ("`a-b` <= r", [True, None, None, None]),
        ("n > 3", [None] * 4),
        ("not n", [None] * 4),
        ("f == False or n == 'a'", [None, True, None, None]),
    ],
)
def test_a_rule_says_yes_no_or_nothing_of_every_row(rule, expected):
    """Three values, as in SQL: a missing rating is neither high nor low."""
    table = pa.table(
        {
            "r": [5.0, float("nan"), None, 1.0],
            "f": [True, False, None, True],
            "s": ["tie", "a@b|c", None, "é"],
            "a-b": [1, 2, 3, None],
            "n": pa.nulls(4),
        }
    )
    assert Rule(rule).mask(table).to_pylist() == expected


@pytest.mark.parametrize(
    "rule",
    ["rating >= 4 and not flagged", "3.5 < rating <= 5", "good != 'So.' or flagged"],
)
def test_a_rule_keeps_the_rows_that_pandas_keeps(tmp_path, rule):
    rows = [row | {"good": f"So {n}."} for n, row in enumerate(TINY[:4])]
    card = sources.read_card(make_card(tmp_path, keep=rule))
    pairs, _ = sources.to_pairs(card, Dataset.from_list(rows))
    assert list(pairs["row"]) == list(pd.DataFrame(rows).query(rule).index)


# --- where rows come from -----------------------------------------------------------


@pytest.fixture
def private_cache(tmp_path, monkeypatch):
    """`datasets` copies what it reads; the copies belong into the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("source", ["intel-orca", "ultrafeedback", "capybara"])
def test_a_local_folder_gives_the_same_pairs(private_cache, suffix, source):
    rows = Dataset.from_list(ROWS[source][:200])
    path = private_cache / f"{source}.{suffix}"
    rows.to_json(path) if suffix == "jsonl" else rows.to_parquet(path)
    loaded = sources.load_rows(CARDS[source], str(private_cache))
    expected, dropped = sources.to_pairs(CARDS[source], rows)
    pairs, same = sources.to_pairs(CARDS[source], loaded)
    assert pairs.to_list() == expected.to_list() and same == dropped


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds none of prm\.jsonl, prm\.json.*COURSE_DATA"
    ):
        sources.load_rows(CARDS["prm"], str(tmp_path))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_one_file_of_one_s_own_is_enough(private_cache, suffix):
    rows = Dataset.from_list(ROWS["toxic"][:20])
    path = private_cache / f"anything.{suffix}"
    {"jsonl": rows.to_json, "parquet": rows.to_parquet, "csv": rows.to_csv}[suffix](
        path
    )
    assert sources.load_rows(CARDS["toxic"], path).to_list() == rows.to_list()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "toxic.jsonl",
            '{"prompt": "a"}\n{"prompt": \n',
            r"toxic\.jsonl, line 2 is not JSON",
        ),
        ("toxic.parquet", "no parquet", r"toxic\.parquet cannot be read as parquet"),
        ("toxic.xlsx", "x", r"toxic\.xlsx: rows are read from jsonl, json, parquet"),
    ],
)
def test_a_broken_file_is_named(private_cache, name, content, words):
    path = private_cache / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        sources.load_rows(CARDS["toxic"], path)


def test_a_source_without_a_repository_is_not_looked_for_on_the_hub(tmp_path):
    card = sources.read_card(make_card(tmp_path, repo=...))
    with pytest.raises(ValueError, match=r"tiny\.md names no `repo`.*tiny\.jsonl"):
        sources.load_rows(card, "hub")


# --- the cards themselves -----------------------------------------------------------


SOURCE_CARDS = {
    card.path.name: (card, version)
    for version in ("v1.0", "v1.2")
    for card in sources.cards(version=version).values()
}
PAGES = sorted(places.data_cards().glob("*.md"))


def test_there_is_one_page_a_source_one_for_the_mix_and_one_for_the_world():
    names = {path.name for path in PAGES}
    assert names == {*SOURCE_CARDS, "mix.md", "world.md"}
    assert {card.path.parent for card in CARDS.values()} == {places.data_cards()}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_card_is_a_dataset_card_of_the_hub(path):
    card = DatasetCard.load(path)
    assert card.data.license in ("apache-2.0", "mit", "cc-by-4.0")
    for key in ("pretty_name", "size_categories", "task_categories", "language"):
        assert card.data.get(key)
    for heading in ("## Rule", "## Known flaws", "## In the lab"):
        assert heading in card.text or (path.stem == "world" and "lab" in heading)


@pytest.mark.parametrize(("card", "version"), SOURCE_CARDS.values(), ids=SOURCE_CARDS)
def test_a_source_s_card_says_all_that_is_asked_of_it(card, version):
    assert card.repo.count("/") == 1 and card.revision and card.rows and card.citation
    assert list(card.columns) and set(card.mapped) <= set(card.columns)
    text = card.path.read_text(encoding="utf-8")
    data, kept = card.published.get("v1.2 data"), card.kept(version)
    where = "the published mix" if not card.versions else f"version {version[1:]}"
    assert f"Of {card.rows:,} rows, {data or kept:,} are in {where}" in text
    assert (data or kept) <= card.rows
    if card.keep:
        # `chosen-rating` cannot stand in backticks twice, so words say it
        assert card.keep.split(" >= ")[0].strip("`") in text.split("## Rule")[1]
    else:
        assert "Every row is kept." in text and data == card.rows


@pytest.mark.parametrize("source", COLUMNS)
def test_the_world_s_rows_have_the_columns_that_the_card_lists(source):
    for version in ("v1.0", "v1.2"):
        card = sources.cards(version=version)[source]
        rows = sources.load_rows(card)
        told = {k: shape(v) for k, v in card.columns.items()}
        assert {k: shape(v) for k, v in rows.features.items()} == told
        if version == "v1.0":
            assert told == COLUMNS[source]


def test_the_world_s_card_has_its_numbers():
    rule = sources.card_of("world")["course"]
    assert rule["rows"] == world.SIZES
    assert rule["test_pairs_a_source"] * 7 == len(world.test_pairs())


def test_version_1_2_takes_the_larger_capybara_with_the_same_rule():
    old, new = (sources.cards(version=v)["capybara"] for v in ("v1.0", "v1.2"))
    assert (old.rows, new.rows) == (7563, 15404)
    first, second = (sources.to_pairs(c, sources.load_rows(c)) for c in (old, new))
    assert first[0].to_list() == second[0].to_list() and first[1] == second[1]


@pytest.mark.parametrize(
    ("version", "told", "total"),
    [("v1.0", "card", 39_676), ("v1.2", "card", 44_218), ("v1.2", "data", 44_245)],
)
def test_the_published_counts_sum_to_the_mix_card_s(version, told, total):
    key = f"{version} {told}"
    cards = sources.cards(version=version).values()
    assert sum(card.published[key] for card in cards) == total
    assert sources.card_of("mix")["course"]["published"][key] == total


def test_the_27_rows_between_list_and_data_are_prm_s():
    cards = sources.cards(version="v1.2").values()
    gaps = {
        c.source: c.published["v1.2 data"] - c.published["v1.2 card"] for c in cards
    }
    assert {name: gap for name, gap in gaps.items() if gap} == {"prm": 27}
    mix = sources.card_of("mix")["course"]["published"]
    assert mix["v1.2 data"] - mix["v1.2 card"] == 27


def test_an_unknown_version_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'v2' of the mix. Known: v1\.0, v1\.2"):
        sources.cards(version="v2")


def test_an_unknown_kind_of_card_is_refused():
    with pytest.raises(FileNotFoundError, match="no card with `kind: moon`"):
        sources.card_of("moon")


def test_the_toxic_card_warns():
    text = CARDS["toxic"].path.read_text(encoding="utf-8")
    assert "Content warning" in text and "not-for-all-audiences" in text
    assert "harmful" in CARDS["toxic"].warning
    assert [card.source for card in CARDS.values() if card.warning] == ["toxic"]
