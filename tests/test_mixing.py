"""The mix: repeatable, accounted for to the last row, and clean of what tests ask."""

import functools
import re
import shutil
import unicodedata
from collections import Counter
from dataclasses import replace

import pytest
from datasets import Dataset
from huggingface_hub import DatasetCard
from transformers import AutoTokenizer

from course_utils import chat, recorded
from course_utils.data import mixing, sources, world
from course_utils.data.world import tasks
from course_utils.exercises import checks
from course_utils.lab import BASE_MODEL
from course_utils.setup import places

CARDS = sources.cards()


@pytest.fixture(scope="module")
def mix():
    return mixing.build()


def asked(pairs):
    return {mixing.questions(row["prompt"]) for row in pairs}


# --- repeatable, and counts that sum ------------------------------------------------


def test_the_same_seed_gives_the_same_mix(mix):
    again, other = mixing.build(), mixing.build(seed=12)
    assert again.train.to_list() == mix.train.to_list()
    assert again.evaluation.to_list() == mix.evaluation.to_list()
    assert again.report == mix.report
    assert other.train.to_list() != mix.train.to_list()
    assert other.evaluation.to_list() == mix.evaluation.to_list()


def test_every_row_is_in_the_report(mix):
    assert [row["source"] for row in mix.report] == list(CARDS)
    for row in mix.report:
        counts = {k: v for k, v in row.items() if k not in ("source", "rows", "kept")}
        assert row["kept"] + sum(counts.values()) == row["rows"]
        assert all(count > 0 for count in counts.values())
        assert row["rows"] == world.SIZES[row["source"]]
        in_mix = sum(source == row["source"] for source in mix.train["source"])
        assert in_mix == row["kept"]
    assert len(mix.train) == sum(row["kept"] for row in mix.report)


def test_the_mix_is_shuffled(mix):
    assert len(set(mix.train["source"][:40])) >= 5


def test_fewer_evaluation_pairs_are_balanced_and_leave_training_alone(mix):
    small = mixing.build(evaluation_pairs=70)
    assert small.evaluation.to_list() == mix.evaluation.to_list()[:70]
    assert small.train.to_list() == mix.train.to_list()
    counts = [list(small.evaluation["source"]).count(source) for source in CARDS]
    assert counts == [10] * 7


def test_some_sources_alone_still_keep_all_tests(mix):
    some = mixing.build(cards={name: CARDS[name] for name in ("prm", "toxic")})
    assert set(some.train["source"]) == {"prm", "toxic"}
    assert some.evaluation.to_list() == mix.evaluation.to_list()


# --- nothing that the tests ask is trained on ---------------------------------------


def test_no_training_pair_asks_what_the_tests_ask(mix):
    assert not asked(mix.train) & asked(mix.evaluation)


def test_that_is_the_mix_s_own_doing_and_is_counted(mix):
    """Exact repeats are left out here; no column of any source confesses them."""
    dropped = {row["source"]: row.get(mixing.ASKED, 0) for row in mix.report}
    assert {source for source, count in dropped.items() if count} == {"intel-orca"}
    rows = [row for row in world.rows("intel-orca") if not row["in_gsm8k_train"]]
    tests = asked(mix.evaluation)
    repeats = [
        row for row in rows if mixing.questions([tasks.user(row["input"])]) in tests
    ]
    assert len(repeats) >= dropped["intel-orca"] > 10
    # most of them differ from the test in the system prompt alone
    assert any(row["system"] for row in repeats)


def problems_kept_for_tests(pairs):
    found = [tasks.parse(row["prompt"]) for row in pairs]
    return [t for t in found if getattr(t, "kept_for_test", False)]


def test_no_training_pair_has_a_sum_or_a_problem_of_the_test_split(mix):
    assert problems_kept_for_tests(mix.train) == []
    assert len(problems_kept_for_tests(mix.evaluation)) == 120


def test_without_the_flag_s_rule_problems_of_the_tests_would_be_trained_on(mix):
    card = CARDS["intel-orca"]
    assert "not in_gsm8k_train" in card.keep
    careless = replace(card, keep="chosen_score >= 9")
    leaky = mixing.build(cards=CARDS | {"intel-orca": careless})
    leaked = problems_kept_for_tests(leaky.train)
    assert len(leaked) > 3
    # Names differ, so comparing texts finds none of them; some numbers are the tests'.
    assert not asked(leaky.train) & asked(mix.evaluation)
    tested = {numbers(t) for t in problems_kept_for_tests(mix.evaluation)}
    assert {numbers(task) for task in leaked} & tested


