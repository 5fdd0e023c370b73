"""token_budget="auto": the largest row whose activations the GPU has room for."""

import pytest
import torch

from course_utils.training.fast.config import (
    BUDGETS,
    FastTrainingConfig,
    choose_token_budget,
)

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def card(gib):
    """A card of which a row takes 1 GiB per 1,024 tokens."""
    return lambda tokens: max(0.0, gib - tokens / 1024)


@pytest.mark.parametrize(
    "gib, tokens", [(100, 8192), (8.1, 8192), (8, 6144), (4.5, 4096), (1, 4096)]
)
def test_the_largest_budget_that_fits(gib, tokens):
    found, reason = choose_token_budget("auto", card(gib), CUDA)
    assert found == tokens
    assert ("smallest" in reason) == (gib == 1)


def test_without_a_gpu_nobody_asks_for_its_memory():
    found, reason = choose_token_budget("auto", None, CPU)
    assert found == BUDGETS[-1] == FastTrainingConfig().token_budget
    assert "no CUDA GPU" in reason


@pytest.mark.parametrize("device", [CUDA, CPU])
def test_a_number_is_taken_as_it_is(device):
    assert choose_token_budget(77, None, device) == (77, "as asked")


@pytest.mark.parametrize("wanted", [0, -1, "all", "4096"])
def test_what_is_no_budget_is_refused(wanted):
    with pytest.raises(ValueError, match="token_budget must be"):
        FastTrainingConfig(token_budget=wanted)


def test_auto_is_for_budgets_not_for_tiles():
    assert FastTrainingConfig(token_budget="auto").token_budget == "auto"
    with pytest.raises(ValueError, match="head_tile"):
        FastTrainingConfig(head_tile="auto")
