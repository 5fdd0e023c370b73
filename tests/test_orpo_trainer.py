"""Our plain trainer equals TRL's: tokens, losses, gradients, logs, whole runs."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from fast_harness import (
    assert_same_step,
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
from orpo_rows_samples import AWKWARD, both_tokenizers
from test_fast import CASES, KINDS, SETTINGS, assert_same_logs, trained_weights
from tiny_llama import tiny_model
from trl_orpo import trl_orpo

from course_utils.training import ORPOConfig, ORPOTrainer, PackedORPOTrainer

OURS = [ORPOTrainer, PackedORPOTrainer]


def groups_of(sizes, seed=0):
    chance = random.Random(seed)
    return [[random_feature(chance) for _ in range(size)] for size in sizes]


def both(folder, **settings):
    return make_both(folder, cls=ORPOTrainer, **settings)


# ---- tokens ----


@pytest.mark.parametrize("reading", both_tokenizers(), ids=["llama 3", "gpt-2 split"])
@pytest.mark.parametrize("max_length", [64, 300])
def test_tokens_and_labels_of_awkward_rows_equal_trl(tmp_path, reading, max_length):
    reference = trl_orpo()
    for kind, row in AWKWARD.items():
        found = [
            cls(
                tiny_model(len(reading)),
                config(
                    output_dir=str(tmp_path),
                    max_length=max_length,
                    use_cpu=True,
                    report_to="none",
                ),
                train_dataset=Dataset.from_list([row]),
                processing_class=reading,
            ).train_dataset[0]
            for cls, config in (
                (reference.ORPOTrainer, reference.ORPOConfig),
                (ORPOTrainer, ORPOConfig),
            )
        ]
        theirs, ours = found
        for name, column in ours.items():
            assert column == theirs[name], (kind, name)
        assert "chosen_labels" in ours


# ---- losses and gradients ----


@pytest.mark.parametrize("seed", range(20))
def test_a_step_equals_trl_in_double_precision(tmp_path, seed):
    assert_same_step(*both(tmp_path, peft_config=lora()), groups_of([3, 1, 2], seed))


@pytest.mark.parametrize("case", CASES)
def test_corner_cases_equal_trl(tmp_path, case):
    made = both(tmp_path, peft_config=lora())
    assert_same_step(*made, [[CASES[case]]])
    assert_same_step(*made, [[CASES[case], *CASES.values()], [CASES[case]]])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_equals_trl(tmp_path, kind):
    assert_same_step(*both(tmp_path, **KINDS[kind]), groups_of([2, 3]))


def test_nf4_weights_equal_trl(tmp_path):
    made = both(
        tmp_path,
        make_model=lambda: nf4_model(tmp_path),
        dtype=torch.float32,
        peft_config=lora(),
    )
    assert_same_step(*made, groups_of([2, 1]), gradient_tolerance=5e-6)


def test_a_router_s_loss_equals_trl(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    def experts():
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
        return MixtralForCausalLM(
            MixtralConfig(
                vocab_size=len(tokenizer()),
                num_local_experts=4,
                output_router_logits=True,
                router_aux_loss_coef=0.7,
                **shape,
                **heads,
            )
        )

    made = both(tmp_path, make_model=experts, dtype=torch.float32)
    assert_same_step(*made, groups_of([2, 3]), gradient_tolerance=5e-6)


@pytest.mark.parametrize("base", ["nf4", "bfloat16"])
def test_mixed_precision_is_as_close_to_fp32_as_trl(tmp_path, base):
    def make_model(dtype=torch.float32):
        if base == "nf4":
            return nf4_model(tmp_path)
        return tiny_model(len(tokenizer()), hidden_size=64).bfloat16().to(dtype)

    theirs, ours = both(
        tmp_path,
        make_model=lambda: make_model(torch.bfloat16),
        dtype=None,
        peft_config=lora(),
        bf16=True,
    )
    assert {p.dtype for p in trained(ours.model).values()} == {torch.float32}
    exact = make_trainer(
        ORPOTrainer,
        tmp_path,
        model=make_model(),
        dtype=torch.float32,
        peft_config=lora(),
    )
    for name, parameter in trained(exact.model).items():
        parameter.data.copy_(trained(theirs.model)[name].data)
    groups = groups_of([2, 2])
    (loss, _, found), (expected, _, rounded), (_, _, truth) = (
        run_step(trainer, groups) for trainer in (ours, theirs, exact)
    )
    assert loss == pytest.approx(expected, rel=5e-3)
    rounded = {name: gradient.float() for name, gradient in rounded.items()}
    assert gradient_error(found, truth) <= 1.5 * gradient_error(rounded, truth)


# ---- whole runs ----


def assert_same_update(ours, theirs, start, most):
    found, expected = trained_weights(ours), trained_weights(theirs)
    error = torch.cat([(found[k] - expected[k]).flatten() for k in expected])
    moved = torch.cat([(expected[k] - start[k]).flatten() for k in expected])
    assert error.norm() <= most * moved.norm()


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("kind", ["LoRA", "all weights"])
def test_fifty_steps_equal_trl_in_float32(tmp_path, cls, kind):
    settings = SETTINGS | {"learning_rate": 5e-4}
    theirs, ours = make_both(
        tmp_path,
        cls=cls,
        dtype=torch.float32,
        peft_config=lora() if kind == "LoRA" else None,
        **settings,
    )
    start = {name: weight.clone() for name, weight in trained_weights(ours).items()}
    for trainer in (theirs, ours):
        trainer.train()
    assert ours.state.global_step == 50
    assert_same_update(ours, theirs, start, 1e-3)
    assert_same_logs(ours.state.log_history, theirs.state.log_history, 1e-3)


@pytest.mark.parametrize("with_predictions", [False, True])
def test_evaluation_equals_trl(tmp_path, with_predictions):
    extra = {}
    if with_predictions:
        extra["compute_metrics"] = lambda p: {"seen": float(p.predictions.size)}
    theirs, ours = both(
        tmp_path,
        peft_config=lora(),
        eval_dataset=Dataset.from_list(text_rows(7, seed=1)),
        per_device_eval_batch_size=2,
        **extra,
    )
    assert_same_logs([ours.evaluate()], [theirs.evaluate()])


@pytest.mark.parametrize("cls", OURS)
def test_several_evaluation_sets_have_metrics_of_their_own(tmp_path, cls):
    sets = {
        name: Dataset.from_list(text_rows(3, seed=n)) for n, name in enumerate("ab")
    }
    trainer = make_trainer(cls, tmp_path, eval_dataset=sets)
    found = trainer.evaluate()
    assert found["eval_a_logps/chosen"] != found["eval_b_logps/chosen"]
    alone = make_trainer(cls, tmp_path, eval_dataset=sets["b"]).evaluate()
    assert alone["eval_logps/chosen"] == found["eval_b_logps/chosen"]
    assert set(trainer.lengths) == {
        "train_dataset",
        "eval_dataset['a']",
        "eval_dataset['b']",
    }


def test_a_resumed_run_equals_an_unbroken_one(tmp_path):
    settings = SETTINGS | {"max_steps": 8, "save_strategy": "steps", "save_steps": 5}
    runs = []
    for resume in (None, str(tmp_path / "checkpoint-5")):
        trainer = make_trainer(ORPOTrainer, tmp_path, peft_config=lora(), **settings)
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trained_weights(trainer))
    for name, weight in runs[0].items():
        assert torch.equal(weight, runs[1][name]), name


def test_two_processes_equal_trl(tmp_path):
    """DDP on the CPU. Packed: several rows per step, unequally many per process."""
    trl_orpo()
    helper = Path(__file__).parent / "helpers" / "two_processes.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(helper), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    theirs, plain, packed, second = (
        torch.load(tmp_path / f"{name}.pt")
        for name in ("theirs-0", "plain-0", "packed-0", "packed-1")
    )
    assert max(packed["rows"]) > 1 and packed["rows"] != second["rows"]
    assert packed["passes"] == second["passes"]
    assert packed["passes"] == [*map(max, packed["rows"], second["rows"])]
    for name, weight in packed["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
    for ours in (plain, packed):
        assert ours["weights"].keys() == theirs["weights"].keys()
        for name, weight in theirs["weights"].items():
            torch.testing.assert_close(
                ours["weights"][name], weight, rtol=1e-5, atol=1e-7
            )
        assert_same_logs(ours["logs"], theirs["logs"], 1e-5)


# ---- what TRL does not have ----


@pytest.mark.parametrize("cls", OURS)
def test_the_nll_of_the_answer_alone(tmp_path, cls):
    groups = groups_of([3, 2])
    trainers = [
        make_trainer(cls, tmp_path, peft_config=lora(), nll_scope=scope)
        for scope in ("prompt_and_answer", "answer")
    ]
    trainers[1].model.load_state_dict(trainers[0].model.state_dict())
    (_, whole, _), (loss, answer, _) = (run_step(each, groups) for each in trainers)
    for number, group in enumerate(groups):
        scored, nll = 0, 0.0
        for row in group:
            ids = torch.tensor([row["chosen_input_ids"]])
            labels = torch.tensor([row["chosen_labels"]])
            with torch.no_grad():
                out = trainers[0].model(ids, labels=labels)
            count = int((labels[:, 1:] != -100).sum())
            scored, nll = scored + count, nll + float(out.loss) * count
        expected = pytest.approx(nll / scored, rel=1e-5)
        assert answer["nll_loss"][number] == expected
        assert answer["nll_loss/answer"][number] == expected
        assert whole["nll_loss/answer"][number] == expected
        assert whole["nll_loss"][number] != expected
    assert loss == pytest.approx(
        sum(map(sum, zip(answer["nll_loss"], answer["odds_ratio_loss"], strict=True)))
        / len(groups),
        rel=1e-6,
    )


def test_both_trainers_log_both_terms_alike(tmp_path):
    trainers = [make_trainer(cls, tmp_path, peft_config=lora()) for cls in OURS]
    trainers[1].model.load_state_dict(trainers[0].model.state_dict())
    plain, packed = (run_step(each, groups_of([3, 2]))[1] for each in trainers)
    assert plain.keys() == packed.keys()
    assert plain.keys() >= {"nll_loss/prompt", "nll_loss/answer", "odds_ratio_loss"}
    for name in plain:
        assert plain[name] == pytest.approx(packed[name], rel=1e-5, abs=1e-6), name
