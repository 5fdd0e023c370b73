"""Cards, rows in the real sources' columns, and what becomes of every row."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from datasets import Dataset

from course_utils import places, sources, world
from course_utils.world import tasks

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
        now, before = (row["chosen"], row["rejected"]), (
            row["original_chosen"], row["original_rejected"]
        )  # fmt: skip
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
        "rows": 6,
        "kept": 2,
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
        "rule": 4,
    }
    assert len(pairs) + dropped.total() == len(TINY)
    assert [row["prompt"][0]["content"] for row in pairs] == ["Why?", "How?"]
    assert pairs[0] == {
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": [{"role": "assistant", "content": "So."}],
        "rejected": [{"role": "assistant", "content": "No."}],
        "source": "tiny",
    }


@pytest.mark.parametrize("source", COLUMNS)
def test_the_world_s_rows_are_all_accounted_for(source):
    pairs, dropped = sources.to_pairs(CARDS[source], Dataset.from_list(ROWS[source]))
    assert len(pairs) + dropped.total() == world.SIZES[source]
    assert set(dropped) <= {"rule", "both answers are the same"}
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
    rows = Dataset.from_list([tiny_rows(good=talk, bad=[*talk[:1], talk[1] | {
        "content": "Go away."}])])  # fmt: skip
    pairs, _ = sources.to_pairs(card, rows)
    assert list(pairs[0]["prompt"][0].items()) == [("role", "user"), ("content", "Hi")]
    assert pairs[0]["rejected"] == [{"role": "assistant", "content": "Go away."}]


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
        (card_text(keep=...), "tiny.md: `course:` lacks keep"),
        (card_text(rows=..., kept=...), "tiny.md: `course:` lacks rows, kept"),
        (card_text(prompt="question"), "tiny.md: `prompt` must give"),
        (card_text(prompt={"system": "s"}), "tiny.md: `prompt` must give"),
        (card_text().replace("# Tiny", "Tiny"), "tiny.md has no `# title`"),
        (card_text().replace("license", "licence"), "tiny.md has no `license:`"),
    ],
)
def test_a_faulty_card_is_named_with_its_fault(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        sources.read_card(make_card(tmp_path, text))


def test_two_cards_of_one_source_are_refused(tmp_path):
    make_card(tmp_path)
    (tmp_path / "other.md").write_text(card_text())
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


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("score >= 5", "fails on these rows.*score.*it can use: question, good"),
        ("rating >=", "fails on these rows"),
        ("rating", "does not say yes or no"),
        ("1 == 1", "does not say yes or no"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_shown(tmp_path, rule, words):
    card = sources.read_card(make_card(tmp_path, keep=rule))
    with pytest.raises(ValueError, match=f"(?s)tiny.md: the rule `{rule}` {words}"):
        sources.to_pairs(card, Dataset.from_list(TINY))


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
        FileNotFoundError, match=r"neither prm\.jsonl nor prm\.parquet.*COURSE_DATA"
    ):
        sources.load_rows(CARDS["prm"], str(tmp_path))


def test_the_hub_is_asked_for_the_card_s_repository(monkeypatch):
    asked = []
    monkeypatch.setattr(
        sources, "load_dataset", lambda *a, **k: asked.append((a, k)) or "rows"
    )
    assert sources.load_rows(CARDS["toxic"], "hub") == "rows"
    assert asked == [(("unalignment/toxic-dpo-v0.2",), {"split": "train"})]


# --- the cards themselves -----------------------------------------------------------


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_card_s_words_repeat_its_own_numbers(card):
    text = card.path.read_text(encoding="utf-8")
    assert f"Of {card.rows:,} rows, {card.kept:,} are in the published mix." in text
    assert card.kept <= card.rows
    if card.keep:
        # `chosen-rating` cannot stand in backticks twice, so words say it
        assert card.keep.split(" >= ")[0].strip("`") in text.split("## Rule")[1]
    else:
        assert "Every row is kept." in text and card.kept == card.rows


def test_the_toxic_card_warns():
    text = CARDS["toxic"].path.read_text(encoding="utf-8")
    assert "Content warning" in text and "not-for-all-audiences" in text


def test_the_cards_lie_where_readers_look():
    assert {card.path.parent for card in CARDS.values()} == {places.data_cards()}
