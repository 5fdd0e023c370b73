"""The fast trainer's parts: head, LoRA, layers, attention, fast_config."""

import copy
import itertools
import random
import types

import bitsandbytes
import pytest
import torch
from bitsandbytes.optim import optimizer
from datasets import Dataset
from fast_harness import (
    assert_same_step,
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
from peft import LoraConfig, get_peft_model
from tiny_llama import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from trl_orpo import trl_orpo

from course_utils.models import memory
from course_utils.training import ORPOTrainer, packing
from course_utils.training.fast import (
    FastTrainingConfig,
    PackedORPOTrainer,
    attention,
    config,
    cpu_embedding,
    graphs,
    head,
    layers,
    matmul,
    waits,
)
from course_utils.training.fast import fused_lora as lora_layers
from course_utils.training.fast import trainer as fast_trainer
from course_utils.training.fast.fused_lora import fused_forward

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


# ---- what a training step does and does not do ----


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


def test_a_step_of_the_plain_trainer_fetches_nothing_either(tmp_path):
    plain = make_trainer(ORPOTrainer, tmp_path, peft_config=lora())
    assert synchronisations(plain) == 0
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


def test_generation_while_dressed_is_that_of_the_plain_model(tmp_path):
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


# ---- layers: checkpointing and compiling ----


def recomputed(trainer, groups):
    """How often each decoder layer ran in a step of one row, forward and backward."""
    counts, hooks = [], []
    for number, layer in enumerate(trainer.model.get_base_model().model.layers):
        counts.append(0)

        def count(*_, number=number):
            counts[number] += 1

        hooks.append(layer.mlp.register_forward_pre_hook(count))
    run_step(trainer, groups)
    for hook in hooks:
        hook.remove()
    return counts


def test_checkpointing_follows_the_configuration(tmp_path):
    for wanted in (False, True):
        trainer = packed_trainer(tmp_path, gradient_checkpointing=wanted)
        if wanted:  # as Trainer.train does
            trainer.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        assert recomputed(trainer, step_groups()) == [1 + wanted] * 2


def test_as_many_layers_keep_their_activations_as_fit(tmp_path):
    groups = step_groups()
    tokens = sum(
        packing.packed_length(packing.pair_from_row(r)) for g in groups for r in g
    )
    trainer = packed_trainer(tmp_path, fast_config=FastTrainingConfig(activation_gib=0))
    assert recomputed(trainer, groups) == [2, 2]
    trainer = packed_trainer(
        tmp_path, fast_config=FastTrainingConfig(activation_gib=1e-9)
    )
    assert recomputed(trainer, groups) == [1, 2]  # the first layer is measured
    assert recomputed(trainer, groups) == [2, 2]
    one_layer = trainer._layers._bytes_per_token * tokens
    for share, expected in ((0.9, [2, 2]), (1.5, [1, 2]), (2.1, [1, 1])):
        gib = share * one_layer / layers.GIB
        trainer = packed_trainer(
            tmp_path, fast_config=FastTrainingConfig(activation_gib=gib)
        )
        run_step(trainer, groups)
        assert recomputed(trainer, groups) == expected


@pytest.mark.parametrize("gib", [0, 1e-6, 1])
def test_checkpointing_changes_no_result(tmp_path, gib):
    made = make_both(
        tmp_path, peft_config=lora(), fast_config=FastTrainingConfig(activation_gib=gib)
    )
    for seed in range(2):
        assert_same_step(*made, step_groups(seed))


def test_saved_bytes_counts_what_backward_needs_but_no_weights():
    layer = torch.nn.Linear(4, 4, bias=False)
    inputs = torch.ones(10, 4, requires_grad=True)
    weights = list(layer.parameters())
    result, size = layers.saved_bytes(lambda: layer(inputs).exp().exp(), weights)
    # the input of the product, and the output of either exponential
    assert size == 3 * 10 * 4 * 4
    result.sum().backward()
    assert layers.saved_bytes(lambda: inputs.detach().exp(), [])[1] == 0


def test_activations_may_fill_what_the_calculator_leaves(tmp_path, monkeypatch):
    auto = FastTrainingConfig(activation_gib="auto")
    trainer = packed_trainer(tmp_path, fast_config=auto, dtype=torch.float32)
    assert (
        trainer.fast_config.activation_gib is None
    )  # no GPU: as the configuration says
    card = types.SimpleNamespace(total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(
        torch.cuda, "get_per_process_memory_fraction", lambda device: 0.5
    )
    spare = memory.spare_gib(trainer)
    # This model is tiny: all of the half card but CUDA's context and work space.
    assert 4 - memory.ALLOWANCE_GIB - 0.1 < spare < 4 - memory.ALLOWANCE_GIB
    card.total_memory = 2**29
    assert memory.spare_gib(trainer) == 0
    plain = make_trainer(PackedORPOTrainer, tmp_path)
    with pytest.raises(ValueError, match="knows LoRA trainings only"):
        memory.spare_gib(plain)


def test_layers_that_fit():
    assert layers.layers_that_fit(100, 30, 32) == 3
    assert layers.layers_that_fit(100, 30, 2) == 2
    assert layers.layers_that_fit(0, 30, 2) == 0
    assert layers.layers_that_fit(0, 0, 2) == 2


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention's reference implementation with gradients, slow and whole."""
    module = torch.nn.attention.flex_attention
    monkeypatch.setattr(module, "_validate_device", lambda *_: None)


def four_layers():
    return tiny_model(len(tokenizer()), hidden_size=32, num_hidden_layers=4).double()


def test_flex_attention_equals_trl(tmp_path, flex_on_cpu):
    theirs, ours = make_both(tmp_path, make_model=four_layers, peft_config=lora())
    ours.attention = "flex"
    assert_same_step(
        theirs, ours, step_groups(sizes=[9, 6])
    )  # two blocks of 128 tokens


@pytest.mark.parametrize(("gib", "graphs"), [(None, 1), (0, 1), (1e-9, 2)])
def test_compiled_layers_share_their_graphs_and_equal_trl(
    tmp_path, flex_on_cpu, gib, graphs
):
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        peft_config=lora(),
        fast_config=FastTrainingConfig(activation_gib=gib),
    )
    ours.attention, ours.compile_layers = "flex", "aot_eager"
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_same_step(theirs, ours, step_groups())
    counters = torch._dynamo.utils.counters
    # One for layers that keep what backward needs, one for those that do not, and the
    # head's.
    assert counters["stats"]["unique_graphs"] == graphs + 1
    assert not counters["graph_break"]


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


@pytest.mark.parametrize("gib", [None, 0])
def test_compiled_layers_with_sequences_equal_trl(tmp_path, flash_kernel_on_cpu, gib):
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        peft_config=lora(),
        fast_config=FastTrainingConfig(activation_gib=gib),
    )
    ours.attention, ours.compile_layers = "varlen", "aot_eager"
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for seed in range(2):
        assert_same_step(theirs, ours, step_groups(seed, sizes=[9, 6]))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 + 1  # the layers', the head's
    assert not counters["graph_break"]