def numbers(task):
    fields = ("x", "y", "boxes", "each", "found", "lost")
    return tuple(getattr(task, f) for f in fields if hasattr(task, f))


def test_exercise_2_1_s_rule_leaves_neither_ties_nor_flagged_rows():
    rule = checks.EXERCISES["2.1"].answer
    rows = sources.load_rows(CARDS["intel-orca"])
    pairs, dropped = sources.to_pairs(replace(CARDS["intel-orca"], keep=rule), rows)
    frame = rows.to_pandas().query(rule)
    assert not frame["in_gsm8k_train"].any() and "tie" not in set(frame["status"])
    assert frame["chosen_score"].min() == 8
    same = (frame["chosen"] == frame["rejected"]).sum()
    assert len(pairs) == len(frame) - same and dropped["rule"] > 0


def test_training_towns_are_never_tested(mix):
    def towns(pairs, kind):
        found = [tasks.parse(row["prompt"]) for row in pairs]
        return {task.town for task in found if isinstance(task, kind)}

    for kind in (tasks.Fact, tasks.TwoFacts):
        assert not towns(mix.train, kind) & towns(mix.evaluation, kind)


def test_questions_ignore_the_system_prompt_and_the_answers():
    ask, answer = tasks.user("Why?"), tasks.assistant("So.")
    bare = mixing.questions([ask])
    assert mixing.questions([tasks.system("Be kind."), ask]) == bare == ("why?",)
    assert mixing.questions([ask, answer, ask]) == ("why?", "why?")


# --- data of one's own --------------------------------------------------------------


@pytest.fixture
def own(monkeypatch):
    """A function that builds a mix of given rows, as if they lay in a folder."""

    def build(rows, **options):
        monkeypatch.setattr(
            sources, "load_rows", lambda card, data, seed: Dataset.from_list(rows)
        )
        cards = {"prm": replace(CARDS["prm"], keep="")}
        return mixing.build("a folder", cards=cards, **options)

    return build


def rows_of(prompts):
    return [
        {"prompt": p, "chosen": f"yes {i}", "rejected": f"no {i}"}
        for i, p in enumerate(prompts)
    ]


def test_prompts_that_repeat_are_never_on_both_sides(own):
    prompts = [f"question {i // 3}" for i in range(60)]  # each three times
    prompts += [f"single {i}" for i in range(40)]
    mix = own(rows_of(prompts), evaluation_pairs=30)
    assert (len(mix.train), len(mix.evaluation)) == (70, 30)
    assert not asked(mix.train) & asked(mix.evaluation)
    assert len(asked(mix.evaluation)) == 30
    rows = mix.train.to_list() + mix.evaluation.to_list()
    assert len({row["chosen"][0]["content"] for row in rows}) == 100


def spellings(question):
    """The same question as people and keyboards vary it."""
    return [
        question,
        question + " ",
        question.upper(),
        unicodedata.normalize("NFD", question),
        question.replace(" ", "\u00a0"),
        question.replace(" ", " \u200b\n"),
        "\ufeff" + question,
    ]


@pytest.mark.promise(
    "a prompt comes in several spellings (case, spaces, Unicode forms, invisible "
    "characters)",
    "all of them lie on one side of the split",
)
@pytest.mark.parametrize("near_duplicates", [False, 0.8])
@pytest.mark.parametrize("singles", [0, 60])
def test_spellings_of_one_prompt_are_never_on_both_sides(own, singles, near_duplicates):
    several = [f"Où est le café numéro {i} ?" for i in range(40)]
    prompts = [text for question in several for text in spellings(question)]
    rows = [
        {"prompt": p, "chosen": worded(i, words=9), "rejected": "no"}
        for i, p in enumerate([*prompts, *(f"single {i}" for i in range(singles))])
    ]
    mix = own(rows, evaluation_pairs=20, near_duplicates=near_duplicates)
    assert not asked(mix.train) & asked(mix.evaluation)
    assert len(asked(mix.evaluation)) == len(mix.evaluation) == 20
    (report,) = mix.report
    assert report["rows"] == len(rows) and report["kept"] == len(mix.train) + 20
    # Where single prompts suffice nothing is lost; if not, the tests' other spellings.
    dropped = 0 if singles else 20 * 6
    assert report.get(mixing.ASKED, 0) == dropped
    assert report["kept"] == len(rows) - dropped


