"""Scores, generations and intervals, each against a plain way to compute it."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from course_utils import chat, evaluation, lab, mixing, world
from course_utils.world import tasks

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
        np.testing.assert_allclose(getattr(scores, side), plain, atol=2e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_scores_do_not_hang_on_the_batch(base, scores, batch_size):
    again = evaluation.score_pairs(*base, PAIRS, batch_size=batch_size)
    np.testing.assert_allclose(again.chosen, scores.chosen, atol=1e-5)
    np.testing.assert_allclose(again.rejected, scores.rejected, atol=1e-5)


def test_rows_made_by_trl_score_the_same(base, scores, tmp_path):
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