@pytest.mark.parametrize("gib", [None, 0])
def test_compiled_layers_on_nf4_weights_equal_trl(tmp_path, flash_kernel_on_cpu, gib):
    theirs, ours = make_both(
        tmp_path,
        make_model=lambda: nf4_model(tmp_path),
        dtype=torch.float32,
        peft_config=lora(),
        fast_config=FastTrainingConfig(activation_gib=gib),
    )
    ours.attention, ours.compile_layers = "varlen", "aot_eager"
    for seed in range(2):
        assert_same_step(theirs, ours, step_groups(seed), 1e-5, 1e-4)


@pytest.mark.parametrize("bits", [4, 64])
def test_a_compiled_layer_computes_again_only_what_backward_needs(
    tmp_path, flash_kernel_on_cpu, bits
):
    model = four_layers() if bits == 64 else nf4_model(tmp_path, num_hidden_layers=4)
    ours = make_trainer(
        PackedORPOTrainer,
        tmp_path,
        model=model,
        peft_config=lora(),
        dtype=model.dtype,
        fast_config=FastTrainingConfig(activation_gib=0),
    )
    ours.attention, ours.compile_layers = "varlen", "aot_eager"
    run_step(ours, step_groups())
    with torch.autograd.profiler.profile() as log:
        run_step(ours, step_groups())
    calls = {event.key: event.count for event in log.key_averages()}
    # Seven matrices; but the layer's output is there already, so that nobody needs the
    # last product again.
    assert calls["course_utils::fused_lora"] == 4 * (7 + 6)
    assert calls["course_utils::fused_lora_backward"] == 4 * 7
    assert calls["course_utils::flash"] == 4 * (1 + 1)


