"""The mix: repeatable, accounted for to the last row, and clean of what tests ask."""

from dataclasses import replace

import pytest
from datasets import Dataset

from course_utils import checks, mixing, sources, world
from course_utils.world import tasks

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
    repeats = [row for row in rows if (row["input"],) in tests]
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
    assert mixing.questions([tasks.system("Be kind."), ask]) == bare == ("Why?",)
    assert mixing.questions([ask, answer, ask]) == ("Why?", "Why?")


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


def test_the_split_hangs_on_the_seed_alone(own):
    rows = rows_of(f"question {i}" for i in range(50))
    first, again, other = (own(rows, evaluation_pairs=10, seed=s) for s in (1, 1, 2))
    assert first.evaluation.to_list() == again.evaluation.to_list()
    assert asked(first.evaluation) != asked(other.evaluation)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([f"question {i}" for i in range(10)], "has 10 pairs, 10 of them"),
        ([f"question {i // 2}" for i in range(60)], "has 60 pairs, 0 of them"),
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
