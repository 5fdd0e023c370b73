"""The fast trainer: what a step holds, fetches and leaves behind."""

import copy

import pytest
import torch
from bitsandbytes.optim import optimizer
from fast_fakes import (
    Watch,
    packed_trainer,
    step_groups,
)
from fast_harness import (
    lora,
    make_trainer,
    run_step,
    tokenizer,
    trained,
)
from peft import get_peft_model
from tiny_llama import tiny_model
from trl_orpo import trl_orpo

from course_utils.training import ORPOTrainer
from course_utils.training.fast import (
    FastTrainingConfig,
    PackedORPOTrainer,
    waits,
)

CPU = torch.device("cpu")


def test_there_are_never_more_rows_of_logits_than_a_tile(tmp_path):
    trainer = packed_trainer(tmp_path, fast_config=FastTrainingConfig(head_tile=4))
    vocabulary = len(tokenizer())
    rows = set()

    def see(name, out):
        # The head's own matrix, transposed, has as many columns.
        if name.startswith("aten.t.") or not torch.is_tensor(out):
            return
        if out.shape[-1:] == (vocabulary,):
            rows.add(out.numel() // vocabulary)

    with Watch(see):
        run_step(trainer, step_groups())
    assert max(rows) == 4


def synchronisations(trainer):
    """Values that a training step fetches from the device, after the first step."""
    batches = [trainer.data_collator(group) for group in step_groups()]
    fetched = []

    def see(name, _):
        if name.startswith(("aten._local_scalar_dense", "aten.equal", "aten.nonzero")):
            fetched.append(name)

    for step in range(2):
        samples, items = trainer.get_batch_samples(iter(batches), 2, CPU)
        trainer.current_gradient_accumulation_steps = 2
        with Watch(see):
            for sample in samples:
                trainer.training_step(trainer.model, sample, items)
        if step == 0:
            fetched.clear()
    return len(fetched)


def test_a_step_fetches_nothing_from_the_device(tmp_path):
    assert synchronisations(packed_trainer(tmp_path)) == 0
    off = FastTrainingConfig(deferred_metrics=False)
    # fourteen metrics of two micro-batches
    assert synchronisations(packed_trainer(tmp_path, fast_config=off)) == 28


def test_a_step_of_the_plain_trainer_fetches_no_metrics(tmp_path):
    plain = make_trainer(ORPOTrainer, tmp_path, peft_config=lora())
    # transformers itself asks twice per forward pass whether anything is padded.
    assert synchronisations(plain) == 4
    theirs = make_trainer(trl_orpo().ORPOTrainer, tmp_path, peft_config=lora())
    assert synchronisations(theirs) >= 22  # eleven metrics of two micro-batches


def test_afterwards_the_model_is_as_it_was(tmp_path):
    model = tiny_model(len(tokenizer())).double()
    peft = get_peft_model(model, lora())
    trainer = make_trainer(PackedORPOTrainer, tmp_path, model=peft, max_steps=1)
    trainer.train()
    changed = [
        name
        for name, module in trainer.model.named_modules()
        if "forward" in vars(module) and name  # the outermost one is accelerate's
    ]
    assert changed == []
    assert model.config._attn_implementation == "sdpa"
    ids = torch.arange(6)[None]
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data.zero_()
    # the copy computes with its own weights
    assert not copied(ids).logits.any()


def test_a_training_that_fails_leaves_the_model_as_it_was(tmp_path):
    trainer = packed_trainer(tmp_path, max_steps=1)

    def fail(*args):
        raise RuntimeError("as in a full memory")

    trainer._row_loss = fail
    with pytest.raises(RuntimeError, match="full memory"):
        trainer.train()
    assert trainer.model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(m) for n, m in trainer.model.named_modules() if n)


def test_generation_while_patched_is_that_of_the_plain_model(tmp_path):
    trainer = packed_trainer(tmp_path)
    prompt = torch.tensor([[3, 5, 8], [0, 4, 4]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    model = trainer.model.eval()
    plain = model.generate(input_ids=prompt, attention_mask=mask, **settings)
    trainer.patch_model()
    patched = model.generate(input_ids=prompt, attention_mask=mask, **settings)
    assert torch.equal(plain, patched)
    logits = [model(prompt, attention_mask=mask).logits]
    trainer.unpatch()
    logits.append(model(prompt, attention_mask=mask).logits)
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize("ahead", [True, False])
def test_the_optimizer_waits_for_the_gpu_only_if_it_must_not_run_ahead(
    tmp_path, monkeypatch, ahead
):
    waited, fetched = [], []
    monkeypatch.setattr(optimizer, "sync_gpu", waited.append)
    monkeypatch.setattr(
        optimizer.Optimizer8bit, "prefetch_state", lambda _, p: fetched.append(p)
    )
    settings = {"optim": "paged_adamw_8bit", "max_steps": 2, "dtype": torch.float32}
    trainer = packed_trainer(
        tmp_path, fast_config=FastTrainingConfig(run_ahead=ahead), **settings
    )
    assert trainer.accelerator.non_blocking is ahead
    trainer.train()
    tensors = len(trained(trainer.model))
    # bitsandbytes waits after each tensor, and once more when memory is paged.
    assert len(waited) == (0 if ahead else 2 * (tensors + 1))
    assert len(fetched) == (0 if ahead else 2 * tensors)
    assert optimizer.sync_gpu == waited.append


def test_the_state_is_saved_when_the_gpu_is_done_with_it(tmp_path, monkeypatch):
    caught_up = []
    monkeypatch.setattr(waits, "catch_up", lambda: caught_up.append(1))
    trainer = packed_trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    trainer.train()
    assert len(caught_up) == 3 + 1  # at each checkpoint, and at the end
