"""One warning where nothing moves, with reasons; one for few evaluation pairs."""

import numpy as np
import pytest
from datasets import Dataset
from fast_harness import lora, make_trainer, text_rows, tokenizer
from scipy import stats
from tiny_llama import tiny_model

from course_utils.training import ORPOTrainer, PackedORPOTrainer, orpo_checks

STILL = {
    "max_steps": 100,
    "logging_steps": 5,
    "rows": 20,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 4,
}


def warnings_of(caplog):
    return [r.message for r in caplog.records if r.message.startswith("Nothing moves")]


@pytest.mark.parametrize("cls", [ORPOTrainer, PackedORPOTrainer])
def test_a_learning_rate_of_nothing_is_named(tmp_path, caplog, cls):
    make_trainer(
        cls, tmp_path, peft_config=lora(), learning_rate=1e-9, beta=2.0, **STILL
    ).train()
    (message,) = warnings_of(caplog)
    assert "in 50 steps (200 pairs) the log-odds" in message
    assert "The learning rate was at most 1e-09; an adapter usually needs" in message
    assert "beta" not in message  # its term is a tenth of the loss and more
    assert "end token" not in message  # its row is trained


def test_a_beta_of_nothing_is_named(tmp_path, caplog):
    settings = STILL | {"beta": 1e-4, "learning_rate": 1e-9}
    make_trainer(ORPOTrainer, tmp_path, **settings).train()
    (message,) = warnings_of(caplog)
    assert "With beta 0.0001 the preference term is 0% of the loss" in message
    assert "all weights usually needs" in message


def test_an_untrained_end_token_is_named(tmp_path, caplog):
    model = tiny_model(len(tokenizer())).double()
    end = tokenizer().eos_token_id
    model.get_input_embeddings().weight.data[end] *= 1e-3
    adapter = lora(trainable_token_indices={"embed_tokens": [20], "lm_head": [20]})
    settings = STILL | {"learning_rate": 1e-9}
    make_trainer(
        ORPOTrainer, tmp_path, model=model, peft_config=adapter, **settings
    ).train()
    (message,) = warnings_of(caplog)
    assert "The end token <|end_of_text|> looks untrained" in message


def test_a_warm_up_that_never_ends_is_named(tmp_path, caplog):
    settings = STILL | {"learning_rate": 1e-7, "warmup_steps": 100}
    settings["lr_scheduler_type"] = "linear"
    make_trainer(ORPOTrainer, tmp_path, **settings).train()
    (message,) = warnings_of(caplog)
    assert "Warm-up is not over: it takes 100 steps." in message


def test_a_run_that_learns_is_left_alone(tmp_path, caplog):
    make_trainer(
        ORPOTrainer, tmp_path, peft_config=lora(), learning_rate=3e-2, beta=5.0, **STILL
    ).train()
    assert warnings_of(caplog) == []


def test_the_check_can_be_switched_off(tmp_path, caplog):
    settings = STILL | {"learning_rate": 1e-9, "still_after": 0}
    make_trainer(ORPOTrainer, tmp_path, **settings).train()
    assert warnings_of(caplog) == []


def test_the_change_of_halves_has_the_error_of_two_means():
    values = np.random.default_rng(0).normal(size=40)
    change, error = orpo_checks.change_of_halves(list(values))
    found = stats.ttest_ind(values[20:], values[:20], equal_var=False)
    assert change / error == pytest.approx(found.statistic)


# ---- evaluation on enough pairs ----


@pytest.mark.parametrize(("count", "told"), [(10, True), (199, True), (200, False)])
def test_a_small_evaluation_set_is_reported_with_its_interval(
    tmp_path, caplog, count, told
):
    held_out = Dataset.from_list(text_rows(count))
    make_trainer(ORPOTrainer, tmp_path, eval_dataset=held_out)
    assert (
        f"eval_dataset has {count} pairs: an accuracy of 0.5" in caplog.text
    ) == told
    if count == 10:
        assert "the 95 % interval 0.24 to 0.76" in caplog.text


@pytest.mark.parametrize(("right", "count"), [(5, 10), (100, 200), (30, 37), (0, 9)])
def test_wilson_s_interval_equals_scipy_s(right, count):
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    found = orpo_checks.wilson_interval(right / count, count)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-6)