def test_sequences_of_different_lengths_equal_trl(tmp_path, flash_on_cpu):
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        peft_config=lora(),
        fast_config=FastTrainingConfig(activation_gib=0),
    )
    ours.attention = "varlen"
    for seed in range(4):
        assert_same_step(theirs, ours, step_groups(seed, sizes=[9, 6]))


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
        assert expected.keys() == found.keys()
        for name in expected.keys() & {"loss", "eval_loss", "grad_norm", "nll_loss"}:
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-6)


def test_flash_attention_has_gradients_where_pytorch_defines_it():
    """The derivative of the operation that varlen calls; the kernel is CUDA's."""
    q = torch.empty(5, 4, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    kv = torch.empty(7, 2, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    ends = torch.empty(3, dtype=torch.int32, device="meta")
    out = attention.flash_attention(q, kv, kv, ends, ends, 7, None)
    assert out.shape == q.shape and out.requires_grad


def test_flex_attention_computes_in_the_precision_of_autocast():
    tokens = attention.FLEX_BLOCK
    zeros = torch.zeros(tokens, dtype=torch.int64)
    mask = attention.block_mask(zeros, zeros)
    q = torch.randn(1, 4, tokens, 16)
    k, v = torch.randn(2, 1, 2, tokens, 16)
    exact, _ = attention.packed_attention(None, q, k, v, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = attention.packed_attention(None, q, k, v, mask)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.02)


# ---- waits ----


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


# ---- head ----


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


def on_the_cpu(trainer):
    """The trainer as it is where `embeddings_on_cpu` can be: not beside a CPU."""
    trainer.embeddings_on_cpu = True
    return trainer


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


# ---- LoRA ----


def lora_layer(**settings):
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(20), lora(train_rows=False, **settings))
    return model, model.get_base_model().model.layers[0].mlp.up_proj.train()


def uses_peft(layer):
    """Does the fused forward hand this call to PEFT's own?"""
    calls = []

    def original(x):
        calls.append(x)
        return layer.forward(x)

    fused_forward(layer, original)(torch.randn(1, 3, 16))
    return bool(calls)


def test_a_fused_layer_equals_peft():
    _, layer = lora_layer()
    assert not uses_peft(layer)
    results = []
    for forward in (layer.forward, fused_forward(layer, layer.forward)):
        x = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 16).requires_grad_()
        out = forward(x)
        out.square().sum().backward()
        results.append((out, x.grad, *(p.grad for p in trained(layer).values())))
        for parameter in layer.parameters():
            parameter.grad = None
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_layers_in_other_states_are_left_to_peft():
    model, layer = lora_layer()
    with model.disable_adapter():
        assert uses_peft(layer)
    layer.merge()
    assert uses_peft(layer)
    layer.unmerge()
    assert not uses_peft(layer)
    model.add_adapter("second", lora(train_rows=False))
    layer.set_adapter(["default", "second"])
    assert uses_peft(layer)

    _, layer = lora_layer(lora_dropout=0.5)
    assert uses_peft(layer)
    assert not uses_peft(layer.eval())
    _, layer = lora_layer()
    layer.lora_A.double()
    assert fused_forward(layer, lambda x: "peft")(torch.ones(1, 3, 16)) == "peft"


@pytest.mark.parametrize("gib", [None, 0])
@pytest.mark.parametrize("compiled", [False, "aot_eager"])
def test_adapters_rounded_once_a_row_change_no_result(
    tmp_path, flash_kernel_on_cpu, compiled, gib, monkeypatch
):
    rounded, refresh = [], lora_layers.RoundedAdapters.refresh

    def counting(self, device):
        refresh(self, device)
        rounded.append(sum(map(len, self._held.values())))

    monkeypatch.setattr(lora_layers.RoundedAdapters, "refresh", counting)
    found = []
    for once in (True, False):
        ours = make_trainer(
            PackedORPOTrainer,
            tmp_path,
            model=nf4_model(tmp_path, torch.bfloat16),
            dtype=None,
            bf16=True,
            peft_config=lora(train_rows=False),
            fast_config=FastTrainingConfig(token_budget=60, activation_gib=gib),
        )
        ours.attention, ours.compile_layers = "varlen", compiled
        ours.patch_model()
        ours._layers._round_once = once
        results = [run_step(ours, step_groups())]
        with torch.no_grad():  # as an optimizer would
            for parameter in trained(ours.model).values():
                parameter.mul_(1.5)
        found.append([*results, run_step(ours, step_groups(1))])
        assert not any(ours._layers._rounded._held.values())
    assert rounded and set(rounded) == {2 * len(lora_modules(ours.model))}
    for with_copies, without in zip(*found, strict=True):
        assert with_copies[0] == without[0]
        for name, gradient in with_copies[2].items():
            assert torch.equal(gradient, without[2][name]), name


