"""Rows that are recorded once and replayed."""

import pytest
import torch
from datasets import Dataset
from fast_fakes import Replayed, four_layers, on_the_cpu, step_groups
from fast_harness import (
    assert_same_step,
    lora,
    make_both,
    make_trainer,
    nf4_model,
    run_step,
    text_rows,
)

from course_utils.training.fast import (
    FastTrainingConfig,
    PackedORPOTrainer,
    graphs,
)

pytest_plugins = ["fast_fakes"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recording_compiles_nothing(tmp_path, flash_kernel_on_cpu, monkeypatch, dtype):
    """A GPU cannot tune a kernel while it records."""
    counted, record = torch._dynamo.utils.counters["stats"], graphs.RowGraphs.record
    before = []

    def counting(*arguments):
        before.append(counted["unique_graphs"])
        return record(*arguments)

    monkeypatch.setattr(graphs.RowGraphs, "record", counting)
    monkeypatch.setattr(graphs.RowGraphs.__init__, "__defaults__", (Replayed,))
    ours = make_trainer(
        PackedORPOTrainer,
        tmp_path,
        model=nf4_model(tmp_path, dtype, num_hidden_layers=4),
        dtype=None,
        bf16=dtype == torch.bfloat16,
        peft_config=lora(train_rows=False),
        fast_config=FastTrainingConfig(
            token_budget=300, activation_gib=0.0015 * dtype.itemsize / 4
        ),
        gradient_checkpointing=True,
    )
    ours.attention, ours.compile_layers, ours.cuda_graphs = "varlen", "aot_eager", True
    torch._dynamo.reset()
    counted.clear()
    run_step(on_the_cpu(ours), step_groups(sizes=[5, 6]))
    assert ours._layers._keeping == 2  # both kinds of layers took part
    assert before and set(before) == {counted["unique_graphs"]}


@pytest.mark.parametrize(("budget", "lengths"), [(600, 5), (60, 1)])
def test_replayed_rows_equal_trl(tmp_path, flash_on_cpu, budget, lengths):
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        peft_config=lora(),
        fast_config=FastTrainingConfig(token_budget=budget),
    )
    ours.attention, ours.cuda_graphs = "varlen", True
    for seed in range(4):
        assert_same_step(theirs, ours, step_groups(seed, sizes=[5, 6]))
    # Recordings of 128, 256 ... 640 tokens, or of as many as the budget lets be, serve
    # rows of any content...
    assert Replayed.made == lengths
    # ... but not steps that consist of another number of micro-batches.
    for seed in range(2):
        assert_same_step(theirs, ours, step_groups(seed, sizes=[5, 6, 2]))
    assert Replayed.made == lengths + 1


def test_training_and_evaluation_with_replayed_rows_equal_trl(tmp_path, flash_on_cpu):
    settings = {
        "peft_config": lora(),
        "eval_dataset": Dataset.from_list(text_rows(3)),
        "max_steps": 5,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "rows": 12,
    }
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        fast_config=FastTrainingConfig(token_budget=256),
        **settings,
    )
    ours.attention, ours.cuda_graphs = "varlen", True
    logs = []
    for trainer in (theirs, ours):
        trainer.train()
        logs.append(trainer.state.log_history)
    assert Replayed.made == 2
    for expected, found in zip(*logs, strict=True):
        assert expected.keys() <= found.keys()
        for name in expected.keys() & {"loss", "eval_loss", "grad_norm", "nll_loss"}:
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-6)