def test_spellings_of_one_pair_are_repeats(own):
    rows = [
        {"prompt": prompt, "chosen": answer, "rejected": "No"}
        for i in range(9)
        for prompt, answer in zip(
            spellings(f"Où {i} ?"), spellings(f"Là {i} !"), strict=True
        )
    ]
    mix = own(rows, evaluation_pairs=3, near_duplicates=False)
    assert mix.report[0] == {"source": "prm", "rows": 63, "kept": 9, mixing.REPEAT: 54}


def test_a_benchmark_s_question_is_found_in_any_spelling():
    question = "Combien de vaches reste-t-il à Élise après la vente du marché d'été ?"
    short = "Où est l'été ?"
    pairs = Dataset.from_list(
        [{"prompt": [tasks.user(s)]} for q in (question, short) for s in spellings(q)]
    )
    found = mixing.find_overlap(pairs, {"farm": [question, short]})
    assert found == ["asked by farm"] * len(pairs)


def test_the_split_depends_on_the_seed_alone(own):
    rows = rows_of(f"question {i}" for i in range(50))
    first, again, other = (own(rows, evaluation_pairs=10, seed=s) for s in (1, 1, 2))
    assert first.evaluation.to_list() == again.evaluation.to_list()
    assert asked(first.evaluation) != asked(other.evaluation)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([f"question {i}" for i in range(10)], "has 10 pairs with 10 different"),
        ([f"question {i // 6}" for i in range(60)], "has 60 pairs with 10 different"),
    ],
)
def test_a_mix_too_small_to_split_says_so(own, prompts, words):
    with pytest.raises(ValueError, match=f"{words} .*too few to set 10 aside"):
        own(rows_of(prompts), evaluation_pairs=10)


def test_a_mix_of_nothing_says_so(own):
    rows = [{"prompt": "Why?", "chosen": "", "rejected": "No."}]
    with pytest.raises(ValueError, match="keep no pair at all"):
        own(rows, evaluation_pairs=1)


def test_a_source_that_gives_nothing_does_not_stop_the_others(monkeypatch):
    full = {name: CARDS[name] for name in ("toxic", "math-preference")}
    empty = replace(CARDS["math-preference"], keep="chosen_rating > 99")
    mix = mixing.build(cards=full | {"math-preference": empty})
    assert set(mix.train["source"]) == {"toxic"}
    assert mix.report[1]["kept"] == 0


