"""The head on scored rows only, and borrowed forwards."""

import pytest
import torch
from fast_harness import (
    lora,
    trained,
)
from peft import get_peft_model
from tiny_llama import tiny_model

from course_utils.training.fast import (
    head,
)


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("tile", [1, 3, 100])
@pytest.mark.parametrize("with_rows", [False, True])
def test_head_equals_log_softmax(tile, with_rows, backend):
    torch.manual_seed(0)
    model = get_peft_model(
        tiny_model(20).double(), lora(train_rows=with_rows)
    ).get_base_model()
    output = model.get_output_embeddings()
    parameters = trained(output)
    assert bool(parameters) == with_rows
    targets = torch.tensor([1, 5, 19, 2, 2, 0, 7])  # 1 and 2 are trained rows
    results = []
    for tile_rows in (None, tile):
        hidden = torch.linspace(-3, 3, 7 * 16).reshape(7, 16).double().requires_grad_()
        logps, means = head.token_logps(
            output, output.forward, hidden, targets, tile_rows, backend
        )
        assert not means.requires_grad
        (logps * torch.arange(7)).sum().backward()
        rows = [parameter.grad for parameter in parameters.values()]
        for parameter in parameters.values():
            parameter.grad = None
        results.append([logps, means, hidden.grad, *rows])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_head_passes_gradcheck():
    torch.manual_seed(0)
    linear = torch.nn.Linear(4, 6, bias=False).double().requires_grad_(False)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 5, 5, 2, 1])
    assert torch.autograd.gradcheck(
        lambda h: head.token_logps(linear, linear.forward, h, targets, 2)[0], hidden
    )


def test_confident_predictions_keep_their_gradient():
    """1 - p is computed in fp32, also where p rounds to 1 in 16 bit."""
    linear = torch.nn.Linear(2, 2, bias=False).bfloat16().requires_grad_(False)
    linear.weight.data = torch.tensor([[4.0, 0.0], [-4.0, 0.0]], dtype=torch.bfloat16)
    hidden = torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    logps, _ = head.token_logps(linear, linear.forward, hidden, torch.tensor([0]), 8)
    logps.sum().backward()
    # d logp / d hidden = (1 - p) * (4 - -4), with 1 - p = sigmoid(-8)
    expected = 8 * torch.sigmoid(torch.tensor(-8.0))
    torch.testing.assert_close(hidden.grad[0, 0].float(), expected, rtol=0.01, atol=0)


def test_embedding_with_trained_rows_equals_peft():
    model = get_peft_model(tiny_model(20).double(), lora()).get_base_model()
    layer = model.get_input_embeddings()
    ids = torch.tensor([[1, 5, 2, 2, 19, 1]])
    (rows,) = trained(layer).values()
    rows.data.add_(1)
    results = []
    for embed in (layer, lambda x: head.embed(layer, layer.forward, x)):
        out = embed(ids)
        (out * torch.arange(6)[:, None]).sum().backward()
        results.append((out, rows.grad))
        rows.grad = None
    torch.testing.assert_close(*results)


def test_borrowed_forward_is_given_back():
    module = torch.nn.Linear(2, 2)
    with head.borrowed_forward(module, lambda x: "borrowed"):
        assert module(None) == "borrowed"
    assert "forward" not in vars(module)
    module.forward = own = lambda x: "own"
    with (
        pytest.raises(ZeroDivisionError),
        head.borrowed_forward(module, lambda x: 1 / 0),
    ):
        module(None)
    assert module.forward is own
