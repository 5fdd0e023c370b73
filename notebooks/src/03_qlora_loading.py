# %% [markdown]
# # 03 · How does 8B fit on one card?
#
# {{badge}}
#
# **You will learn**
# to compute, before you rent anything, what a model needs in memory;
# to build NF4 and LoRA by hand and prove them equal to bitsandbytes and PEFT;
# and to train the chat tokens that a base model has never seen.
#
# **Time and hardware**: {{recorded}}.
# Section 7 loads the model of your profile; the training runs of sections 8 and 9 use the lab's small one in every profile.
#
# **You need** notebook 00, matrices, and the bell curve.
# Abbreviations are explained in the [glossary](00_start_here.ipynb#glossary).
# The core path is sections 1, 2, 3, 5, 7 and 8; the parts marked *Optional* can wait.

# %% tags=["colab"]
import importlib.util
import sys

# What Colab installs. A wheel works as well: "/content/drive/MyDrive/NAME.whl[course]"
SOURCE = "orpo-course[course] @ {{source}}"
if "google.colab" in sys.modules:
    # %pip install -q "$SOURCE"
    if importlib.util.find_spec("course_utils") is None:
        raise RuntimeError(f"Not installed: {SOURCE}. The lines above say why.")

# %%
from course_utils.setup import start

profile, reason = start.begin()
import matplotlib.pyplot as plt
import pandas as pd
import torch

from course_utils import chat, evaluation, lab, models, plots, recorded
from course_utils.data import mixing
from course_utils.exercises import checks
from course_utils.models import memory
from course_utils.setup import profiles

SEED, GIB = 0, 2**30
torch.manual_seed(SEED)
print(f"profile {profile.name}: {reason}. Seed {SEED}")

# %% [markdown]
# ## 1. The bill of full fine-tuning
#
# On the `meta` device tensors have a shape and no memory, so a laptop can build Llama 3 8B and count it.
#
# **Predict.** How many GiB do 8 billion weights of 16 bits take? And how many GiB does it take to train them all with AdamW?

# %%
from transformers import AutoModelForCausalLM, LlamaConfig

llama3_8b = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)
with torch.device("meta"):
    shape = AutoModelForCausalLM.from_config(llama3_8b)

# %%
sizes = {name: p.numel() for name, p in shape.named_parameters()}
total = sum(sizes.values())
linear = sum(count for name, count in sizes.items() if "_proj" in name)
print(f"{total:,} weights: {linear:,} in the layers' projections,")
print(f"{total - linear:,} in the embeddings, the head and the norms")

# %% [markdown]
# For each weight, training needs the weight and its gradient in 16 bit (2 + 2 bytes),
# and AdamW's two *moments* in 32 bit (4 + 4 bytes): running means of the gradient and of its square.

# %%
needed = {"weights": 2, "gradients": 2, "AdamW's moments": 8, "all": 12}
for name, size in needed.items():
    print(f"{name:15s} {size:2d} bytes per weight: {total * size / GIB:6.2f} GiB")


# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Colab's L4 has about 22 GiB. The weights alone would fit; what training adds does not.
#
# </details>
#
# Two ideas attack the two parts: **LoRA** trains few weights, **NF4** stores the others in 4 bits. Together: **QLoRA**.
#
# ## 2. LoRA: train a detour
#
# The weight $W$ stays frozen. Beside it goes a detour through a narrow space of $r$ dimensions:
# $y = W x + \frac{\alpha}{r} B A x$, with $A$ of $r$ rows and $B$ of $r$ columns.

# %%
def lora_linear(x, weight, A, B, alpha):
    rank = A.shape[0]
    return x @ weight.T + alpha / rank * (x @ A.T) @ B.T


# %% [markdown]
# PEFT starts with $A$ random and $B = 0$.
#
# **Predict.** By how much does a freshly adapted model differ from its base?

# %%
from peft import LoraConfig, get_peft_model

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
adapter = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.0,
    task_type="CAUSAL_LM",
    target_modules=ATTENTION + MLP,  # all seven matrices of a Llama layer
)