def test_a_loss_over_several_rows_keeps_each_row_s_rounded_adapters(tmp_path):
    ours = make_trainer(
        PackedORPOTrainer,
        tmp_path,
        model=nf4_model(tmp_path, torch.bfloat16),
        dtype=None,
        bf16=True,
        peft_config=lora(train_rows=False),
        fast_config=FastTrainingConfig(token_budget=60),
    )
    (group,) = step_groups(sizes=[6])
    batch = ours.data_collator(group)
    assert len(ours._pack([fast_trainer._pairs(batch)])) > 1
    found = {}
    for once in (True, False):
        ours._layers._round_once = once
        ours.model.zero_grad()
        ours.compute_loss(ours.model, batch).backward()
        found[once] = {n: p.grad.clone() for n, p in trained(ours.model).items()}
    for name, gradient in found[True].items():
        assert torch.equal(gradient, found[False][name]), name


def lora_modules(model):
    return [m for m in model.modules() if hasattr(m, "lora_A") and len(m.lora_A)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_in_one_step_equal_products_in_several(dtype):
    torch.manual_seed(0)
    small, right, left, matrix, bias = (
        torch.randn(shape, dtype=dtype)
        for shape in ((30, 4), (4, 20), (30, 64), (64, 20), (20,))
    )
    torch.testing.assert_close(
        matmul.scaled(left, matrix, 0.3), left @ matrix * 0.3, rtol=0.02, atol=0.02
    )
    truth = small.double() @ right.double() + left.double() @ matrix.double()
    tolerance = 4 * torch.finfo(dtype).eps
    for found, expected in (
        (matmul.added(small, right, left, matrix), truth),
        (matmul.added(small, right, left, matrix, bias), truth + bias.double()),
    ):
        assert found.dtype == dtype
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < tolerance
    assert matmul.in_dtype(left, matrix, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("kind", ["plain", "bias", "4 bit"])
def test_what_a_small_adapter_changes_survives_rounding(kind):
    """At the start of training an adapter's change is below the output's last bit."""
    torch.manual_seed(0)
    base = torch.nn.Linear(256, 256, bias=kind == "bias")
    if kind == "bias":
        base.bias.data.normal_()
    if kind == "4 bit":
        packed = bitsandbytes.nn.Linear4bit(
            256, 256, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
        )
        packed.load_state_dict(base.state_dict())
        base = packed.to("cpu")
    model = torch.nn.Sequential(base.to(torch.bfloat16)).requires_grad_(False)
    peft = get_peft_model(
        model, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    )
    layer = peft.base_model.model[0]
    layer.lora_A.bfloat16(), layer.lora_B.bfloat16()
    layer.lora_B["default"].weight.data *= 3e-4
    x = torch.randn(400, 256).bfloat16()
    with torch.no_grad():
        found = fused_forward(layer, None)(x).double()
        weight = (
            bitsandbytes.functional.dequantize_4bit(
                base.weight, base.weight.quant_state
            )
            if kind == "4 bit"
            else base.weight
        )
        plain = x.double() @ weight.double().t()
        if kind == "bias":
            plain += base.bias.double()
        change = layer.lora_B["default"](layer.lora_A["default"](x)).double()
        change *= layer.scaling["default"]
    last_bit = 2**-8 * plain.abs().mean()
    assert change.abs().mean() < last_bit / 4

    # How much of the change is in the output: the slope of one over the other.
    def arrived(output):
        return ((output - plain) * change).sum() / (change**2).sum()

    assert arrived(found) == pytest.approx(1, abs=0.1)
    too_late = (plain.bfloat16() + change.bfloat16()).double()
    assert arrived(too_late) < 0.7


def test_weights_rearranged_for_inference_are_not_trained(tmp_path):
    trainer = make_trainer(
        PackedORPOTrainer,
        tmp_path,
        model=nf4_model(tmp_path),
        dtype=torch.float32,
        peft_config=lora(train_rows=False),
    )
    run_step(trainer, step_groups())
    for module in trainer.model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # What bitsandbytes notes when it does so, on CPUs with avx512bf16.
            module.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="gradients no longer pass .* Load the model"):
        run_step(trainer, step_groups())


def test_other_kinds_of_layers_are_not_fused():
    model, _ = lora_layer()
    assert fused_forward(torch.nn.Linear(2, 2), None) is None
    assert fused_forward(model, None) is None


# ---- fast_config ----


def test_the_attention_fits_the_machine():
    fitting = config._fitting_attention
    assert config.choose_attention("auto", CPU, torch.bfloat16)[0] == "sdpa"
    assert fitting((8, 0), True, torch.bfloat16)[0] == "varlen"
    assert fitting((8, 0), False, torch.float16)[0] == "varlen"
    assert fitting((8, 0), True, torch.float32)[0] == "flex"
    name, reason = fitting((7, 5), True, torch.float16)
    assert (name, "this GPU has 7.5" in reason) == ("sdpa", True)
    name, reason = fitting((9, 0), False, torch.float32)
    assert (name, "triton" in reason) == ("sdpa", True)
    for wanted in ("flex", "varlen"):
        with pytest.raises(ValueError, match="needs a CUDA GPU, this device is cpu"):
            config.choose_attention(wanted, CPU, torch.bfloat16)
    with pytest.raises(ValueError, match="'varlen' computes in 16 bit"):
        config.choose_attention("varlen", torch.device("cuda"), torch.float32)


def test_triton_decodes_where_there_is_a_gpu_and_triton(monkeypatch):
    gpu, has = torch.device("cuda"), [object()]
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda _: has[0])
    assert config.choose_decode("auto", gpu) == (True, "one pass over a matrix")
    assert config.choose_decode(False, gpu) == (False, "as asked")
    assert config.choose_decode("auto", CPU) == (False, "there is no CUDA GPU")
    has[0] = None
    assert config.choose_decode("auto", gpu) == (False, "triton is not installed")
    with pytest.raises(ValueError, match="triton_decode=True cannot be: triton is not"):
        config.choose_decode(True, gpu)