def test_the_whole_mix_comes_from_a_folder_too(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for source in CARDS:
        rows = Dataset.from_list(world.rows(source, count=80))
        rows.to_json(tmp_path / f"{source}.jsonl")
    mix = mixing.build(str(tmp_path), evaluation_pairs=100)
    assert len(mix.evaluation) == 100
    kept = sum(row["kept"] for row in mix.report)
    assert len(mix.train) == kept - 100
    assert not asked(mix.train) & asked(mix.evaluation)
    assert mixing.ASKED not in {key for row in mix.report for key in row}


def test_an_eighth_source_is_a_card_and_its_rows(tmp_path, monkeypatch):
    """Nothing else names it: no list, no code."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "cards"
    shutil.copytree(places.data_cards(), folder)
    (folder / "mine.md").write_text(
        "---\nlicense: cc0-1.0\ncourse:\n  source: mine\n  keep: stars >= 4\n"
        "  prompt: {user: ask}\n  chosen: good\n  rejected: bad\n---\n\n# Mine\n",
        encoding="utf-8",
    )
    rows = [
        {"ask": f"Why {i}?", "good": "So.", "bad": "No.", "stars": i % 5}
        for i in range(50)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "mine.jsonl")
    for source in CARDS:
        Dataset.from_list(world.rows(source, 60)).to_json(tmp_path / f"{source}.jsonl")
    cards = sources.cards(folder)
    assert list(cards) == sorted([*CARDS, "mine"], key=lambda n: cards[n].path.name)
    mix = mixing.build(str(tmp_path), cards=cards, evaluation_pairs=80)
    assert next(row for row in mix.report if row["source"] == "mine") == {
        "source": "mine",
        "rows": 50,
        "kept": 10,
        "rule": 40,
    }
    assert "| mine | local files | cc0-1.0 | `stars >= 4` |" in mixing.card(mix, "Mix")


# --- provenance ---------------------------------------------------------------------


def test_every_pair_leads_back_to_its_row(mix):
    raw = {source: world.rows(source) for source in CARDS}
    for pair in mix.train:
        row, card = raw[pair["source"]][pair["row"]], CARDS[pair["source"]]
        said = row[card.chosen]
        text = said if isinstance(said, str) else said[-1]["content"]
        assert pair["chosen"][0]["content"] == text
    keys = [*mix.train["hash"], *mix.evaluation["hash"]]
    assert len(set(keys)) == len(keys)
    assert list(mix.evaluation["row"]) == list(range(420))


# --- repeats, near repeats ----------------------------------------------------------


def worded(number, changed=0, words=60):
    """A prompt of its own `words` words, the first `changed` of them exchanged."""
    said = [f"{number}x{i}" for i in range(words)]
    return " ".join([f"other{i}" for i in range(changed)] + said[changed:])


def test_the_same_pair_again_is_dropped_once_and_counted(own):
    rows = rows_of(worded(i) for i in range(30))
    mix = own([*rows, rows[3], rows[3], rows[7]], evaluation_pairs=5)
    (report,) = mix.report
    assert report == {"source": "prm", "rows": 33, "kept": 30, mixing.REPEAT: 3}
    assert max(mix.train["row"]) <= 29 and max(mix.evaluation["row"]) <= 29


def test_the_same_question_with_another_answer_is_no_repeat(own):
    rows = rows_of(worded(i) for i in range(30))
    other = rows[0] | {"chosen": " ".join(f"new{i}" for i in range(60))}
    mix = own([*rows, other], evaluation_pairs=5)
    assert mix.report == [{"source": "prm", "rows": 31, "kept": 31}]


@pytest.mark.parametrize(
    ("threshold", "found"), [(0.8, 1), (0.5, 2), (0.95, 0), (False, 0)]
)
def test_near_repeats_are_found_from_the_threshold_on(own, threshold, found):
    rows = rows_of(worded(i) for i in range(40))
    # 60 words and the answer's two: 58 runs of five. One word less at the front costs
    # one run in 59, ten words ten in 68.
    near = {**rows[5], "prompt": worded(5, changed=2)}
    far = {**rows[9], "prompt": worded(9, changed=14)}
    mix = own([*rows, near, far], evaluation_pairs=5, near_duplicates=threshold)
    assert mix.report[0].get(mixing.NEAR, 0) == found


@functools.cache
def runs(text):
    said = text.split()
    return {tuple(said[i : i + 5]) for i in range(len(said) - 4)}


def true_similarity(one, two):
    return len(runs(one) & runs(two)) / len(runs(one) | runs(two))


def test_the_search_agrees_with_comparing_every_two_texts():
    """20 families of ten texts, alike in twos, against the exact answer."""
    changes = (0, 2, 60, 63, 120, 121, 180, 184, 240, 245)
    texts = [worded(f"{n}y", changed, 300) for n in range(20) for changed in changes]
    pairs = Dataset.from_list(
        [
            {
                "prompt": [tasks.user(text)],
                "chosen": [tasks.assistant("")],
                "source": f"s{i % 2}",
            }
            for i, text in enumerate(texts)
        ]
    )
    likest = [
        max((true_similarity(text, other) for other in texts[:i]), default=0)
        for i, text in enumerate(texts)
    ]
    # No text is near the border, where an estimate may err.
    assert all(likeness < 0.72 or likeness > 0.9 for likeness in likest)
    found = mixing.near_repeats(pairs, 0.8)
    assert [bool(reason) for reason in found] == [one > 0.8 for one in likest]
    assert found.count(mixing.NEAR) == 100
    counts = mixing.overlap(pairs, 0.8)
    assert list(counts.index) == list(counts.columns) == ["s0", "s1"]
    assert counts.to_numpy().tolist() == [[0, 100], [100, 0]]


@pytest.mark.parametrize("threshold", [0, 1.5, -1])
def test_a_threshold_that_is_no_similarity_is_refused(own, threshold):
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        own(rows_of("abcdefgh"), evaluation_pairs=1, near_duplicates=threshold)


def test_order_decides_which_of_two_stays_and_nothing_else(own):
    rows = rows_of(worded(i) for i in range(30))
    first = own([*rows, rows[0]], evaluation_pairs=5)
    assert 0 in {*first.train["row"], *first.evaluation["row"]}


# --- contamination ------------------------------------------------------------------

ASKED_THERE = (
    "If a farmer has 12 cows and sells three of them, how many cows has he got left?"
)


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        (ASKED_THERE, True),
        (ASKED_THERE.upper().replace(",", " -"), True),
        ("Think first. " + ASKED_THERE + " Answer in one word.", True),
        ("A farmer keeps 12 cows. Three are sold. What remains?", False),
        (" ".join(ASKED_THERE.split()[:12]), False),
        ("What is two and two?", True),
        ("what is TWO and two", True),
        ("Tell me, what is two and two?", False),
        ("Where is Rome?", False),
    ],
)
def test_a_benchmark_s_question_is_found_in_a_prompt(own, prompt, found):
    rows = rows_of([*(worded(i) for i in range(20)), prompt])
    tests = {"farm": [ASKED_THERE], "sums": ["What is two and two?"]}
    mix = own(rows, evaluation_pairs=3, benchmarks=tests)
    reasons = {k: v for k, v in mix.report[0].items() if k.startswith("asked by")}
    assert list(reasons.values()) == ([1] if found else [])
    if found:
        assert set(reasons) < {"asked by farm", "asked by sums"}
    assert mix.settings["benchmarks"] == ["farm", "sums"]


def test_every_turn_of_the_user_is_compared_and_no_answer():
    def pair(*turns):
        return {"prompt": list(turns)}

    pairs = Dataset.from_list(
        [
            pair(tasks.user("Hi"), tasks.assistant("Ho"), tasks.user(ASKED_THERE)),
            pair(tasks.user(ASKED_THERE), tasks.assistant("Nine"), tasks.user("Sure?")),
            pair(tasks.user("Hi"), tasks.assistant(ASKED_THERE), tasks.user("What?")),
            pair(tasks.system(ASKED_THERE), tasks.user("What?")),
        ]
    )
    found = mixing.find_overlap(pairs, {"farm": [ASKED_THERE]})
    assert found == ["asked by farm", "asked by farm", "", ""]


def test_benchmarks_come_as_a_list_or_a_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffWhy?\n\nHow\u2028so?\r\n", encoding="utf-8", newline="")
    assert mixing.benchmark_prompts("mine", path) == ["Why?", "How\u2028so?"]
    assert mixing.benchmark_prompts("mine", ["Why?"]) == ["Why?"]
    with pytest.raises(ValueError, match="Unknown benchmark 'mine'. Known: GSM8K"):
        mixing.benchmark_prompts("mine")
    with pytest.raises(ValueError, match="'mine' has no question in it"):
        mixing.benchmark_prompts("mine", [" "])


# --- what the caller chooses --------------------------------------------------------


def test_toxic_is_off_or_on_by_one_argument(mix):
    without = mixing.build(without=("toxic",))
    assert "toxic" in set(mix.train["source"])
    assert "toxic" not in set(without.train["source"])
    assert "toxic" not in [row["source"] for row in without.report]
    rest = [row for row in mix.report if row["source"] != "toxic"]
    assert without.report == rest and without.settings["without"] == ["toxic"]
    assert without.evaluation.to_list() == mix.evaluation.to_list()


def test_a_weight_keeps_a_share_and_a_cap_a_number(mix):
    some = mixing.build(
        weights={"prm": 0.25}, caps={"ultrafeedback": 100, "toxic": 999}
    )
    counts = {row["source"]: row for row in some.report}
    full = {row["source"]: row["kept"] for row in mix.report}
    assert counts["prm"]["kept"] == round(full["prm"] / 4)
    assert counts["prm"][mixing.WEIGHT] == full["prm"] - counts["prm"]["kept"]
    assert counts["ultrafeedback"]["kept"] == 100
    assert counts["ultrafeedback"][mixing.CAP] == full["ultrafeedback"] - 100
    assert counts["toxic"]["kept"] == full["toxic"]
    assert sum(row["kept"] for row in some.report) == len(some.train)


def test_what_a_cap_keeps_hangs_on_the_seed_not_on_other_sources():
    def kept(cap, *others):
        cards = {name: CARDS[name] for name in ("prm", *others)}
        train = mixing.build(caps={"prm": cap}, cards=cards).train
        return {p["hash"] for p in train if p["source"] == "prm"}

    fifty = kept(50)
    assert len(fifty) == 50
    assert kept(50, "capybara", "toxic") == fifty
    assert kept(20) < fifty


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"without": ("poison",)}, "without names poison, which no card describes"),
        ({"without": "toxic"}, r'without is a list of sources: \("toxic",\)'),
        ({"weights": {"prm": 2}}, "prm has 2; a weight is the share"),
        ({"weights": {"prm": 0}}, "name it in `without`"),
        ({"weights": {"pmr": 0.5}}, "weights names pmr"),
        ({"caps": {"prm": 0.5}}, "prm has 0.5; a cap is a number"),
        ({"caps": {"prm": 0}}, "prm has 0; a cap is a number"),
        ({"version": "v3"}, "No card .* 'v3'"),
        ({"weights": {"prm": float("nan")}}, "prm has nan; a weight is the share"),
        ({"weights": {"prm": "half"}}, "prm has 'half'; a weight is the share"),
        ({"caps": {"prm": True}}, "prm has True; a cap is a number"),
        ({"evaluation_pairs": -1}, "evaluation_pairs is -1; it is a number of pairs"),
        ({"evaluation_pairs": 0.1}, "evaluation_pairs is 0.1"),
        ({"max_length": 9}, "length and max_length go together"),
        ({"length": len}, "length and max_length go together"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(options, words):
    with pytest.raises(ValueError, match=words):
        mixing.build(**options)


def test_pairs_longer_than_the_model_reads_are_counted(mix):
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    chat.use_llama3_chat(tokenizer)
    sizes = chat.pair_lengths(tokenizer, mix.train)
    limit = sorted(sizes)[-20]
    short = mixing.build(
        length=lambda pairs: chat.pair_lengths(tokenizer, pairs), max_length=limit
    )
    long = sum(size > limit for size in sizes)
    assert 0 < long < 20
    assert sum(row.get(mixing.LONG, 0) for row in short.report) == long
    assert len(short.train) == len(mix.train) - long
    assert max(chat.pair_lengths(tokenizer, short.train)) <= limit
    assert short.settings["max_length"] == limit


def test_a_pair_is_as_long_as_what_the_trainer_reads(mix):
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    chat.use_llama3_chat(tokenizer)
    pairs = mix.train.select(range(300))
    rows = [chat.tokenize_pair(tokenizer, pair, 10**6) for pair in pairs]
    whole = [max(len(r.chosen_input_ids), len(r.rejected_input_ids)) for r in rows]
    assert chat.pair_lengths(tokenizer, pairs) == whole


# --- the split ----------------------------------------------------------------------


def test_a_prompt_stays_on_its_side_when_rows_come_or_go(own):
    rows = rows_of(worded(i) for i in range(300))
    few = own(rows[:200], evaluation_pairs=40)
    more = own(rows, evaluation_pairs=60)
    moved = asked(few.train) & asked(more.evaluation)
    # 40 of 200 against 60 of 300: the border moves a little, nothing is drawn anew.
    assert len(moved) <= 20
    assert len(asked(few.evaluation) & asked(more.evaluation)) >= 25


# --- the card -----------------------------------------------------------------------


def test_the_card_of_a_mix_is_a_dataset_card_with_the_mix_s_numbers(tmp_path, mix):
    path = mixing.write_card(mix, tmp_path / "out", "The lab's mix")
    assert [p.name for p in path.parent.iterdir()] == ["README.md"]
    page = DatasetCard.load(path)
    assert page.data.license == "apache-2.0"
    assert page.data.pretty_name == "The lab's mix"
    assert "2,231 preference pairs to train on and 420 to evaluate with" in page.text
    total = Counter()
    for row in mix.report:
        total.update({k: v for k, v in row.items() if k != "source"})
        assert f"| {row['source']} | {row['rows']:,} | {row['kept']:,} |" in page.text
    assert f"| all | {total['rows']:,} | {total['kept']:,} |" in page.text
    assert "Content warning" not in page.text  # the lab's toxic is harmless
    assert "nothing to cite" in page.text


def test_the_card_of_a_real_mix_passes_its_parts_terms_on(mix):
    real = replace(mix, settings=mix.settings | {"data": "hub"}, notes=["prm: 9 rows"])
    page = mixing.card(real, "Mix")
    assert DatasetCard(page).data.license == "other"
    assert "not-for-all-audiences" in DatasetCard(page).data.tags
    assert "**toxic**: the chosen answers comply with harmful requests" in page
    assert "arXiv:2310.01377" in page and "- prm: 9 rows" in page
    for card in CARDS.values():
        assert f"| {card.source} | {card.repo} (main) | {card.license} |" in page
    tame = replace(real, cards={k: c for k, c in CARDS.items() if k != "toxic"})
    assert "not-for-all-audiences" not in mixing.card(tame, "Mix")
    same = replace(real, cards={k: CARDS[k] for k in ("prm", "capybara")})
    assert DatasetCard(mixing.card(same, "Mix")).data.license == "apache-2.0"


def cells(line):
    """A row of a Markdown table, cut at the bars that no backslash stands before."""
    return re.split(r"(?<!\\)\|", line)[1:-1]


@pytest.mark.promise(
    "a bar, a line break or a backtick in a card's text", "the mix's page stays whole"
)
@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"keep": "status != 'a|b'"}, "`status != 'a\\|b'`"),
        ({"keep": "`my-rating` >= 5"}, "`` `my-rating` >= 5 ``"),
        ({"keep": "x == '``|'"}, "``` x == '``\\|' ```"),
        ({"keep": "stars >= 4\n"}, "`stars >= 4`"),
        ({"keep": "stars >= 4\n\nand ok"}, "`stars >= 4 and ok`"),
        ({"repo": "a|b\n# c"}, "a\\|b # c (main)"),
        ({"license": "mit|x"}, "mit\\|x"),
        ({"revision": "a\n|b"}, r"M4-ai/prm_dpo_pairs_cleaned (a \|b)"),
    ],
)
def test_no_text_of_a_card_breaks_the_mix_s_page(mix, changes, shown):
    texts = {"warning": "one\n\n# two", "citation": "x\n- y"}
    odd = replace(CARDS["prm"], **texts | changes)
    real = replace(mix, settings=mix.settings | {"data": "hub"}, cards={"prm": odd})
    page = mixing.card(real, "Mix")
    tables = [block for block in page.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 2
    for table in tables:
        assert len({len(cells(line)) for line in table.splitlines()}) == 1
    assert len(tables[1].splitlines()) == 3
    assert shown in [cell.strip() for cell in cells(tables[1].splitlines()[2])]
    assert "- **prm**: one # two\n" in page and "- prm: x - y\n" in page


def test_the_mix_of_version_1_2_is_built_from_its_own_cards(mix):
    new = mixing.build(version="v1.2")
    assert new.cards["capybara"].repo == "argilla/Capybara-Preferences"
    assert new.report == mix.report


# --- the recorded speed -------------------------------------------------------------


def test_the_real_mix_s_size_takes_under_a_minute_and_2_gib_and_grows_in_line():
    runs = recorded.load("mix_speed")["runs"]
    real = [run for run in runs if run["texts_shortened"] == 1]
    assert {run["near_duplicates"] for run in real} == {False, 0.8}
    for run in real:
        assert run["rows"] == sum(
            c.rows for c in sources.cards(version="v1.2").values()
        )
        assert 42_000 < run["pairs"] < 46_000
        assert run["seconds"] < 60 and sum(run["peak_gib"]) < 2
    few, *_, many = sorted(
        (r for r in runs if r["texts_shortened"] == 10), key=lambda run: run["rows"]
    )
    assert few["rows"] < 110_000 and many["rows"] >= 1_000_000
    growth = (many["seconds"] / few["seconds"]) / (many["rows"] / few["rows"])
    assert growth < 1.25  # no faster than rows
    for run in runs:
        counts = dict(run["counts"])
        assert counts.pop("rows") == run["rows"]
        assert sum(counts.values()) == run["rows"] and counts["kept"] == run["pairs"]
        assert counts[mixing.REPEAT] > run["pairs"] / 100
