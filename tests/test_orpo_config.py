"""What ORPOConfig and the model's preparation refuse, and what they say."""

import logging
import math

import pytest
import torch
from fast_harness import lora, make_trainer, tokenizer, trained
from tiny_llama import tiny_model
from transformers import T5Config, T5ForConditionalGeneration
from trl_orpo import trl_orpo

from course_utils.training import (
    ORPOConfig,
    ORPOTrainer,
    PackedORPOTrainer,
    orpo_config,
)

OURS = [ORPOTrainer, PackedORPOTrainer]


def config(**changes):
    return ORPOConfig(output_dir="unused", use_cpu=True, report_to="none", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -0.1}, "beta must be finite and >= 0, got -0.1"),
        ({"beta": math.nan}, "beta must be finite"),
        ({"beta": "0.1"}, "beta must be a number, got '0.1'"),
        ({"learning_rate": math.inf}, "learning_rate must be finite"),
        ({"learning_rate": -1e-5}, "learning_rate must be finite and >= 0"),
        ({"max_length": None}, "max_length must be an integer of at least 2, got None"),
        ({"max_length": 1}, "max_length must be an integer of at least 2, got 1"),
        ({"nll_scope": "prompt"}, "nll_scope must be one of prompt_and_answer, answer"),
        ({"remove_unused_columns": True}, "remove_unused_columns must be False"),
        ({"still_after": 2}, "still_after must be 0 or at least 4, got 2"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_names_and_defaults_are_trl_s_where_they_are_not_said_to_differ():
    theirs = trl_orpo().ORPOConfig(output_dir="unused", use_cpu=True, report_to="none")
    ours = config()
    different = {
        name
        for name, value in vars(ours).items()
        if hasattr(theirs, name) and value != getattr(theirs, name)
    }
    different -= {name for name in different if name.startswith(("_", "distributed"))}
    different.discard("mixed_precision")  # bf16 in other words
    assert different <= {"bf16", "logging_nan_inf_filter", "remove_unused_columns"}
    assert {"bf16", "logging_nan_inf_filter"} <= different


def test_bf16_is_the_default_where_the_gpu_computes_in_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert orpo_config._computes_in_bf16(use_cpu=False) is expected
    assert orpo_config._computes_in_bf16(use_cpu=True) is False
    assert config(fp16=False).bf16 is False


@pytest.mark.parametrize("cls", OURS)
def test_another_library_s_configuration_is_refused(tmp_path, cls):
    with pytest.raises(TypeError, match="must be a course_utils.training.ORPOConfig"):
        cls(tiny_model(8), "not a configuration")


# ---- dropout ----


def test_dropout_that_is_switched_off_is_named(tmp_path, caplog):
    trainer = make_trainer(ORPOTrainer, tmp_path, peft_config=lora(lora_dropout=0.05))
    (record,) = [r for r in caplog.records if "dropout" in r.message]
    assert record.levelno == logging.WARNING
    assert "of 14 dropout modules is now 0" in record.message
    assert "q_proj.lora_dropout.default, 0.05" in record.message
    assert "lora_dropout is without effect" in record.message
    assert not any(
        m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)
    )


def test_dropout_is_kept_where_it_is_asked_for(tmp_path, caplog):
    trainer = make_trainer(
        ORPOTrainer,
        tmp_path,
        peft_config=lora(lora_dropout=0.05),
        disable_dropout=False,
    )
    kept = [m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert len(kept) == 14 and set(kept) == {0.05}
    assert "dropout" not in caplog.text


def test_no_dropout_no_word(tmp_path, caplog):
    make_trainer(ORPOTrainer, tmp_path, peft_config=lora())
    assert "dropout" not in caplog.text


# ---- models ----


def test_a_model_by_its_name_comes_with_its_tokenizer(tmp_path):
    reading = tokenizer()
    tiny_model(len(reading)).save_pretrained(tmp_path)
    reading.save_pretrained(tmp_path)
    from datasets import Dataset
    from fast_harness import config as small
    from fast_harness import text_rows

    trainer = ORPOTrainer(
        str(tmp_path),
        small(tmp_path, model_init_kwargs={"dtype": torch.float64}),
        train_dataset=Dataset.from_list(text_rows(2)),
    )
    assert trainer.model.dtype == torch.float64
    assert trainer.processing_class.get_vocab() == reading.get_vocab()
    with pytest.raises(ValueError, match="for a model given by its name"):
        make_trainer(ORPOTrainer, tmp_path, model_init_kwargs={"dtype": "float32"})


def test_what_cannot_be_trained_is_refused(tmp_path):
    small = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 1, "d_kv": 8}
    with pytest.raises(ValueError, match="encoder-decoder"):
        model = T5ForConditionalGeneration(T5Config(vocab_size=8, **small))
        make_trainer(ORPOTrainer, tmp_path, model=model)
    with pytest.raises(TypeError, match=r"must be a peft\.PeftConfig, got dict"):
        make_trainer(ORPOTrainer, tmp_path, peft_config={"r": 4})
    adapted = make_trainer(ORPOTrainer, tmp_path, peft_config=lora()).model
    with pytest.raises(ValueError, match="has an adapter already"):
        make_trainer(ORPOTrainer, tmp_path, model=adapted, peft_config=lora())
    adapted.requires_grad_(False)
    with pytest.raises(ValueError, match="No weight of the model is trained"):
        make_trainer(ORPOTrainer, tmp_path, model=adapted)


def test_fp16_needs_trained_weights_in_float32():
    from course_utils.training.orpo_model import _require_trainable, prepare_model

    model = tiny_model(16).half()
    args = config()
    args.fp16 = True
    with pytest.raises(ValueError, match="needs trained weights in float32, and 21 of"):
        _require_trainable(model, args)
    args.gradient_checkpointing = False
    prepared = prepare_model(model, args, lora())
    assert {p.dtype for p in trained(prepared).values()} == {torch.float32}


def test_a_tokenizer_without_a_pad_token_is_refused(tmp_path, monkeypatch):
    import fast_harness

    reading = tokenizer()
    reading.pad_token = None
    monkeypatch.setattr(fast_harness, "tokenizer", lambda: reading)
    with pytest.raises(ValueError, match=r"no pad token: set tokenizer\.pad_token"):
        make_trainer(ORPOTrainer, tmp_path)
    trainer = make_trainer(ORPOTrainer, tmp_path, padding_value=3)
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["chosen_input_ids"][batch["chosen_attention_mask"] == 0] == 3).all()