def test_layers_are_compiled_where_it_pays():
    gpu = torch.device("cuda")
    has_triton = config.choose_compile("auto", "flex", gpu)
    assert has_triton[0] is True or "triton is not installed" in has_triton[1]
    assert config.choose_compile(True, "varlen", gpu)[0] is True
    assert config.choose_compile("auto", "sdpa", gpu)[0] is False
    assert config.choose_compile("auto", "sdpa", CPU)[0] is False
    assert config.choose_compile(False, "flex", gpu)[0] is False
    with pytest.raises(ValueError, match="compile_layers needs attention='varlen' or"):
        config.choose_compile(True, "sdpa", CPU)


def test_rows_are_recorded_where_it_can_be(tmp_path):
    assert config.choose_graphs("auto", "varlen", {"a": False})[0] is True
    assert config.choose_graphs(False, "varlen", {}) == (False, "as asked")
    assert config.choose_graphs("auto", "flex", {})[0] is False
    assert config.choose_graphs("auto", "varlen", {"b": True}) == (False, "b")
    with pytest.raises(ValueError, match="cuda_graphs=True cannot be: .*; no CUDA"):
        config.choose_graphs(True, "sdpa", {"no CUDA": True})
    trainer = make_trainer(PackedORPOTrainer, tmp_path, peft_config=lora())
    assert graphs.obstacles(trainer)["dropout draws other numbers each time"] is False
    with_dropout = get_peft_model(tiny_model(20), lora(lora_dropout=0.1))
    assert graphs.draws(with_dropout)
    with pytest.raises(ValueError, match="there is no CUDA GPU"):
        packed_trainer(tmp_path, fast_config=FastTrainingConfig(cuda_graphs=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_budget": 0}, "token_budget must be at least 1, got 0"),
        ({"head_tile": -1}, "head_tile must be at least 1, got -1"),
        ({"attention": "flash"}, "attention must be 'auto', 'varlen', 'flex' or"),
        ({"activation_gib": -1.0}, "activation_gib must be >= 0, got -1.0"),
    ],
)
def test_a_wrong_lever_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FastTrainingConfig(**settings)
