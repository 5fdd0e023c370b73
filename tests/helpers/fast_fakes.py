"""Stand-ins for what only a GPU has, and small parts that tests of fast share."""

import itertools
import random

import pytest
import torch
from fast_harness import (
    lora,
    make_trainer,
    random_feature,
    tokenizer,
)
from tiny_llama import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from course_utils.training.fast import (
    PackedORPOTrainer,
    attention,
    graphs,
)

CPU = torch.device("cpu")


def step_groups(seed=0, sizes=(3, 2)):
    chance = random.Random(seed)
    return [[random_feature(chance) for _ in range(size)] for size in sizes]


def packed_trainer(folder, **settings):
    return make_trainer(PackedORPOTrainer, folder, peft_config=lora(), **settings)


class Watch(TorchDispatchMode):
    """Calls `see(operation, its output)` for every operation within the context."""

    def __init__(self, see):
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.see(str(operation), out)
        return out


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention's reference implementation with gradients, slow and whole."""
    module = torch.nn.attention.flex_attention
    monkeypatch.setattr(module, "_validate_device", lambda *_: None)


def four_layers():
    return tiny_model(len(tokenizer()), hidden_size=32, num_hidden_layers=4).double()


def flash_by_hand(query, key, value, cu_queries, cu_keys, longest, scaling):
    """attention.flash_attention as its documentation has it, one sequence a time."""
    groups = query.shape[1] // key.shape[1]
    out = []
    starts = zip(cu_queries.tolist(), cu_keys.tolist(), strict=True)
    for (q0, k0), (q1, k1) in itertools.pairwise(starts):
        assert k1 - k0 <= longest
        q, k, v = query[q0:q1], key[k0:k1], value[k0:k1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        # aligned at the end: the last query sees every key
        sees = torch.ones(len(q), len(k)).tril(len(k) - len(q)).bool()
        out.append(
            torch.nn.functional.scaled_dot_product_attention(
                *(tensor.transpose(0, 1) for tensor in (q, k, v)), sees, scale=scaling
            ).transpose(0, 1)
        )
    return torch.cat(out)


class Replayed:
    """In place of graphs.CudaGraph: a recorded function runs when it is replayed."""

    made = 0

    def __init__(self, function, beside=None):
        assert beside is None or isinstance(beside, Replayed)
        Replayed.made += 1
        self.function = function

    def replay(self):
        self.result = self.function()


@pytest.fixture
def flash_on_cpu(monkeypatch):
    monkeypatch.setattr(attention, "flash_attention", flash_by_hand)
    monkeypatch.setattr(graphs.RowGraphs.__init__, "__defaults__", (Replayed,))
    monkeypatch.setattr(Replayed, "made", 0)


@pytest.fixture
def flash_kernel_on_cpu():
    """A kernel of the operation itself, which a compiler does not look into."""

    def forward(query, key, value, cu_queries, cu_keys, longest, scaling):
        out = flash_by_hand(query, key, value, cu_queries, cu_keys, longest, scaling)
        return out, torch.zeros(query.shape[1], len(query), device=query.device)

    def backward(grad, query, key, value, out, _, cu_queries, cu_keys, _longest, scale):
        scale = scale or query.shape[-1] ** -0.5
        groups = query.shape[1] // key.shape[1]
        gradients = [torch.zeros_like(t) for t in (query, key, value)]
        starts = zip(cu_queries.tolist(), cu_keys.tolist(), strict=True)
        for (q0, k0), (q1, k1) in itertools.pairwise(starts):
            q, g, o = (t[q0:q1].transpose(0, 1) for t in (query, grad, out))
            k, v = (
                t[k0:k1].repeat_interleave(groups, 1).transpose(0, 1)
                for t in (key, value)
            )
            sees = torch.ones(q1 - q0, k1 - k0).tril(k1 - k0 - q1 + q0).bool()
            scores = (q @ k.mT * scale).masked_fill(~sees, -torch.inf)
            weights = scores.softmax(-1)  # (heads, queries, keys)
            slope = weights * (g @ v.mT - (g * o).sum(-1, keepdim=True)) * scale
            found = slope @ k, slope.mT @ q, weights.mT @ g
            for total, part in zip(gradients, found, strict=True):
                begin, end = (q0, q1) if total is gradients[0] else (k0, k1)
                part = part.transpose(0, 1)  # (tokens, heads, head_dim)
                total[begin:end] = part.unflatten(1, (total.shape[1], -1)).sum(2)
        return tuple(gradients)

    attention.flash.register_kernel("cpu", forward)
    attention.flash_backward.register_kernel("cpu", backward)


def on_the_cpu(trainer):
    """The trainer as it is where `embeddings_on_cpu` can be: not beside a CPU."""
    trainer.embeddings_on_cpu = True
    return trainer
