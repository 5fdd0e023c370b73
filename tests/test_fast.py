"""The fast trainer equals TRL's: losses, gradients, metrics, runs, checkpoints."""

import functools
import random
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from fast_harness import (
    TRAINED_ROWS,
    WITH_PADDING,
    assert_same_step,
    copy_trained,
    feature,
    gradient_error,
    lora,
    make_both,
    make_trainer,
    nf4_model,
    random_feature,
    run_step,
    text_rows,
    tokenizer,
    trained,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llama import tiny_model
from transformers import TrainerCallback
from trl_orpo import trl_orpo

from course_utils.training.fast import FastTrainingConfig, PackedORPOTrainer


@functools.cache
def both(dtype):
    # Few adapted layers, for speed; KINDS below has all of them.
    adapter = lora(target_modules=["q_proj", "down_proj"])
    return make_both("outputs", dtype=dtype, peft_config=adapter)


windows = st.lists(st.integers(1, 3), min_size=1, max_size=3)
seeds = st.integers(0, 10**6)


def groups_of(sizes, seed):
    chance = random.Random(seed)
    return [[random_feature(chance) for _ in range(size)] for size in sizes]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    windows,
    seeds,
    st.sampled_from([12, 30, 1000]),
    st.sampled_from([7, 512, None]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_equals_trl_in_double_precision(
    sizes, seed, budget, tile, packing, shared_prefix, fused
):
    theirs, ours = both(torch.float64)
    ours.unpatch()
    ours.fast_config = FastTrainingConfig(
        token_budget=budget,
        head_tile=tile,
        packing=packing,
        shared_prefix=shared_prefix,
        fused_lora=fused,
    )
    # TRL itself computes the odds in fp32, whatever the model computes in.
    assert_same_step(theirs, ours, groups_of(sizes, seed))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(windows, seeds, st.sampled_from([12, 1000]))
def test_equals_trl_in_single_precision(sizes, seed, budget):
    theirs, ours = both(torch.float32)
    ours.fast_config = replace(ours.fast_config, token_budget=budget)
    # TRL's own gradients in fp32 are up to 2.2e-6 away from those in fp64.
    groups = groups_of(sizes, seed)
    assert_same_step(theirs, ours, groups, gradient_tolerance=5e-6)


CASES = {
    "prompt of one token": feature([3], [4, 5, 1], [6, 1]),
    "chosen continues rejected": feature([3, 4], [5, 6, 7, 1], [5, 6]),
    "rejected continues chosen": feature([3, 4], [5, 6], [5, 6, 7, 1]),
    "the same answer twice": feature([3, 4], [5, 6, 1], [5, 6, 1]),
    "answers of one token": feature([3, 4, 2], [5], [6]),
    "nothing in common": {
        **feature([3, 4], [5, 6], [7]),
        "rejected_input_ids": [8, 4, 7],
    },
    "no prompt at all": feature([], [5, 6, 1], [7, 2, 2]),
    "prompts that differ in their last token": {
        **feature([3, 4], [5, 6], [7]),
        "rejected_input_ids": [3, 9, 7],
    },
}


@pytest.mark.parametrize("case", CASES)
def test_equals_trl_in_corner_cases(case):
    theirs, ours = both(torch.float64)
    ours.fast_config = FastTrainingConfig()
    assert_same_step(theirs, ours, [[CASES[case]]])
    assert_same_step(theirs, ours, [[CASES[case], *CASES.values()], [CASES[case]]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_of_the_tokenizer_changes_nothing(tmp_path, side):
    made = make_both(tmp_path, peft_config=lora())
    for trainer in made:
        trainer.processing_class.padding_side = side
    batches = [next(iter(trainer.get_train_dataloader())) for trainer in made]
    losses = [
        trainer.get_batch_loss_metrics(trainer.model, batch)[0]
        for trainer, batch in zip(made, batches, strict=True)
    ]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_a_batch_of_another_collator_is_packed_from_its_tensors(tmp_path):
    theirs, ours = make_both(tmp_path, peft_config=lora())
    batch = next(iter(theirs.get_train_dataloader()))
    assert "pairs" not in batch
    losses = [t.compute_loss(t.model, batch) for t in (theirs, ours)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    # and the loss that compute_loss returns carries the gradient of every row
    gradients = []
    for trainer, loss in zip((theirs, ours), losses, strict=True):
        loss.backward()
        gradients.append(
            {n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad}
        )
    assert gradient_error(*gradients[::-1]) < 1e-6


def test_logits_metrics_average_the_real_tokens():
    theirs, ours = both(torch.float64)
    ours.fast_config = FastTrainingConfig()
    group = [random_feature(random.Random(seed)) for seed in range(5)]
    _, metrics, _ = run_step(ours, [group])
    for side in ("chosen", "rejected"):
        with torch.no_grad():
            logits = [
                theirs.model(torch.tensor([row[f"{side}_input_ids"]])).logits[0, :-1]
                for row in group
            ]
        expected = torch.cat(logits).mean()
        assert metrics[f"logits/{side}"] == [pytest.approx(float(expected), rel=1e-6)]


def test_logits_metrics_equal_trl_where_nothing_is_padded():
    theirs, ours = both(torch.float64)
    ours.fast_config = FastTrainingConfig()
    group = [feature([3, 4], [5, 6], [7, 8]), feature([1, 2], [2, 1], [9, 9])]
    expected, found = (run_step(trainer, [group])[1] for trainer in (theirs, ours))
    for name in WITH_PADDING:
        assert found[name] == pytest.approx(expected[name], rel=1e-6)


# ---- kinds of models ----


def tied_model():
    return tiny_model(len(tokenizer()), tie_word_embeddings=True).double()


def padded_model():
    """Its padding token's row is one of those that are trained."""
    return tiny_model(len(tokenizer()), pad_token_id=TRAINED_ROWS[0]).double()


KINDS = {
    "all weights trained": {"peft_config": None},
    "LoRA without token rows": {"peft_config": lora(train_rows=False)},
    "LoRA on the head": {"peft_config": lora(False, target_modules="all-linear")},
    "rank-stabilised LoRA": {"peft_config": lora(use_rslora=True)},
    "DoRA": {"peft_config": lora(use_dora=True)},
    "a trained head": {"peft_config": lora(False, modules_to_save=["lm_head"])},
    "tied embeddings": {"peft_config": lora(), "make_model": tied_model},
    "a padding row is trained": {"peft_config": lora(), "make_model": padded_model},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [5, 512])
def test_equals_trl_for_every_kind_of_model(tmp_path, kind, tile):
    made = make_both(
        tmp_path, fast_config=FastTrainingConfig(head_tile=tile), **KINDS[kind]
    )
    assert_same_step(*made, groups_of([2, 3], seed=0))


def test_equals_trl_with_the_adapter_switched_off(tmp_path):
    theirs, ours = make_both(tmp_path, peft_config=lora())
    group = groups_of([3], seed=0)[0]
    results = []
    for trainer in (theirs, ours):
        batch = trainer.data_collator(group)
        with trainer.model.disable_adapter(), torch.no_grad():
            loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
        results.append(loss)
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)


@pytest.mark.parametrize("fused", [True, False])
def test_equals_trl_on_nf4_weights(tmp_path, fused):
    theirs, ours = make_both(
        tmp_path,
        make_model=lambda: nf4_model(tmp_path),
        fast_config=FastTrainingConfig(fused_lora=fused),
        dtype=torch.float32,
        peft_config=lora(),
    )
    assert_same_step(theirs, ours, groups_of([2, 1], seed=0), gradient_tolerance=5e-6)


@pytest.mark.parametrize("base", ["nf4", "bfloat16"])
def test_equals_trl_in_mixed_precision_within_its_rounding(tmp_path, base):
    def make_model():
        if base == "nf4":
            return nf4_model(tmp_path)
        return tiny_model(len(tokenizer()), hidden_size=64).bfloat16()

    theirs, ours = make_both(
        tmp_path, make_model=make_model, dtype=None, peft_config=lora(), bf16=True
    )
    groups = groups_of([2, 2], seed=0)
    exact = make_trainer(
        trl_orpo().ORPOTrainer,
        tmp_path,
        model=nf4_model(tmp_path) if base == "nf4" else make_model().float(),
        dtype=torch.float32,
        peft_config=lora(),
    )
    copy_trained(theirs.model, exact.model)
    (loss, _, gradients), (expected, _, rounded), (_, _, truth) = (
        run_step(trainer, groups) for trainer in (ours, theirs, exact)
    )
    assert loss == pytest.approx(expected, rel=5e-3)
    assert all(g.isfinite().all() for g in gradients.values())
    # bf16 keeps 8 bits. Ours must be as close to fp32 as TRL's is, or closer.
    assert gradient_error(gradients, truth) <= 1.5 * gradient_error(rounded, truth)


# ---- whole runs ----

SETTINGS = {
    "rows": 26,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 5,
    "max_grad_norm": 0.3,  # most steps are clipped
    "gradient_accumulation_steps": 3,  # an epoch's last step has one batch
    "logging_steps": 4,
    "max_steps": 50,
}


def trained_weights(trainer):
    return {name: parameter.data for name, parameter in trained(trainer.model).items()}


def assert_same_logs(found, expected, tolerance=1e-6):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() >= theirs.keys()
        for name in theirs.keys() - WITH_PADDING:
            if name.removeprefix("eval_") in WITH_PADDING or "second" in name:
                continue  # seconds and what follows from them differ, as they should
            if "runtime" in name or "preparation" in name:
                continue
            scale = max(abs(theirs[name]), 6 * (name != "loss"))
            assert abs(ours[name] - theirs[name]) <= tolerance * scale, name


def test_the_same_adapter_after_fifty_steps(tmp_path):
    theirs, ours = make_both(tmp_path, peft_config=lora(), **SETTINGS)
    start = {name: weight.clone() for name, weight in trained_weights(ours).items()}
    for trainer in (theirs, ours):
        trainer.train()
    assert ours.state.global_step == 50
    norms = [log["grad_norm"] for log in ours.state.log_history if "grad_norm" in log]
    assert max(norms) > SETTINGS["max_grad_norm"]
    found, expected = trained_weights(ours), trained_weights(theirs)
    moved = {name: weight - start[name] for name, weight in expected.items()}
    error = {name: weight - expected[name] for name, weight in found.items()}
    size = torch.cat([value.flatten() for value in moved.values()]).norm()
    assert torch.cat([value.flatten() for value in error.values()]).norm() < 1e-5 * size
    assert_same_logs(ours.state.log_history, theirs.state.log_history, 1e-5)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    settings = SETTINGS | {"max_steps": 12, "save_strategy": "steps", "save_steps": 7}

    def run(folder, stop_at=None, **resume):
        trainer = make_trainer(
            PackedORPOTrainer, tmp_path / folder, peft_config=lora(), **settings
        )
        if stop_at:
            trainer.add_callback(StopAt(stop_at))
        trainer.train(**resume)
        return trained_weights(trainer), trainer.state.log_history[:-1]

    weights, logs = run("unbroken")
    run("resumed", stop_at=7)
    resumed_weights, resumed_logs = run("resumed", resume_from_checkpoint=True)
    for name, weight in weights.items():
        assert torch.equal(resumed_weights[name], weight), name
    assert_same_logs(resumed_logs[-1:], logs[-1:], 0)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("with_predictions", [False, True])
def test_evaluation_equals_trl(tmp_path, with_predictions):
    held_out = Dataset.from_list(text_rows(7, seed=1))  # the last batch is not full
    extra = {}
    if with_predictions:
        extra["compute_metrics"] = lambda p: {"seen": float(p.predictions.size)}
    theirs, ours = make_both(
        tmp_path,
        peft_config=lora(),
        eval_dataset=held_out,
        per_device_eval_batch_size=2,
        **extra,
    )
    expected, found = theirs.evaluate(), ours.evaluate()
    assert_same_logs([found], [expected])
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-6)
    assert ours.model.config._attn_implementation == "sdpa"  # left as it was


def test_evaluation_within_training_equals_trl(tmp_path):
    held_out = Dataset.from_list(text_rows(5, seed=1))
    settings = SETTINGS | {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
    theirs, ours = make_both(
        tmp_path, peft_config=lora(), eval_dataset=held_out, **settings
    )
    for trainer in (theirs, ours):
        trainer.train()
    assert_same_logs(ours.state.log_history, theirs.state.log_history, 1e-5)


# ---- bad input, and models that cannot be packed ----


def test_a_prompt_that_fills_max_length_is_refused_with_its_row(tmp_path):
    rows = text_rows(6)
    for number in (2, 4):
        rows[number]["prompt"] = "What is 47 + 38? " * 20
    with pytest.raises(ValueError, match=r"train_dataset: 2 of 6 rows .*\(row 2, 4\)"):
        make_trainer(PackedORPOTrainer, tmp_path, rows=rows)
    with pytest.raises(ValueError, match=r"eval_dataset: 2 of 6 rows .*\(row 2, 4\)"):
        make_trainer(PackedORPOTrainer, tmp_path, eval_dataset=Dataset.from_list(rows))


def test_a_model_that_scales_its_logits_is_refused(tmp_path):
    from transformers import GraniteConfig, GraniteForCausalLM

    model = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=len(tokenizer()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            logits_scaling=8.0,
            pad_token_id=None,
        )
    )
    trainer = make_trainer(PackedORPOTrainer, tmp_path, model=model, dtype=None)
    with pytest.raises(ValueError, match="changes its head's logits"):
        run_step(trainer, groups_of([1], seed=0))


def test_a_short_sliding_window_is_refused(tmp_path):
    model = tiny_model(len(tokenizer()))
    model.config.sliding_window = 16
    with pytest.raises(ValueError, match="sliding window of 16 tokens is shorter"):
        make_trainer(PackedORPOTrainer, tmp_path, model=model)


def test_data_parallel_in_one_process_is_refused(tmp_path):
    trainer = make_trainer(PackedORPOTrainer, tmp_path)
    batch = trainer.data_collator(groups_of([1], seed=0)[0])
    with pytest.raises(ValueError, match="accelerate launch"):
        trainer.training_step(torch.nn.DataParallel(trainer.model), batch)