# %%
small, tokenizer = lab.load_base()
ids = tokenizer("The river of the town is", return_tensors="pt")["input_ids"]
before = small(ids).logits
adapted = get_peft_model(small, adapter)
print(f"largest change of a logit: {(adapted(ids).logits - before).abs().max():.1f}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# By nothing: training starts exactly at the base.
#
# </details>
#
# Now with a $B$ that is not zero, against the formula:

# %%
layer = adapted.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
torch.nn.init.normal_(B)
x = torch.randn(3, layer.in_features)
theirs, mine = layer(x), lora_linear(x, layer.base_layer.weight, A, B, alpha=32)
torch.testing.assert_close(theirs, mine)
print(f"PEFT and the formula differ by at most {(theirs - mine).abs().max():.1e}")

# %%
with torch.device("meta"):
    big_adapter = LoraConfig(r=16, target_modules=ATTENTION + MLP)
    trained = models.parameter_counts(get_peft_model(shape, big_adapter)).trainable
print(f"trained at 8B: {trained:,} weights, {trained / total:.2%} of all")


# %% [markdown]
# Gradients and AdamW's moments are needed for these only.
#
# ### Optional: rank and alpha
#
# $\alpha$ scales the detour; dividing by $r$ is meant to let one $\alpha$ serve all ranks.
#
# **Predict.** AdamW's first step changes each number of $B$ by the learning rate.
# $\alpha$ stays 32. Does rank 64 then move $W$ more than rank 8, less, or the same?

# %%
def first_step(rank, alpha, size=256):
    """Norm of the change of W by AdamW's first step, from B = 0."""
    torch.manual_seed(SEED)
    x, weight = torch.randn(64, size), torch.randn(size, size)
    A = ((torch.rand(rank, size) * 2 - 1) / size**0.5).requires_grad_()  # PEFT's start
    B = torch.zeros(size, rank, requires_grad=True)
    optimizer = torch.optim.AdamW([A, B], lr=8e-5)
    lora_linear(x, weight, A, B, alpha).square().mean().backward()
    optimizer.step()
    return (alpha / rank * B @ A).norm().item()


# %%
steps = pd.DataFrame(
    {
        f"alpha {alpha}": [first_step(rank, alpha) for rank in (8, 16, 64)]
        for alpha in (16, 32)
    }
    | {"alpha 2r": [first_step(r, 2 * r) for r in (8, 16, 64)]},
    index=pd.Index((8, 16, 64), name="rank"),
)
(steps / steps.loc[8, "alpha 16"]).round(2)

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# In units of the first number: doubling $\alpha$ doubles the step, as a doubled learning rate would.
# At a fixed $\alpha$ the step shrinks with the root of the rank; at $\alpha = 2r$ it grows with it.
# A first step is not a run: Schulman and Thinking Machines Lab (2025) found that with $\alpha = 32$ the best learning rate hardly depends on the rank.
# With $\alpha = 2r$ it would, and whoever compares ranks that way compares learning rates as well.
#
# </details>
#
# ## 3. NF4: sixteen values for a weight
#
# Four bits can name 16 values. Which?
# Weights look like a bell curve, so NF4 takes quantiles of the normal distribution:
# 8 above zero, 7 below, and zero itself, all divided by the largest.

# %%
from bitsandbytes import functional as bnb
from scipy.stats import norm

OUTERMOST = 0.9677083  # bitsandbytes' choice: the quantile of the largest value
above = norm.ppf(torch.linspace(OUTERMOST, 0.5, 9)[:-1])
below = -norm.ppf(torch.linspace(OUTERMOST, 0.5, 8)[:-1])
code = torch.tensor([*below, 0.0, *above], dtype=torch.float32).sort().values
code = code / code.max()
torch.testing.assert_close(code, bnb.get_4bit_type("nf4", device="cpu"))
print([round(value, 3) for value in code.tolist()])


# %% [markdown]
# These are the values that bitsandbytes has written down.
# Weights are cut into blocks of 64; each block is divided by its largest absolute value,
# and each weight takes the nearest of the 16.

# %%
def quantise(weights, code, block=64):
    """(indices 0..15, scale of each block)"""
    blocks = weights.reshape(-1, block)
    scales = blocks.abs().amax(1, keepdim=True)
    midpoints = (code[1:] + code[:-1]) / 2  # exactly on one: the lower value
    return torch.bucketize(blocks * (1 / scales), midpoints), scales


def dequantise(indices, scales, code, shape):
    return (code[indices] * scales).reshape(shape)


# %% [markdown]
# bitsandbytes packs two indices into a byte. Is ours the same, bit for bit?

# %%
weights = torch.randn(512, 1024)
nf4 = bnb.get_4bit_type("nf4", device="cpu")
indices, scales = quantise(weights, nf4)
first, second = indices.flatten().to(torch.uint8).view(-1, 2).T
packed, state = bnb.quantize_4bit(weights, quant_type="nf4")
mine = dequantise(indices, scales, nf4, weights.shape)
assert torch.equal((first << 4) | second, packed.flatten())
assert torch.equal(mine, bnb.dequantize_4bit(packed, state))
print(f"{weights.numel():,} weights in {packed.numel():,} bytes, equal bit for bit")

# %% [markdown]
# ### Optional: are quantiles a good choice?
#
# Rivals: 16 values in equal steps, and FP4, a float of four bits.
# The error is the root mean square of what is lost, as a share of the weights' own.
#
# **Predict.** How much is lost: 1 %, 10 % or 30 %? And which code loses least?

# %%
codes = {
    "NF4": nf4,
    "equal steps": torch.linspace(-1, 1, 16),
    "FP4": bnb.get_4bit_type("fp4", device="cpu").sort().values,
}


# %%
def error(weights, code):
    restored = dequantise(*quantise(weights, code), code, weights.shape)
    return ((restored - weights).norm() / weights.norm()).item()


# %%
small, _ = lab.load_base()
real = [p.detach() for name, p in small.named_parameters() if "_proj" in name]
lost = {name: [error(p, c) for p in real] for name, c in codes.items()}
normal = {name: error(torch.randn(1024, 1024), c) for name, c in codes.items()}

# %%
import numpy as np
from scipy.stats import kurtosis

n = len(real)
beaten = {
    name: sum(a < b for a, b in zip(lost["NF4"], lost[name], strict=True))
    for name in list(codes)[1:]
}
for name, values in lost.items():
    won = f"; NF4 loses less on {beaten[name]} of {n}" if name in beaten else ""
    print(f"{name:11s} mean {sum(values) / n:.3f} over {n} matrices{won}")
tails = [kurtosis(matrix.flatten()) for matrix in real]
worst = lost["NF4"].index(max(lost["NF4"]))
print(
    f"excess kurtosis (normal: 0): median matrix {np.median(tails):.1f}, "
    f"the one where NF4 loses most {tails[worst]:.1f}"
)

# %%
names = [name.split(".") for name, _ in small.named_parameters() if "_proj" in name]
by_layer = pd.DataFrame(
    {
        "layer": [int(parts[2]) for parts in names],
        "projection": [parts[4] for parts in names],
        "error": lost["NF4"],
    }
)
by_layer.pivot(index="layer", columns="projection", values="error").round(3)

# %%
fig, ax = plt.subplots(figsize=(6, 3), dpi=90)
title = f"What 4 bits lose: {n} real matrices (dots), normal weights (line)"
plots.spread(ax, lost, normal, title, "relative error")
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: relative error of three 4-bit codes on the lab model's projection matrices (dots) and on normal weights (lines); NF4 is lowest, equal steps next, FP4 highest.*
#
# About 9 % is lost, and the order of the three is that of the normal weights. <!-- measured -->
# The dots far above the lines are matrices with heavier tails: one large weight makes its whole block coarse.
#
# </details>
#
# **Predict.** NF4's values are quantiles, so that each is used equally often, one time in 16 (0.0625). Are they?

# %%
used = torch.bincount(indices.flatten(), minlength=16) / indices.numel()
print(f"least used {used.min():.3f}, most used {used.max():.3f}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# No: dividing by the largest of 64 bends the bell curve, and the outer values are seldom used.
# NF4 is a good code, not the best one; exercise 3.3 beats it.
#
# </details>
#
# ## 4. Optional: the scales cost bits too
#
# Each block of 64 needs its scale, 32 bits: half a bit a weight.
# *Double quantisation* stores the scales in 8 bits as well, in blocks of 256 that share one 32-bit constant.

# %%
single, double = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
big = torch.randn(4096, 4096)
packed, state = bnb.quantize_4bit(big, quant_type="nf4", compress_statistics=True)
stored = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
saved = single - double
print(f"bits a weight: {single:.3f} single, {double:.3f} double, {saved:.3f} saved")
print(f"measured on {big.numel():,} weights: {8 * stored / big.numel():.3f}")
print(
    f"8B projections: {linear * double / 8 / GIB:.2f} GiB, "
    f"{linear * saved / 8 / GIB:.2f} less than with single"
)


# %% [markdown]
# ## 5. The bill again
#
# bitsandbytes quantises the projections only; embeddings and head stay in 16 bit.
# LoRA's matrices are trained in 32 bit.
#
# **Predict.** Full fine-tuning took 12 bytes per weight. What do LoRA and QLoRA take in all?

# %%
def bill(bits, adapter_weights=0, gradients=0, moments=0):
    """GiB: bits of a projection weight; bytes of the rest."""
    parts = {
        "projections": linear * bits / 8,
        "embeddings, head, norms": (total - linear) * 2,
        "LoRA": adapter_weights,
        "gradients": gradients,
        "AdamW's moments": moments,
    }
    return {part: size / GIB for part, size in parts.items()}


# %%
lora = (trained * 4, trained * 4, trained * 8)
bills = {
    "full, 16 bit": bill(16, gradients=total * 2, moments=total * 8),
    "LoRA, 16 bit": bill(16, *lora),
    "QLoRA": bill(double, *lora),
}

# %%
sums = {name: sum(parts.values()) for name, parts in bills.items()}
for name, size in sums.items():
    print(f"{name:12s} {size:6.2f} GiB")
fig, ax = plt.subplots(figsize=(7, 2.6), dpi=90)
plots.stacked_gib(
    ax,
    bills,
    f"Llama 3 8B and what it trains: {sums['QLoRA']:.1f} GiB with QLoRA (computed)",
    limit=(memory.CARDS_GIB["L4"], "L4"),
)
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: three stacked bars of computed memory. Full fine-tuning far beyond an L4, mostly AdamW's moments; LoRA in 16 bit below it, nearly all weights; QLoRA about a quarter of the card.*
#
# LoRA takes away nearly all gradients and moments, about 74 GiB; NF4 then takes nearly 10 from the weights.
#
# </details>

# %% [markdown]
# ### Optional: AdamW's moments in 8 bit, and paged
#
# bitsandbytes can keep the two moments in 8 bit, quantised in blocks of 256.
# *Paged* moments lie in memory that the driver moves to the host when the card is full.
#
# **Predict.** How much smaller are they, and how far do 50 steps go astray?

# %%
import bitsandbytes

optimizers = {
    "adamw_torch": torch.optim.AdamW,
    "adamw_8bit": bitsandbytes.optim.AdamW8bit,
}
if torch.cuda.is_available():  # without a GPU there is nothing to page out of
    optimizers["paged_adamw_8bit"] = bitsandbytes.optim.PagedAdamW8bit


def after_50_steps(kind, width=512):  # bitsandbytes pages from 100,000 weights on
    """(how far the weights went, bytes a weight of the moments)"""
    torch.manual_seed(SEED)
    here = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.nn.Parameter(torch.randn(width, width).to(here))
    goal = torch.randn(width, width).to(here)
    start, optimizer = matrix.detach().clone(), kind([matrix], lr=1e-3)
    for _ in range(50):
        noise = torch.randn(width, width).to(here)
        matrix.grad = matrix.detach() - goal + noise
        optimizer.step()
    once = ("step", "qmap1", "qmap2")  # not for each weight: a counter, two tables
    state = {k: v for k, v in optimizer.state[matrix].items() if k not in once}
    size = sum(mean.nbytes for mean in state.values()) / matrix.numel()
    return matrix.detach() - start, size


# %%
moves = {name: after_50_steps(kind) for name, kind in optimizers.items()}
reference = moves["adamw_torch"][0]
for name, (move, size) in moves.items():
    off = (move - reference).norm() / reference.norm()
    print(
        f"{name:17s} {size:5.2f} bytes per weight, {trained * size / GIB:.2f} GiB for "
        f"LoRA at 8B; moves differ by {off:.1%}"
    )

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# A quarter of the bytes, for steps that differ by little.
# For LoRA that is a fraction of a GiB: paging earns its keep where all weights are trained, or in the last step before a card is full.
#
# </details>
#
# ## 6. Optional: everything that a step holds
#
# Weights are what stays; a step adds what backward needs.
# Three things grow with the batch: **activations** (each layer's input is kept, the rest computed again: *gradient checkpointing*),
# the tensors of the layer that backward is in, and the **logits**, 128,256 numbers for each token.
# `course_utils.models.memory` adds them up from the configuration, formula by formula, without a GPU.
# Its static part must be the bill of section 5.

# %%
from dataclasses import replace

known = profiles.all_profiles()
l4, a100 = (memory.Settings.of_profile(known[n], token_rows=3) for n in ("l4", "a100"))
plain = replace(l4, token_rows=0, optim="adamw_torch")
static = {k: v / GIB for k, v in memory.static_bytes(llama3_8b, plain).items()}
mine = bills["QLoRA"]
assert abs(static["weights"] + static["quant state"] - mine["projections"]) < 0.01
assert abs(static["embeddings and head"] - mine["embeddings, head, norms"]) < 0.01
assert abs(static["optimizer"] - mine["AdamW's moments"]) < 0.001
print({part: round(size, 2) for part, size in static.items()})

# %% [markdown]
# **Predict.** 8 pairs of 1,024 tokens at once, with gradient checkpointing. What is largest: weights, activations or logits?

# %%
runs = {
    "fast trainer, 2 × 4": replace(l4, trainer="fast", embeddings_on_cpu=True),
    "TRL, 2 pairs × 4": l4,
    "TRL, 8 pairs × 1": a100,
    "2 × 4, no checkpointing": replace(l4, checkpointing=False),
}
step = {name: memory.predict(llama3_8b, s) for name, s in runs.items()}
logits = step["TRL, 8 pairs × 1"].gib()["logits"]
share = logits / step["TRL, 8 pairs × 1"].peak_gib

# %%
fig, ax = plt.subplots(figsize=(7, 3), dpi=90)
plots.stacked_gib(
    ax,
    {name: found.in_five() for name, found in step.items()},
    f"One part is {share:.0%} of a step with 8 pairs (predicted)",
    limit=(memory.CARDS_GIB["L4"], "L4"),
)
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: four stacked bars of predicted peak memory. The fast trainer's is the shortest; TRL's with two pairs at a time stays below an L4's line too; eight pairs go beyond it, mostly by logits; without checkpointing activations fill the bar.*
#
# TRL holds the logits of both answers in float32, a half again for the NLL, and a gradient of the same size.
# Notebook 07's trainer never holds more than a tile of them, and leaves the input embeddings in the CPU's memory.
# A prediction is worth what its test is worth: on the CPU, the course's tests compare it with what autograd really keeps and what the allocator really hands out.
#
# </details>
#
# The prediction against GPUs:

# %%
try:
    measured = recorded.load("memory")
except FileNotFoundError:
    print("not recorded yet; on a GPU tests/benchmarks/measure_memory.py writes it")
else:
    print(recorded.caption(measured))
    columns = ["name", "predicted_gib", "measured_gib", "off_by"]
    print(pd.DataFrame(measured["runs"])[columns].round(3).to_string(index=False))

# %% [markdown]
# Does it fit your card, and if not, what would help?
#
# `memory.fits` adds an allowance to the predicted peak, for CUDA's own context, the kernels' workspaces and gaps between tensors.
# It is a guess to be safe, not a measurement; so the same run needs a little more here than in the figure.

# %%
peak = step["TRL, 2 pairs × 4"].peak_gib
print(f"peak {peak:.1f} GiB + allowance {memory.ALLOWANCE_GIB:.1f} GiB")
for card in memory.CARDS_GIB:
    print(f"{card}, 2 × 4: {memory.fits(card, llama3_8b, l4)}\n")
print(f"L4, 8 × 1: {memory.fits('L4', llama3_8b, a100)}")

# %% [markdown]
# The changes are tried one by one in the same formulas, the most effective first.
# If a run fills the card all the same, `course_utils.training.resilience.watched(trainer)` turns the error into such a list.
#
# ## 7. What do four bits do to the answers?
#
# Now for real, with the model of your profile: once in its own precision, once in NF4, once in FP4.
#
# **Predict.** The weights are off by 9 %. By how much does the log-prob of an answer move, per token?

# %%
import gc

from transformers import AutoTokenizer, BitsAndBytesConfig

source, note = models.resolve_model(profile)
dtype = models.compute_dtype(profile)
attention, why = models.probe_attention()


# %% [markdown]
# `load_in_4bit` quantises matrix by matrix while the weights are read.
# `bnb_4bit_quant_type` is the code of section 3, and `bnb_4bit_use_double_quant` is section 4.
# Nothing is computed in 4 bits: each weight is unpacked to `bnb_4bit_compute_dtype`, multiplied, and forgotten.

# %%
def load(quant_type=None):
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type or "nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation=attention,
        use_safetensors=True,
        quantization_config=four_bit if quant_type else None,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
    )


# %%
is_lab = profile.base_model == str(profiles.lab_model_folder())
tokenizer = AutoTokenizer.from_pretrained(source)
(lab.use_chatml if is_lab else chat.use_llama3_chat)(tokenizer)
held_out = list(mixing.build(profile.data).evaluation)[: profile.eval_pairs]

# %%
scores, megabytes = {}, {}
for name, quant_type in {"FP4": "fp4", profile.dtype: None, "NF4": "nf4"}.items():
    model = None  # lets go of the last one first
    model = load(quant_type)
    megabytes[name] = round(model.get_memory_footprint() / 1e6, 1)
    scores[name] = evaluation.score_pairs(
        model, tokenizer, held_out, profile.max_length
    )
model = None
gc.collect()
torch.cuda.empty_cache()
print("MB of weights:", megabytes)

# %%
exact, damage = scores[profile.dtype], {}
for name in ("NF4", "FP4"):
    moved = scores[name].chosen - exact.chosen
    mean, size = evaluation.estimate(moved), evaluation.estimate(abs(moved))
    damage[name] = evaluation.compare_paired(exact.preferred, scores[name].preferred)
    print(f"{name}: log P(chosen) of {mean.n} pairs, nats per token:")
    print(
        f"  mean shift {mean.value:+.4f} [{mean.low:+.4f}, {mean.high:+.4f}],"
        f" mean size {size.value:.4f} [{size.low:.4f}, {size.high:.4f}]"
    )
    print(f"  preference accuracy: {damage[name]}")
print(f"accuracy in {profile.dtype}: {evaluation.estimate(exact.preferred)}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# The loss of 9 % in the weights averages out: the lab's log-probs move by thousandths of a nat.
#
# </details>
#
# Square brackets are 95 % intervals over pairs; every pair is compared with itself.
# The lab's base hardly prefers either answer, so a nudge can turn a pair.
# Where so few pairs change sides, trust the exact p-value (McNemar) more than the bootstrap interval.
#
# ## 8. Chat tokens that are really trained
#
# Llama 3's chat format writes three tokens that its *base* model never saw in pretraining,
# among them `<|eot_id|>`, which ends a turn. The lab's base was pretrained without them too.

# %%
base, tokenizer = lab.load_base()
control_ids = chat.use_llama3_chat(tokenizer)
untrained, rows = chat.untrained_token_ids(base, control_ids)
print("look untrained:", tokenizer.convert_ids_to_tokens(untrained))
columns = ["matrix", "norm", "median_norm", "nearest_cosine"]
pd.DataFrame(rows, index=tokenizer.convert_ids_to_tokens(control_ids) * 2)[columns]

# %% [markdown]
# Their input rows are still small. Their rows in the head are long, and each has a twin:
# the softmax pushes all tokens that never come down the same way, until they are alike.

# %%
head = base.lm_head.weight.detach()
end = head[tokenizer.eos_token_id]
twins = torch.cosine_similarity(head, end[None]) > 0.99
print(f"{twins.sum()} of {len(head)} rows of the head are alike")

# %% [markdown]
# Equal rows give equal logits, whatever the model thinks.
# Llama 3's untrained rows are reported to be near zero, which makes them alike as well.
#
# **Predict.** LoRA changes the layers, not the head. What is the largest probability that it can give to `<|eot_id|>`?
#
# Three runs of QLoRA with ORPO on the lab, alike but for one argument: which token rows are trained.
# PEFT takes a list of ids for the input embedding alone, or a dict that names both matrices.

# %%
choices = {
    "none": None,
    "list: embeddings only": control_ids,
    "dict: embeddings and head": {"embed_tokens": control_ids, "lm_head": control_ids},
}


# %%
@torch.no_grad()
def after_the_answer(model, pairs):
    """(3, N): P(end token), P(all its twins), is it the likeliest; after each answer"""
    model.eval()
    found = []
    for pair in pairs:
        ids = chat.tokenize_pair(tokenizer, pair, 256).chosen_input_ids
        inputs = torch.tensor([ids[:-1]], device=model.device)
        p = model(inputs).logits[0, -1].float().cpu().softmax(-1)
        found.append((p[ids[-1]], p[twins].sum(), p.argmax() == ids[-1]))
    return torch.tensor(found).T.numpy()


# %%
import transformers

from course_utils.training import ORPOConfig, ORPOTrainer

STEPS, BATCH = 32, 4
lab_mix = mixing.build()
train_pairs = lab_mix.train.select(range(STEPS * BATCH))
train_pairs = train_pairs.select_columns(["prompt", "chosen", "rejected"])
lab_held_out = list(lab_mix.evaluation)[:105]


# %% [markdown]
# The learning rate suits a model of 3.5 million weights; 8B wants one far lower.

# %%
def lab_base_in_nf4(dtype):
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        lab.BASE_MODEL, dtype=dtype, quantization_config=four_bit
    )


# %%
def qlora_trainer(
    token_ids,
    learning_rate=3e-3,
    steps=STEPS,
    dtype=torch.float32,
    layers=ATTENTION + MLP,
):
    transformers.set_seed(SEED)
    trainer = ORPOTrainer(
        model=lab_base_in_nf4(dtype),
        args=ORPOConfig(
            beta=0.5,
            learning_rate=learning_rate,
            max_steps=steps,
            max_length=256,
            per_device_train_batch_size=BATCH,
            bf16=dtype == torch.bfloat16,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            output_dir="outputs/03",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=SEED,
        ),
        train_dataset=train_pairs,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16,
            lora_alpha=32,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            target_modules=layers,
            trainable_token_indices=token_ids,
        ),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


# %%
p_end = {"base": after_the_answer(base, lab_held_out)}
for name, token_ids in choices.items():
    trainer = qlora_trainer(token_ids)
    trainer.train()
    p_end[name] = after_the_answer(trainer.model, lab_held_out)

# %%
ceiling = 1 / twins.sum()
print(f"ceiling 1/{twins.sum()} = {ceiling:.4f}; n = {len(lab_held_out)}, seed {SEED}")
for name, (end, all_twins, likeliest) in p_end.items():
    mean = evaluation.estimate(end)
    print(
        f"{name:26s} P(end) {mean.value:.4f} [{mean.low:.4f}, {mean.high:.4f}]; "
        f"twins together {all_twins.mean():.2f}; likeliest in {likeliest.mean():.0%}"
    )

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# All three runs have learned *when* to end: the twins together are nearly certain.
# But without a row of its own the end token has to share that with every twin, and stays below the ceiling.
# The list form trains the embedding and leaves the head as it was; only the dict works.
#
# </details>
#
# What that does to whole answers was recorded over 124 steps and three seeds.

# %%
print(recorded.caption(recorded.load("lab_findings")))
compared = ["LoRA LR 0.003, β 0.5", "LoRA, chat tokens not trained"]
for name in compared:
    ended = [run["sampled"]["ended"] for run in lab.recorded(name)]
    print(f"{name}: sampled answers that end, by seed: {[round(e, 2) for e in ended]}")
lab.summary(compared)

# %% [markdown]
# The run whose chat tokens were not trained ranks pairs nearly as well, but next to none of its answers is good: they do not stop.
# Preference accuracy cannot see this fault.
#
# ### Optional: which layers?
#
# The article adapts all seven projections; PEFT's own default adapts `q_proj` and `v_proj` of a Llama only.
#
# **Predict.** Attention's four, or the MLP's three: which get further in the same 32 steps?

# %%
layers = {
    "all seven": ATTENTION + MLP,
    "attention": ATTENTION,
    "MLP": MLP,
}
by_layers = {}
for name, targets in layers.items():
    if name != "all seven":  # the last run above
        trainer = qlora_trainer(choices["dict: embeddings and head"], layers=targets)
        trainer.train()
    by_layers[name] = evaluation.score_pairs(
        trainer.model, tokenizer, lab_held_out, 256
    )

# %%
for name, found_scores in by_layers.items():
    here = replace(plain, targets=tuple(layers[name]))
    gib = memory.static_bytes(llama3_8b, here)["adapter"] / GIB
    gap = evaluation.estimate(found_scores.chosen - found_scores.rejected)
    print(
        f"{name:10s} {gib:.2f} GiB of adapter at 8B; log-prob chosen - rejected "
        f"{gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
    )
versus = evaluation.compare_paired(
    by_layers["attention"].preferred, by_layers["MLP"].preferred
)
print(f"preferred, MLP against attention: {versus}; one seed")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# The gap is in nats per token, on the same held-out pairs for all three.
# Where the interval of the difference holds 0, this run cannot tell the two halves apart; and the MLP's adapter is twice as large.
# Thinking Machines found attention alone to lag, even at a higher rank, and the MLP to matter most.
#
# </details>
#
# In a model like Llama 3 8B the trained token rows cost next to nothing: three rows in two matrices.

# %%
rows_trained = 2 * len(control_ids) * llama3_8b.hidden_size
share = rows_trained / trained
print(f"{rows_trained:,} more trained weights at 8B, {share:.2%} of LoRA's")

# %% [markdown]
# ## 9. Optional: precision and attention: ask the card
#
# bfloat16 needs compute capability 8.0. `torch.cuda.is_bf16_supported()` also says yes where it is only emulated, so the course asks for the capability.
#
# **Predict.** Someone forces the `l4` profile on a T4. Which dtype should it compute in?

# %%
capabilities = {"T4": (7, 5), "L4": (8, 9), "A100": (8, 0)}
for name, capability in capabilities.items():
    gib = memory.CARDS_GIB[name]
    card = profiles.Hardware(True, name, capability, gib, cores=8, ram_gib=50)
    wish = {"COURSE_PROFILE": "l4"}
    choice = profiles.choose(environ=wish, hardware=card, offline=lambda: False)
    best, because = models.attention_implementation(capability, flash_available=True)
    print(f"{name:5s} {choice.profile.dtype:9s} {best}: {because}")
print(f"here  {profile.dtype:9s} {attention}: {why}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# float16 has a narrow range: QLoRA's authors warn that some 7B runs fail with it.
# The first three lines suppose that flash-attn is installed. It is never needed: it compiles for long, and PyTorch's SDPA is fused as well.
#
# </details>
#
# ### Which precision for what is trained?
#
# **Predict.** Weights of 0.18 and of 0.002 get AdamW's first step, as large as the learning rate, 8e-5. What are they then?

# %%
for kind in (torch.float32, torch.float16, torch.bfloat16):
    old = torch.tensor([0.18, 0.002], dtype=kind)
    moves = [f"{a:.6f} -> {b:.6f}" for a, b in zip(old, old - 8e-5, strict=True)]
    print(f"{kind!s:15s}", "   ".join(moves))

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# In bfloat16 the step on the larger weight is rounded away: it keeps 8 binary digits, and the step is smaller than the last.
# TRL 1.16 does train rows in it: with a 4-bit base and `bf16=True` it casts embeddings and head, and the trained rows with them.
# The course's trainer leaves them in float32.
#
# </details>
#
# Two runs of five steps at a learning rate for 8B count the numbers that never moved.

# %%
stuck = {}
for name, cast in {"cast, as TRL 1.16 does": True, "left in float32": False}.items():
    both = choices["dict: embeddings and head"]
    trainer = qlora_trainer(both, learning_rate=8e-5, steps=5, dtype=torch.bfloat16)
    trained_now = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    for key, weight in trained_now.items():
        if cast and "lora_" not in key:
            weight.data = weight.data.bfloat16()
    rows = next(p for n, p in trained_now.items() if "lm_head" in n)
    began = rows.detach().clone()
    trainer.train()
    stuck[name] = (rows == began).float().mean().item()
    lora_dtype = next(p.dtype for n, p in trained_now.items() if "lora_" in n)
    print(
        f"{name}: LoRA {lora_dtype}, rows of the head {rows.dtype}, "
        f"{stuck[name]:.0%} of their {rows.numel()} numbers never moved"
    )

# %% [markdown]
# The harm depends on the rows' size: the lab's head rows are long, Llama 3's are reported to be near zero, where bfloat16 is finer.
# With TRL's trainer, call `models.keep_trained_in_fp32(trainer.model)` before `train()`: it costs next to nothing.
#
# One more trap, on CPUs with bfloat16 in hardware (`avx512_bf16` in `lscpu`): when a 4-bit model first runs in evaluation mode there, bitsandbytes 0.50 rearranges its weights for inference, and no gradient passes through them any more. PyTorch warns (*an autograd kernel was not registered*), and the training goes on.
# Evaluate after training, or load the model again.
#
# ## Recap

# %%
low, high = min(lost["NF4"]), max(lost["NF4"])
mean = sum(lost["NF4"]) / n
d, p_value = damage["NF4"].difference, damage["NF4"].p_value
changed = f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p = {p_value:.2g}"
found = [
    ("NF4", "relative error (range)", f"{mean:.3f} ({low:.3f}–{high:.3f})", n),
    ("NF4", "change of preference accuracy", changed, len(held_out)),
    ("QLoRA at 8B", "weights, training state", f"{sums['QLoRA']:.2f} GiB, computed", 1),
    *(
        (name, "peak of a step at 8B", f"{p.peak_gib:.1f} GiB, predicted", 1)
        for name, p in step.items()
    ),
]
for name, (end, _, _) in list(p_end.items())[1:]:
    found.append((f"token rows: {name}", "P(end)", f"{end.mean():.4f}", len(end)))
for name, now in by_layers.items():
    value = str(evaluation.estimate(now.preferred))
    found.append((f"LoRA on {name}", "preference accuracy", value, len(now.preferred)))
for name, value in stuck.items():
    found.append((f"bf16 rows, {name}", "never moved", f"{value:.0%}", rows.numel()))
recap = pd.DataFrame(found, columns=["method", "metric", "result", "n"])
recap.assign(seed=SEED, profile=profile.name).set_index("method")

# %%
with_rows = p_end["dict: embeddings and head"][0].mean()
without = p_end["none"][0].mean()
print(
    f"Finding: QLoRA takes Llama 3 8B's weights and training state from "
    f"{sums['full, 16 bit']:.0f} to {sums['QLoRA']:.1f} GiB (computed); on the lab "
    f"P(end of turn) is {with_rows:.2f} with trained token rows, {without:.4f} without"
)


# %% [markdown]
# What does not follow: that NF4 does as little to an 8B model as to the lab's; that is measured where one is loaded.
#
# **Now you can** say what a model needs in memory, load it in NF4, and train chat tokens with LoRA.
# **Next you need** a training that learns, and to see that it does: notebook 04.

# %% [markdown]
# ## Exercises
#
# A check says in words what is not right yet. Stuck? `checks.hint("3.1")`, and once more for a stronger hint.
# The cell below each exercise folds both hints and a tested solution.
#
# **3.1 · 5 min · ●○○** What does a weight cost in NF4 with double quantisation?

# %%
def bits_per_weight(block: int, second: int) -> float:
    """Bits per weight: `block` weights share a scale, `second` scales a constant."""
    ...


checks.bits_per_weight(bits_per_weight)

# %%
checks.solution("3.1")


# %% [markdown]
# **3.2 · 10 min · ●●○** What does LoRA train on all seven projections of a Llama? Mind that keys and values have fewer heads.

# %%
def lora_parameters(config: LlamaConfig, rank: int) -> int:
    """Trained weights of LoRA of this rank, in all layers."""
    ...


checks.lora_parameters(lora_parameters)

# %%
checks.solution("3.2")


# %% [markdown]
# **3.3 · 20 min · ●●●** Beat NF4: find 16 values with a smaller error on normal weights.
# They are judged on weights that they have not seen.

# %%
def better_code(weights: torch.Tensor, nf4: torch.Tensor) -> torch.Tensor:
    """16 ascending values for `weights` (N,) in blocks of 64; `nf4` (16,) is NF4's."""
    ...


checks.better_code(better_code)

# %%
checks.solution("3.3")


# %% [markdown]
# **3.4 · 10 min · ●●○** The same weights, the same 8 pairs per step and rows of the same length, but so that it fits a T4.
# `replace` changes a field of the settings, which are `l4` of section 6.

# %%
def for_a_t4(settings: memory.Settings) -> memory.Settings:
    """Settings of the same training that fit a T4."""
    ...


checks.for_a_t4(for_a_t4)

# %%
checks.solution("3.4")

# %% [markdown]
# ## Five questions
#
# Put a letter for each `...`; the cell then says whether it is right, and why.
# Or unfold the answers, once you have your own.

# %%
answers = {1: ..., 2: ..., 3: ..., 4: ..., 5: ...}
checks.quiz("03", answers)

# %% [markdown]
# ## References
#
# - Dettmers et al. (2023), *QLoRA: Efficient Finetuning of Quantized LLMs*, arXiv:2305.14314.
# - Hu et al. (2021), *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv:2106.09685.
# - Schulman and Thinking Machines Lab (2025), *LoRA Without Regret*.
# - meta-llama/llama3, issue 77, on the base model's untrained tokens.
