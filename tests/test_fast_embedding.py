"""Input embeddings in the CPU's memory."""

import pytest
import torch
from fast_fakes import four_layers, on_the_cpu, packed_trainer, step_groups
from fast_harness import (
    assert_same_step,
    lora,
    make_both,
    make_trainer,
    tokenizer,
)
from tiny_llama import tiny_model

from course_utils.training.fast import (
    FastTrainingConfig,
    PackedORPOTrainer,
    cpu_embedding,
)

pytest_plugins = ["fast_fakes"]

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_embeddings_on_the_cpu_equal_trl(tmp_path, flash_on_cpu, rows, recorded):
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        peft_config=lora(train_rows=rows),
        gradient_checkpointing=True,  # asks the embeddings for gradients
    )
    ours.attention, ours.cuda_graphs = "varlen", recorded
    on_the_cpu(ours)
    for seed in range(3):
        assert_same_step(theirs, ours, step_groups(seed, sizes=[5, 6]))


def test_a_model_can_be_asked_while_its_embeddings_are_on_the_cpu(tmp_path):
    trainer = on_the_cpu(packed_trainer(tmp_path))
    layer = trainer.model.get_input_embeddings()
    ids = torch.tensor([[1, 5, 2, 7]])
    weight = layer.token_adapter.base_layer.weight
    expected, generated = layer(ids), trainer.model.generate(ids, max_new_tokens=3)
    before = weight.data_ptr()
    trainer.patch_model()
    assert "forward" in layer.__dict__
    assert torch.equal(layer(ids), expected)
    assert torch.equal(trainer.model.generate(ids, max_new_tokens=3), generated)
    trainer.unpatch()
    assert "forward" not in layer.__dict__ and torch.equal(layer(ids), expected)
    assert weight.data_ptr() == before  # here, where nothing has to move


def test_embeddings_move_where_they_can(tmp_path):
    def found(**settings):
        settings = {"peft_config": lora()} | settings
        trainer = make_trainer(PackedORPOTrainer, tmp_path, **settings)
        reasons = cpu_embedding.obstacles(trainer)
        reasons.pop("there is no CUDA GPU")
        return [reason for reason, applies in reasons.items() if applies]

    assert found() == [] and found(peft_config=lora(train_rows=False)) == []
    trained = ["they are trained, or do more than look up"]
    assert found(peft_config=None) == trained
    tied = tiny_model(len(tokenizer()), tie_word_embeddings=True)
    same = ["the output head is the same matrix"]
    assert found(model=tied, peft_config=lora(train_rows=False)) == same
    with pytest.raises(ValueError, match="embeddings_on_cpu=True cannot be: there is"):
        packed_trainer(tmp_path, fast_config=FastTrainingConfig(embeddings_on_cpu=True))
