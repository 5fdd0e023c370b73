"""Scores, generations and intervals, each against a plain way to compute it."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats

from course_utils import chat, evaluation, lab
from course_utils.data import mixing, world
from course_utils.data.world import tasks
from course_utils.evaluation import scoring
from course_utils.training import ORPOConfig, ORPOTrainer

PAIRS = world.test_pairs(2)
PROMPTS = [pair["prompt"] for pair in PAIRS]


@pytest.fixture(scope="module")
def base():
    return lab.load_base()


# --- log-probs ----------------------------------------------------------------------


def plain_mean_logp(model, tokenizer, prompt, answer):
    """One sequence, no padding, straight from the definition."""
    start = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=False
    )
    whole = start + answer["content"] + tokenizer.eos_token

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    ids, begin = torch.tensor([encode(whole)]), len(encode(start))
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
    taken = [logps[at - 1, ids[0, at]].item() for at in range(begin, ids.shape[1])]
    return sum(taken) / len(taken)


@pytest.fixture(scope="module")
def scores(base):
    return evaluation.score_pairs(*base, PAIRS)


def test_scores_equal_a_plain_loop(base, scores):
    for side in ("chosen", "rejected"):
        plain = [plain_mean_logp(*base, row["prompt"], row[side][0]) for row in PAIRS]
        np.testing.assert_allclose(getattr(scores, side), plain, atol=2e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_do_not_hang_on_the_batch(base, scores, batch_size):
    again = evaluation.score_pairs(*base, PAIRS, batch_size=batch_size)
    np.testing.assert_allclose(again.chosen, scores.chosen, atol=1e-5)
    np.testing.assert_allclose(again.rejected, scores.rejected, atol=1e-5)


def test_long_rows_of_a_large_vocabulary_come_in_smaller_batches(monkeypatch):
    sequences = [([0] * length, []) for length in (3, 4, 5, 100, 100)]
    monkeypatch.setattr(scoring, "_LOGITS_BYTES", 4 * 1000 * 12)
    batches = list(scoring._batches(range(5), sequences, 32, 1000))
    assert batches == [[0, 1], [2], [3], [4]]  # 2 x 4 tokens fit 12, 3 x 5 do not
    assert list(scoring._batches(range(5), sequences, 2, 1)) == [[0, 1], [2, 3], [4]]


def test_rows_made_by_the_trainer_score_the_same(base, scores, tmp_path):
    model, tokenizer = base
    rows = ORPOTrainer(
        model,
        ORPOConfig(**lab.trainer_arguments(1e-4, 1, 0, tmp_path)),
        train_dataset=Dataset.from_list(PAIRS).remove_columns("source"),
        processing_class=tokenizer,
    ).train_dataset
    again = evaluation.score_rows(model, rows, tokenizer.pad_token_id)
    np.testing.assert_allclose(again.chosen, scores.chosen, atol=1e-5)
    np.testing.assert_allclose(again.rejected, scores.rejected, atol=1e-5)


def test_scores_keep_the_order_of_the_pairs(base, scores):
    again = evaluation.score_pairs(*base, PAIRS[::-1])
    np.testing.assert_allclose(again.chosen[::-1], scores.chosen, atol=1e-5)


def test_scoring_leaves_the_model_in_its_mode(base):
    model, tokenizer = base
    model.train()
    evaluation.score_pairs(model, tokenizer, PAIRS[:1])
    assert model.training
    model.eval()
    evaluation.score_pairs(model, tokenizer, PAIRS[:1])
    assert not model.training


def test_dropout_is_off_while_scoring(base, monkeypatch):
    model, tokenizer = base
    model.train()
    monkeypatch.setattr(model.config, "attention_dropout", 0.5)
    for layer in model.model.layers:
        monkeypatch.setattr(layer.self_attn, "attention_dropout", 0.5)
    first = evaluation.score_pairs(model, tokenizer, PAIRS[:2])
    again = evaluation.score_pairs(model, tokenizer, PAIRS[:2])
    np.testing.assert_array_equal(first.chosen, again.chosen)


def test_margin_is_the_log_odds_ratio():
    scores = evaluation.PairScores(np.log([0.5, 0.9]), np.log([0.5, 0.2]))
    odds = [[0.5 / 0.5, 0.9 / 0.1], [0.5 / 0.5, 0.2 / 0.8]]
    np.testing.assert_allclose(scores.margin, np.log(odds[0]) - np.log(odds[1]))
    assert scores.preferred.tolist() == [False, True]


def test_a_prompt_that_leaves_no_answer_is_named(base):
    long = PAIRS[0] | {"prompt": [{"role": "user", "content": "Why? " * 100}]}
    with pytest.raises(ValueError, match="Row 1 has no answer .*Raise max_length"):
        evaluation.score_pairs(*base, [PAIRS[0], long], max_length=64)


def test_any_text_after_any_text_scores_like_a_plain_loop(base):
    model, tokenizer = base
    contexts = ["Q: What is 47 + 38?\nA:", "The river of Normo is", "Hello"] * 2
    answers = [" It is 85.", " the Senel.", "!", " No.", " wet", " from Tolpengar."]
    found = evaluation.score_answers(model, tokenizer, contexts, answers, batch_size=4)
    for i, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        ids = tokenizer(context + answer, return_tensors="pt")["input_ids"]
        begin = len(tokenizer(context)["input_ids"])
        assert ids[0, 0] == tokenizer.bos_token_id
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
        taken = [logps[at - 1, ids[0, at]].item() for at in range(begin, ids.shape[1])]
        assert found.tokens[i] == len(taken)
        assert found.total[i] == pytest.approx(sum(taken), abs=2e-5)


def test_answers_in_chat_format_score_as_pairs_do(base, scores):
    model, tokenizer = base
    contexts = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
        for p in PROMPTS
    ]
    answers = [pair["chosen"][0]["content"] + tokenizer.eos_token for pair in PAIRS]
    found = evaluation.score_answers(model, tokenizer, contexts, answers)
    np.testing.assert_allclose(found.total / found.tokens, scores.chosen, atol=2e-6)


@pytest.mark.parametrize("answer", ["", "rmo."])
def test_an_answer_without_a_token_of_its_own_is_named(base, answer):
    contexts = ["Hello", "The river of No"]
    with pytest.raises(ValueError, match="Item 1: .*does not begin with a token"):
        evaluation.score_answers(*base, contexts, [" you", answer])


# --- generations --------------------------------------------------------------------


@pytest.fixture(scope="module")
def greedy(base):
    return evaluation.generate(*base, PROMPTS, temperature=0)


def test_greedy_is_repeatable_and_keeps_the_order(base, greedy):
    backwards = evaluation.generate(*base, PROMPTS[::-1], temperature=0, seed=9)
    assert backwards[::-1] == greedy
    assert evaluation.generate(*base, PROMPTS, 0, batch_size=3) == greedy


def test_greedy_is_the_likeliest_token_at_every_step(base, greedy):
    model, tokenizer = base
    text = tokenizer.apply_chat_template(
        PROMPTS[0], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    written = []
    while len(written) < 112 and tokenizer.eos_token_id not in written:
        with torch.no_grad():
            best = model(input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, best.view(1, 1)], 1)
        written.append(best.item())
    assert tokenizer.decode(written, skip_special_tokens=True) == greedy[0].text


def test_sampling_hangs_on_the_seed(base, greedy):
    first, again, other = (
        evaluation.generate(*base, PROMPTS, 1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert first != greedy


def test_ended_says_whether_the_turn_was_closed(base, greedy):
    assert sum(answer.ended for answer in greedy) >= len(greedy) - 1
    cut = evaluation.generate(*base, PROMPTS, 0, max_new_tokens=3)
    assert not any(answer.ended for answer in cut)
    for short, whole in zip(cut, greedy, strict=True):
        assert whole.text.startswith(short.text) and short.text != whole.text
        assert "<|" not in whole.text


def test_an_end_token_the_model_never_writes_does_not_end_the_turn(base):
    model, _ = base
    _, tokenizer = lab.load_base()
    chat.use_llama3_chat(tokenizer)  # its end token was never seen in pretraining
    written = evaluation.generate(model, tokenizer, PROMPTS[:3], 0, max_new_tokens=20)
    assert not any(answer.ended for answer in written)


def test_an_answer_is_good_only_if_it_ended():
    right = min(tasks.parse(PROMPTS[0]).right_answers())
    answers = [evaluation.Generation(right, True), evaluation.Generation(right, False)]
    answers.append(evaluation.Generation(right + " Maybe yes, maybe no.", True))
    verdicts = evaluation.verify_generations([PROMPTS[0]] * 3, answers)
    assert verdicts.good.tolist() == [True, False, False]
    assert verdicts.content.tolist() == [True, True, True]
    assert verdicts.ending.tolist() == [True, True, False]
    assert verdicts.ended.tolist() == [True, False, True]


def test_prompts_and_generations_must_be_equally_many():
    with pytest.raises(ValueError):
        evaluation.verify_generations(PROMPTS, [evaluation.Generation("", True)])


# --- intervals ----------------------------------------------------------------------


@pytest.mark.parametrize(("yes", "n"), [(5, 10), (0, 420), (420, 420), (63, 105)])
def test_yes_no_gets_wilson_s_interval(yes, n):
    got = evaluation.estimate(np.arange(n) < yes)
    p, z = yes / n, stats.norm.ppf(0.975)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (got.value, got.n) == (p, n)
    assert (got.low, got.high) == pytest.approx((middle - half, middle + half))


def test_numbers_get_a_bootstrap_near_the_t_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    got = evaluation.estimate(values)
    expected = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert got.value == values.mean()
    assert (got.low, got.high) == pytest.approx(expected, abs=0.03)
    assert evaluation.estimate(values) == got


def test_an_estimate_prints_short():
    assert str(evaluation.Estimate(0.5, 0.25, 0.754, 8)) == "0.50 [0.25, 0.75]"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([True], "at least 2 items, got 1"),
        ([], "at least 2 items, got 0"),
        (np.zeros(420), "All 420 numbers are 0.0.*give them as bool"),
    ],
)
def test_an_interval_that_cannot_be_had_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        evaluation.estimate(values)


def seeds_and_items(seeds, items, spread, rng):
    """Scores around 0.3: of seeds, of items, and of both; spread: three deviations."""
    parts = [(seeds, 1), (1, items), (seeds, items)]
    return 0.3 + sum(
        s * rng.normal(size=shape) for s, shape in zip(spread, parts, strict=True)
    )


@pytest.mark.parametrize(
    ("seeds", "items", "spread"),
    [(3, 300, (0.3, 2, 2)), (3, 300, (0.0, 1, 2)), (6, 80, (0.5, 1, 1))],
)
def test_the_interval_over_seeds_and_items_covers_the_truth(seeds, items, spread):
    rng, runs = np.random.default_rng(0), 400
    tables = [seeds_and_items(seeds, items, spread, rng) for _ in range(runs)]
    found = [evaluation.estimate_over_seeds(table) for table in tables]
    covered = sum(each.low <= 0.3 <= each.high for each in found)
    # Satterthwaite's degrees of freedom are approximate with three seeds: 92 % or more.
    assert covered >= stats.binom.ppf(0.001, runs, 0.92)
    assert all(each.n == items for each in found)


def test_an_interval_over_items_alone_misses_the_seeds():
    rng = np.random.default_rng(0)
    tables = [seeds_and_items(3, 300, (1, 1, 1), rng) for _ in range(60)]
    over_items = [evaluation.estimate(table.mean(0)) for table in tables]
    assert sum(each.low <= 0.3 <= each.high for each in over_items) < 30
    over_both = [evaluation.estimate_over_seeds(table) for table in tables]
    assert sum(each.low <= 0.3 <= each.high for each in over_both) > 50


@pytest.mark.parametrize("table", [np.zeros((1, 5)), np.zeros(5), np.zeros((3, 1))])
def test_one_seed_or_one_item_has_no_interval_over_seeds(table):
    with pytest.raises(ValueError, match="at least 2 seeds by 2 items"):
        evaluation.estimate_over_seeds(table)


def test_a_table_that_never_varies_is_refused():
    with pytest.raises(ValueError, match=r"All 15 numbers are 1\.0"):
        evaluation.estimate_over_seeds(np.ones((3, 5)))


# --- for people ---------------------------------------------------------------------

WRITTEN = {
    name: [evaluation.Generation(f"{name}'s answer {i}", i % 2 == 0) for i in range(12)]
    for name in ("old", "new")
}
ASKED = [[tasks.user(f"Is {i} < 7 & odd?")] for i in range(12)]


def test_a_blind_table_hides_who_wrote_what_and_the_key_tells():
    blind = evaluation.side_by_side(ASKED, WRITTEN, seed=3)
    assert len(set(blind.key)) == 2  # both orders occur
    for i, (names, answers) in enumerate(zip(blind.key, blind.answers, strict=True)):
        ended = "" if i % 2 == 0 else " …"
        assert answers == tuple(f"{name}'s answer {i}{ended}" for name in names)
    head = blind._repr_html_().split("</thead>")[0]
    assert ">A<" in head and ">B<" in head and "old" not in head
    assert evaluation.side_by_side(ASKED, WRITTEN, seed=3) == blind
    assert evaluation.side_by_side(ASKED, WRITTEN, seed=4).key != blind.key


def test_an_open_table_names_the_models_and_shows_text_as_text():
    table = evaluation.side_by_side(ASKED, WRITTEN, blind=False)
    assert set(table.key) == {("old", "new")}
    page = table._repr_html_()
    assert ">old<" in page and "Is 3 &lt; 7 &amp; odd?" in page
    assert "1. Is 0 < 7 & odd?\n   old: old's answer 0" in repr(table)


def test_a_dialogue_says_who_speaks():
    dialogue = [tasks.user("I am Ada."), tasks.assistant("Hello."), tasks.user("Who?")]
    table = evaluation.side_by_side([dialogue], {"old": WRITTEN["old"][:1]})
    assert table.prompts == ("user: I am Ada.\nassistant: Hello.\nuser: Who?",)
    assert "Ada.<br>assistant" in table._repr_html_()


def test_long_answers_are_cut_and_marked():
    long = [evaluation.Generation("word " * 50, ended) for ended in (True, False)]
    table = evaluation.side_by_side(ASKED[:2], {"old": long}, longest=12)
    assert [row[0] for row in table.answers] == [
        "word word wo […]",
        "word word wo […] …",
    ]


def test_votes_are_counted_for_the_models():
    blind = evaluation.side_by_side(ASKED, WRITTEN, seed=3)
    for_new = ["AB"[names.index("new")] for names in blind.key]
    wins, p = blind.unblind(for_new)
    assert (wins["new"], wins["old"], wins["tie"]) == (12, 0, 0)
    assert p == pytest.approx(2 / 2**12)
    wins, p = blind.unblind(["="] * 12)
    assert wins["tie"] == 12 and math.isnan(p)
    with pytest.raises(ValueError, match="Row 2: 'C' is none of A, B, ="):
        blind.unblind(["A", "C", *for_new[2:]])
    with pytest.raises(ValueError, match="12 rows need as many votes"):
        blind.unblind("AB")


def test_answers_and_prompts_must_be_equally_many():
    with pytest.raises(ValueError, match="new: 12 answers to 11 prompts"):
        evaluation.side_by_side(ASKED[:11], {"new": WRITTEN["new"]})


# --- while a trainer runs -----------------------------------------------------------


def test_the_curve_measures_a_real_run_as_score_pairs_does(tmp_path):
    model, tokenizer = lab.load_base()
    start = evaluation.score_pairs(model, tokenizer, PAIRS)
    lengths = []
    curve = evaluation.PreferenceCurve(
        tokenizer, PAIRS, every=3, on_point=lambda history: lengths.append(len(history))
    )
    settings = lab.trainer_arguments(1e-3, 4, 0, tmp_path)
    settings |= {"per_device_train_batch_size": 2, "warmup_steps": 0}
    trainer = ORPOTrainer(
        model,
        ORPOConfig(beta=0.5, **settings),
        train_dataset=mixing.build().train.select(range(8)),
        processing_class=tokenizer,
        callbacks=[curve],
    )
    trainer.train()
    assert [point["step"] for point in curve.history] == [0, 3, 4]
    assert lengths == [1, 2, 3]
    end = evaluation.score_pairs(trainer.model, tokenizer, PAIRS)
    for point, scores in ((curve.history[0], start), (curve.history[-1], end)):
        assert point["chosen"] == pytest.approx(scores.chosen.mean(), abs=1e-6)
        assert point["rejected"] == pytest.approx(scores.rejected.mean(), abs=1e-6)
        assert point["margin"] == pytest.approx(scores.margin.mean(), abs=1e-5)
        assert point["accuracy"] == scores.preferred.mean()
    assert end.chosen.mean() != pytest.approx(start.chosen.mean(), abs=1e-3)
