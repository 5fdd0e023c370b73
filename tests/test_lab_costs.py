"""The costs that a table states are those that TRL's trainers really cause."""

import pytest
import torch

from course_utils import lab
from course_utils.data import mixing
from course_utils.lab import costs


@pytest.fixture(scope="module")
def pairs():
    return mixing.build().train.select(range(2 * lab.BATCH))


@pytest.mark.parametrize("method", ["sft", "orpo", "dpo"])
def test_sequences_that_went_through_the_model(method, pairs, tmp_path):
    model, tokenizer = lab.load_base()
    seen = {True: 0, False: 0}

    def count(module, arguments, named):
        ids = arguments[0] if arguments else named["input_ids"]
        seen[torch.is_grad_enabled()] += len(ids)

    arguments = lab.trainer_arguments(1e-4, 2, 0, tmp_path)
    trainer = lab.make_trainer(
        method, model, tokenizer, pairs, 0.1, None, arguments, []
    )
    for each in (model, getattr(trainer, "ref_model", None)):
        if each is not None:
            each.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    trainer.train()
    cost = costs.sequences({"method": method, "steps": 2})
    assert (seen[True], seen[False]) == cost


def test_a_model_that_was_not_trained_costs_nothing():
    base = lab.recorded("base")[0]
    assert costs.sequences(base) == (0, 0)
