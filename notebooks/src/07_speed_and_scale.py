# %% [markdown]
# # 07 · From two hours to minutes: where does the time go?
#
# {{badge}}
#
# **You will learn**
# to count what a training step computes and does not need;
# to build the switches that leave it out, and to prove each one exact before you time it;
# to read a speed claim: share of the floor, peak memory, and what was held equal.
#
# **Time and hardware**: {{recorded}}.
# Everything runs on the lab's small model; what was measured on Llama 3 8B's exact shape is recorded, and says so.
#
# The title's two hours are the article's, for 1,000 pairs on an L4 (see the references).
# The course measured on an H200; its minutes for an L4 are projected (appendix).
#
# **You need** notebook 01 (the loss), notebook 03 (memory) and notebook 04 (TRL's trainer).
# Abbreviations are explained in the [glossary](00_start_here.ipynb#glossary).
# The core path is sections 1 to 7, about 25 minutes; section 8 is for several GPUs, and the appendices are this notebook's diary and a projection.

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

# This notebook needs nothing from the hub.
profile, reason = start.begin(offline=True)
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from peft import LoraConfig

from course_utils import chat, lab, models, orpo, plots, recorded
from course_utils.data import mixing
from course_utils.exercises import checks
from course_utils.recorded import speed
from course_utils.training import ORPOConfig, ORPOTrainer, packing

print(f"profile {profile.name}: {reason}. Model here: the lab's, seed 0")

# %% [markdown]
# ## 1. What does a step compute and not need?
#
# TRL's trainer puts chosen and rejected answers of a micro-batch below one another, pads all rows to the longest, and computes logits everywhere.
# The trainers of this notebook differ in their class and their micro-batch alone.

# %%
SETTINGS = {
    "beta": 0.5,
    "learning_rate": 3e-3,
    "max_length": 256,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "output_dir": "outputs/07",
    "seed": 0,
}
train = mixing.build().train.select(range(800))
train = train.select_columns(["prompt", "chosen", "rejected"])


# %%
def lora(rows):
    return LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=models.LINEAR_LAYERS,  # the seven of notebook 03
        trainable_token_indices={"embed_tokens": rows, "lm_head": rows},
    )


# %%
def make_trainer(kind, micro_batch, steps=1):
    torch.manual_seed(0)
    model, tokenizer = lab.load_base()
    rows = chat.use_llama3_chat(tokenizer)
    size = {"per_device_train_batch_size": micro_batch, "max_steps": steps}
    config = ORPOConfig(
        **SETTINGS, **size, gradient_accumulation_steps=8 // micro_batch
    )
    more = {"processing_class": tokenizer, "peft_config": lora(rows)}
    return kind(model, config, train_dataset=train, **more)


# %%
# Ours, equal to TRL's step for step; TRL's own speed is recorded, not run.
trl = {size: make_trainer(ORPOTrainer, size) for size in (2, 8)}


# %% [markdown]
# Each position of a batch falls into one of four classes.
#
# **Predict.** What share of the positions is padding, with 8 pairs in a batch? And how often is the prompt computed?

# %%
def positions(batch):
    """How many positions of a TRL batch are of which kind."""
    pairs = packing.pairs_from_batch(batch)
    width = max(batch[f"{s}_input_ids"].shape[1] for s in ("chosen", "rejected"))
    chosen = sum(len(pair.chosen_ids) for pair in pairs)
    rejected = sum(len(pair.rejected_ids) for pair in pairs)
    again = sum(packing.shared_prefix(p.chosen_ids, p.rejected_ids) for p in pairs)
    return {
        "chosen": chosen,
        "rejected, what differs": rejected - again,
        "prefix, a second time": again,
        "padding": 2 * width * len(pairs) - chosen - rejected,
    }


# %%
counts = pd.DataFrame()
for size, trainer in trl.items():
    batches = map(positions, trainer.get_train_dataloader())
    counts[f"{size} pairs"] = pd.DataFrame(batches).sum()
shares = counts / counts.sum()
useless = shares.loc[["prefix, a second time", "padding"]].sum()

# %%
_, ax = plt.subplots(figsize=(7, 1.9), dpi=90)
colours = ["#0072b2", "#d55e00", "#bbbbbb", "#e8e8e8"]
shares.T.plot.barh(stacked=True, color=colours, edgecolor="white", ax=ax)
for bars, hatch in zip(ax.containers, ("", "///", "", ""), strict=True):
    plt.setp(bars, hatch=hatch)
ax.legend(frameon=False, fontsize=7, ncols=4, bbox_to_anchor=(1, -0.2))
words = "of the positions in batches of 8 are not needed"
plots.tidy(ax, f"{useless['8 pairs']:.0%} {words} (n = {len(train)} pairs)", "", "")
plt.tight_layout()
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: two stacked bars of positions by kind, for micro-batches of 2 and of 8 pairs. In batches of 8 about a half is needed, in batches of 2 two thirds; the common prefix is computed twice, and padding grows with the micro-batch.*
#
# Small micro-batches waste less, and cost something else: every one is a pass through all layers, with all its operations.
#
# </details>

# %%
from torch.utils._python_dispatch import TorchDispatchMode


class Counted(TorchDispatchMode):
    """Counts the operations that PyTorch carries out, backward's among them."""

    calls = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.calls += 1
        return operation(*args, **kwargs or {})


# %%
calls = {}
for size, trainer in trl.items():
    batches = iter(trainer.get_train_dataloader())
    with Counted() as counted:
        for _ in range(8 // size):
            loss, _ = trainer.get_batch_loss_metrics(trainer.model, next(batches))
            loss.backward()
    calls[size] = counted.calls
print(f"operations for 8 pairs: as 2 × 4 {calls[2]:,}, as 8 × 1 {calls[8]:,}")

# %% [markdown]
# On a CPU an operation's launch is small beside its work.
# A fast GPU is done with a small operation before the CPU has launched the next one, and waits.
#
# ## 2. How far from the floor?
#
# A *floor* makes seconds comparable: the arithmetic that cannot be left out, divided by the rate of this very card's largest matrix products.
# Each token once, prefixes shared; forward, and the gradient of inputs: 4 FLOP for each frozen weight and token.
#
# `TWIN` in a command is a model of random weights in Llama 3 8B's exact shape (`python -m course_utils.models.random_weights`), and the pairs are random tokens: neither speed nor memory knows the difference.

# %%
llama = recorded.load("speed_8b")
peers = recorded.load("speed_8b_peers")
print(recorded.caption(llama))
print("TRL, 8 × 1:", recorded.caption(peers))
means = {k: f"{v:.0f}" for k, v in llama["lengths"].items() if k != "pairs"}
print(f"tokens per pair, means of {llama['lengths']['pairs']} pairs:", means)

# %%
theirs = {
    "TRL, 2 × 4 (the article)": (llama, "stock"),
    "TRL, 8 × 1": (peers, "stock, batch of 8"),
    "Unsloth, 2 × 4": (llama, "unsloth"),
}
speed.arms(theirs)


# %% [markdown]
# The lengths are drawn: how long the pairs of the real datasets are could not be measured offline.
# `tests/benchmarks/bench_orpo.py --lengths FILE` takes those of your own pairs, and your ratio will be another.
#
# The article's recipe uses a small part of what the card can do.
# Eight pairs at a time fill it better and take far more memory, for logits mostly.
# An interval is that of the median over laps, stretches of one training that were timed one after another; where there is none, there was one lap. Unsloth runs in a process of its own, where operations were not counted.
#
# ## 3. Lever: the prefix once
#
# Chosen and rejected begin alike, so a row can hold the beginning once:
#
# `[prefix | rest of chosen | rest of rejected]`
#
# Two things keep it equal: the rejected rest must not see the chosen rest, and its positions go on from the prefix.

# %%
def branch_row(chosen, rejected):
    """ids (T,), positions (T,) and mask (T, T) of one row for both answers."""
    shared = packing.shared_prefix(chosen, rejected)
    ids = np.concatenate([chosen, rejected[shared:]])
    places = np.concatenate([np.arange(len(chosen)), np.arange(shared, len(rejected))])
    mask = np.tril(np.ones((len(ids), len(ids)), dtype=bool))
    mask[len(chosen) :, shared : len(chosen)] = False  # rejected must not see chosen
    return torch.tensor(ids), torch.tensor(places), torch.tensor(mask), shared


# %%
batch = next(iter(trl[8].get_train_dataloader()))
pairs = packing.pairs_from_batch(batch)
ids, places, mask, shared = branch_row(pairs[0].chosen_ids, pairs[0].rejected_ids)
_, ax = plt.subplots(figsize=(3.6, 3.4), dpi=90)
ax.imshow(mask, cmap="Greys", interpolation="nearest")
plots.tidy(ax, f"One pair, {len(ids)} tokens: who sees whom", "sees", "token")
plt.tight_layout()
plt.show()


# %% [markdown]
# *Figure: a triangular mask with a white block: the last rows, the rejected rest, see the prefix and themselves, and not the chosen rest between.*
#
# ## 4. Lever: the head where it is needed
#
# Logits are the largest tensor of a step: 128,256 numbers per position.
# The loss wants one number of each scored position, so the head runs on those alone, a tile at a time, and nothing else is kept.

# %%
def scored(pair, shared):
    """Which positions of the row are asked, for which tokens; how many are chosen's."""
    length = len(pair.chosen_ids)
    at = np.arange(len(pair.rejected_ids))
    at = np.where(at < shared, at, at - shared + length)
    answer = np.flatnonzero(pair.rejected_scored)  # each is predicted one before
    sources = np.concatenate([np.arange(length - 1), at[answer - 1]])
    targets = np.concatenate([pair.chosen_ids[1:], pair.rejected_ids[answer]])
    return sources, torch.tensor(targets), [length - 1, len(answer)]


# %%
def lever_loss(model, pair, beta):
    """ORPO's loss of one pair from one row, with logits at scored positions only."""
    ids, places, mask, shared = branch_row(pair.chosen_ids, pair.rejected_ids)
    row = {"input_ids": ids[None], "position_ids": places[None]}
    row |= {"attention_mask": mask[None, None], "use_cache": False}
    inner = model.get_base_model()
    hidden = inner.model(**row).last_hidden_state[0]
    sources, targets, sizes = scored(pair, shared)
    logits = inner.lm_head(hidden[sources])
    logps = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    chosen, rejected = logps.split(sizes)
    answer = chosen[torch.tensor(pair.chosen_scored[1:])].mean()[None]
    return orpo.orpo_loss(-chosen.mean(), answer, rejected.mean()[None], beta)


# %% [markdown]
# **Predict.** Equal to TRL's loss and gradient, to how many digits?

# %%
def one_pair(batch, number):
    """The batch with this pair alone, its padding cut off."""
    out = {}
    for side in ("chosen", "rejected"):
        width = int(batch[f"{side}_attention_mask"][number].sum())
        for key in ("input_ids", "attention_mask", "labels"):
            name = f"{side}_{key}"
            out[name] = batch[name][number : number + 1, :width]
    return out


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


# %%
model, gaps = trl[8].model, []
for number, pair in enumerate(pairs):
    plain, _ = trl[8].get_batch_loss_metrics(model, one_pair(batch, number))
    lever = lever_loss(model, pair, beta=0.5)
    ours, trl_s = gradient(model, lever), gradient(model, plain)
    relative = (ours - trl_s).norm() / trl_s.norm()
    gaps.append((abs(lever - plain).item(), relative.item()))
loss_gap, gradient_gap = np.max(gaps, axis=0)
assert loss_gap < 1e-4 and gradient_gap < 1e-4
print(f"{len(pairs)} pairs, largest differences: loss {loss_gap:.1e}")
print(f"gradient {gradient_gap:.1e} of its length")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# To the rounding of float32. A lever that changes the result is no lever.
#
# </details>
#
# ## 5. Lever: full rows
#
# Pairs differ in length, so batches are padded. Packed rows are not: all pairs of an optimizer step go into rows of a token budget, whichever micro-batch they came from.
# What the step sees must stay the same, so each pair keeps the weight that its micro-batch gave it.
# Rows are made about equally long, since the longest one decides how much memory a step takes.

# %%
batches = [b for b, _ in zip(trl[2].get_train_dataloader(), range(4), strict=False)]
rows = packing.pack_step([packing.pairs_from_batch(b) for b in batches], budget=1024)
for row in rows:
    held, needed = row.input_ids.shape[1], len(row.targets)
    print(f"a row of {held} tokens: {len(row.lengths)} pairs, {needed} logits needed")
dense = sum(sum(positions(b).values()) for b in batches)
print(f"TRL: {dense} positions, and as many logits, in {len(batches)} passes")
print("weight of each pair's NLL:", rows[0].nll_weight.numpy().round(4))

# %% [markdown]
# ## 6. All of it, in the trainer of notebook 04
#
# One more switch computes a LoRA layer in one piece, in 16 bit. It has a trap, which once hid the adapter from its own training: appendix A, and hunt 5.6.
#
# `PackedORPOTrainer` is TRL's trainer with these switches: same configuration, same data order, same log, same checkpoints.
# Change the class name.

# %%
from transformers import PrinterCallback

from course_utils.training.fast import PackedORPOTrainer

logs, used = {}, {}
for kind in (ORPOTrainer, PackedORPOTrainer):
    trainer = make_trainer(kind, 2, steps=12)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logs[kind.__name__] = [x["loss"] for x in trainer.state.log_history if "loss" in x]
    used[kind.__name__] = trainer

# %%
curves = pd.DataFrame(logs).astype(float)
apart = (curves.iloc[:, 0] - curves.iloc[:, 1]).abs().max()
assert apart < 1e-3
print(curves.iloc[[0, 5, 11]].round(5).to_string())
print(f"12 steps with micro-batches of 2: at most {apart:.1e} apart")

# %%
fast = used["PackedORPOTrainer"]
print(f"attention {fast.attention}: {fast.attention_reason}")
print(f"embeddings on the CPU {fast.embeddings_on_cpu}: {fast.embeddings_reason}")
print(f"compiled layers {fast.compile_layers}: {fast.compile_reason}")
print(f"CUDA graphs {fast.cuda_graphs}: {fast.graphs_reason}")

# %%
on_lab = recorded.load("speed_lab")
times = on_lab["arms"]["fast"]["times_faster_in_seconds"]
print(recorded.caption(on_lab))
print(f"on the lab {speed.interval(times, 2)} times as fast as TRL, n = {times['n']}")

# %% [markdown]
# On a GPU six switches come in that a CPU does not have.
#
# * **Embeddings on the CPU**: at 8B they are a table of 1 GB that is only looked up. It stays in the CPU's memory, and the rows that are needed travel with the token ids.
# * **Flash attention over sequences** instead of a mask: a branch is a sequence of its own whose keys begin with the prefix again.
# * **One decode**: a matrix in 4 bit is unpacked by one kernel that reads each byte once; bitsandbytes takes three. Bit for bit the same numbers.
# * **Compiled layers**: what lies between two matrix products becomes one kernel, and cheap things are computed again instead of kept. A layer that runs again for backward leaves out its last product, which backward has no use for.
# * **CUDA graphs**: a row is thousands of kernels; a recording launches them all at once, for each length of rows.
# * **Running ahead**: the CPU prepares a step while the GPU works on the one before; nothing in between waits, bitsandbytes' optimizer included.
#
# ## 7. From TRL to fast, measured
#
# The ladder switches one lever on after the other. It was timed on fewer pairs, and longer ones, so its seconds are per million tokens (each prefix once).
# TRL's first laps are slower than the others and do not count (appendix B). `FIRST_LAPS` says how many.
#
# **Predict.** Which lever brings most time, which most memory?

# %%
ladder = recorded.load("speed_8b_ladder")
print(recorded.caption(ladder))
FIRST_LAPS, FAST = 2, "+ activations kept: fast"
steps = {"TRL, 2 × 4": (llama, "stock")}
rungs = [name for name in ladder["arms"] if not name.startswith("fast")]
steps |= {name: (ladder, name) for name in rungs}
steps |= {FAST: (ladder, "fast"), "lean": (llama, "lean")}

# %%
measured = speed.arms(steps).drop(columns="s per 1,000 pairs")
seconds = [
    speed.per_million_tokens(record, arm, FIRST_LAPS if record is llama else 0)
    for record, arm in steps.values()
]
measured.insert(0, "s per million tokens", np.round(seconds))
measured["times TRL"] = np.round(seconds[0] / np.array(seconds), 1)
measured

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.5, 3.2), dpi=90, sharey=True)
colours = ["#999999"] + ["#0072b2"] * (len(rungs) + 1) + ["#009e73"]
for ax, column in zip(axes, ("s per million tokens", "peak GiB"), strict=True):
    bars = ax.barh(measured.index, measured[column].astype(float), color=colours)
    ax.bar_label(bars, fontsize=7, padding=2)
    ax.margins(x=0.12)
    ax.tick_params(axis="y", labelsize=7)
    plots.tidy(ax, "", column, "")
axes[0].invert_yaxis()
most = measured.index[1 + np.argmin(np.diff(seconds[:-1]))]
fig.suptitle(f"Most time is saved by: {most} (one run each)", fontsize=10)
plt.tight_layout()
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: recorded seconds per million tokens and peak memory, one bar per rung of the ladder. The longest steps in time are packing and compiled layers; memory falls by tiles, embeddings and the fused LoRA, and rises again where activations are kept.*
#
# Packing and compiling bring most: fewer, fuller passes, and fewer operations in each. The fused LoRA and the decode do not show as time where layers are not compiled; that the card waits for the CPU there is a suspicion, since these rungs were not profiled.
# Each rung is one lap: differences of a few per cent are nothing it can tell from chance.
# Two things differ in the next table: its *fast* may take more memory than TRL, and it compares pairs, not tokens.
# *Fast* spends memory on activations that need not be computed again; *fast, TRL's memory* keeps within TRL's own peak, and *lean* spends next to nothing.
#
# </details>
#
# ### What a user has
#
# The same pairs, all arms in turns: how many times as fast, with the lowest and the highest lap.

# %%
cases = {
    "NF4, up to 1,024 tokens": "speed_8b",
    "NF4, up to 2,048 tokens": "speed_8b_2048",
    "16 bit": "speed_8b_16_bit",
}
found = recorded.load_if_there(*cases.values())
rows = []
for case, name in cases.items():
    for arm in [a for a in found.get(name, {"arms": {}})["arms"] if a != "stock"]:
        row = {"training": case, "trainer": arm}
        for other, label in (("stock", "× TRL"), ("unsloth", "× Unsloth")):
            if other in found[name]["arms"] and arm != other:
                row[label] = speed.times_as_fast(found[name], arm, other)
        rows.append(row | {"peak GiB": round(found[name]["arms"][arm]["peak_gib"], 1)})

# %%
for record in found.values():
    print(recorded.caption(record))
print("TRL's own peak:", f"{llama['arms']['stock']['peak_gib']:.1f} GiB")
pd.DataFrame(rows).set_index(["training", "trainer"]).fillna("–")

# %%
aims = pd.DataFrame(
    {
        "aim": {"fast": "60 s, 7 × TRL", "lean": "1.8 × Unsloth in 6.5 GiB"},
        "s per 1,000 pairs": {
            arm: speed.interval(llama["arms"][arm]["seconds_per_1000_pairs"], 1)
            for arm in ("fast", "lean")
        },
    }
)
started = llama["arms"]["fast"]["warmup_seconds"]["median"]
print(f"start-up of fast, compiling and recording: {started:.0f} s")
aims

# %% [markdown]
# An aim counts as reached if the interval lies on its right side, and as open if the interval holds it.
# So both aims of *fast* are open, and *lean*'s is reached. *Fast* pays with memory, more than twice TRL's, and with its start-up.
# The start-up is paid once a run: for a few hundred pairs a trainer that compiles nothing can be the faster one.
#
# So where does the time go? Some more steps of each arm but Unsloth, with the same pairs, were profiled.

# %%
print("milliseconds of a step by what the GPU did")
speed.where_time_goes(llama)

# %% [markdown]
# The article's recipe spends more on small arithmetic and copies than on matrix products, and much of its time on nothing.
# In *fast* most of what the kernels take are matrix products. How much of these is the floor?

# %%
in_fast = llama["rounds"]["fast"][0]["profile"]
row = llama["arms"]["fast"]
per_1000 = row["seconds_per_1000_pairs"]["median"]
scale = per_1000 / in_fast["wall_ms"]
parts = {kind: scale * ms for kind, ms in in_fast["by_kind"].items()}
parts["nothing"] = scale * (in_fast["wall_ms"] - in_fast["busy_ms"])
floor = row["share_of_floor"]["median"] * per_1000
parts = {
    "products: the floor": floor,
    "products: beyond it": parts.pop("matrix products") - floor,
} | parts
pd.Series(parts, name="s per 1,000 pairs of fast").round(1).to_frame()

# %% [markdown]
# *Beyond it* are the adapter's thin products, which move much and compute little, products of layers that run again, and rows that do not fill the card as the largest products do; their shares were not measured.
# None of the other parts can be ended entirely. The next to try would be a faster decode, and attention by a kernel for this card.

# %% [markdown]
# ## 8. Optional: several GPUs
#
# Nothing in the trainer is new for that: accelerate starts one process a GPU, each reads its share of every step, and the adapter's gradients are averaged once a step.
#
# ```bash
# python -m course_utils.training --profile a100 --output runs/a100                 # one GPU
#
# CONFIG=$(python -m course_utils.training --config-path ddp)
# accelerate launch --config_file $CONFIG --num_processes 2 \
#     -m course_utils.training --profile a100 --output runs/a100                    # two
# ```

# %%
from course_utils.training.batches import share as share_of_a_step

for processes in (1, 2, 4):
    each = share_of_a_step(32, 8, processes)
    print(f"{processes} processes, 32 pairs per step:", each)

# %% [markdown]
# A step keeps its pairs whatever the number of processes.
# ORPO averages its NLL over the tokens of a micro-batch, so the loss is the same to rounding only while micro-batches keep their size.
# On two processes of a CPU the course's tests find the loss curve of one process again, to six digits, also after one of them was killed and the run resumed.
# DDP's own way, an exchange of gradients from hooks, stops a CUDA graph from being recorded; so the fast trainer does without its wrapper, and averages gradients itself.
#
# But who gets which micro-batches of a step is free, and a step ends when the slowest process does. So `EvenSteps` gives every process about as many tokens.
#
# **Predict.** Four GPUs: how many times as fast as one? And what costs more, the exchange of gradients or pairs of uneven length?

# %%
scaling = recorded.load("scaling")
print(recorded.caption(scaling), "\ntimed with", *scaling["fast_config"])
by_gpus = speed.scaling(scaling)
by_gpus.round(2).astype(str)

# %%
done = {n: part for n, part in scaling["parts"].items() if "error" not in part}
for name, part in done.items():
    if "milliseconds" in part:
        print(f"{name}, {part['mib']:.0f} MiB: {part['milliseconds']:.2f} ms")
    elif "seconds_to_end" in part:
        print(f"{name}: the others ended after {part['seconds_to_end']:.1f} s,")
        print(f"   with status {part['exit_status']}: {part['message']}")
    elif "compared" in part:
        apart_by = part["largest_relative_difference"]
        print(f"{name}: losses {apart_by:.1e} apart from {part['compared']}'s")
    if "16 bit" in name and "peak_gib" in part:
        print(f"{name}: {max(part['peak_gib']):.1f} GiB per GPU at its peak")
not_there = [n for n in scaling["parts"] if n not in done]
print("not measured, they failed:", ", ".join(not_there) or "none")

# %%
ddp = by_gpus[[name.endswith(("DDP", "1 GPU")) for name in by_gpus.index]]
counts, measured_times = ddp["processes"], ddp["times as fast"]
_, ax = plt.subplots(figsize=(5, 3.2), dpi=90)
title = f"{counts.max():.0f} GPUs are {measured_times.max():.2f} times as fast as one"
only_uneven = counts - ddp["lost to uneven pairs"]
plots.scaling(ax, counts, measured_times, only_uneven, title)
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: times as fast as one GPU over the number of GPUs. The measured points lie a little below the dotted ideal line; the grey wedge between is what uneven pairs cost, an orange one, where there is any, is all the rest.*
#
# DDP gives one GPU's losses to rounding, and so does the run that was killed and resumed on half the GPUs. One run each, one seed.
# Exchanging an adapter's gradients costs next to nothing: they are small. What is missing to the ideal line is mostly what uneven pairs cost, since everybody waits for the process with most tokens.
# (*Lost to the rest* can lie below 0: time is not quite tokens.)
#
# </details>
#
# **DDP or FSDP?** DDP holds the whole model on every GPU: right for whatever fits on one, and 8B in NF4 does.
# FSDP2 holds a share of every layer on each GPU and fetches the rest while the layer runs: for 16-bit LoRA on models that do not fit (`--config-path fsdp`, `--sixteen-bit --optim adamw_torch`).
# It does not serve QLoRA here: NF4 weights are bytes, which FSDP2 leaves whole on every GPU.
#
# **A process dies.** Then the launcher ends the others, and each says how to go on: the same command with `--resume`, on as many GPUs as before or on fewer.
#
# **Several nodes.** Appendix D has the commands.
#
# ## Recap

# %%
recap = [
    ("positions not needed", f"{useless['8 pairs']:.0%}", f"{len(train)} pairs"),
    ("lever against TRL, gradient", f"{gradient_gap:.0e}", f"{len(pairs)} pairs"),
    ("fast against TRL, 12 steps", f"{apart:.0e}", "96 pairs"),
    ("lab: times as fast as TRL", speed.interval(times, 2), f"{times['n']} rounds"),
]
for arm, row in llama["arms"].items():
    value = speed.interval(row["seconds_per_1000_pairs"])
    n = f"{row['seconds_per_1000_pairs']['n']} laps"
    recap.append((f"8B: {arm}", f"{value} s per 1,000 pairs", n))
times_one = f"{measured_times.iloc[-1]:.2f} × one GPU"
recap.append((f"8B: {ddp.index[-1]}", times_one, "1 run"))
pd.DataFrame(recap, columns=["what", "value", "n"]).assign(seed=0).set_index("what")

# %%
of_trl = llama["arms"]["stock"]["seconds_per_1000_pairs"]["median"]
print(
    f"Finding: on Llama 3 8B's shape {of_trl:.0f} s per 1,000 pairs become "
    f"{per_1000:.0f}, or {speed.times_as_fast(llama, 'fast', 'stock')} times as fast; "
    f"on the lab the losses of 12 steps are {apart:.0e} apart"
)

# %% [markdown]
# **Now you can** say where a training step's time and memory go, and check that a faster trainer is the same trainer.
# **Next you need** nothing more: notebook 08 is the recipe on one page, for your own model.

# %% [markdown]
# ## Appendix A. Optional: LoRA in one piece, and the adapter that 16 bit hid
#
# A LoRA layer is a large product, `W x`, and a small one, `B A x`.
# PEFT computes both and adds them, with copies in float32 on the way; in one piece, and in 16 bit, some of that memory traffic is gone.
# But in which order? At the start of training `B A x` is tiny.
#
# **Predict.** How much of it arrives in the output if the rounded `W x` comes first? And if `B A x` comes first, and `W x` is added to it before the sum is rounded?

# %%
device = "cuda" if torch.cuda.is_available() else "cpu"
draw = torch.Generator().manual_seed(0)
shapes = {"x": (400, 512), "w": (512, 512), "change": (400, 512)}
x, w, change = (torch.randn(shape, generator=draw) for shape in shapes.values())
x, w, change = (part.bfloat16().to(device) for part in (x, w, 3e-3 * change))
exact = x.double() @ w.double().t()  # what the frozen layer says


def arrived(output):
    """How much of the change is in an output: 1 all of it, 0 nothing."""
    return ((output.double() - exact) * change).sum() / change.double().square().sum()


# %%
last_bit = 2**-8 * exact.abs().mean()
print(f"the change is {change.abs().double().mean() / last_bit:.2f} of a last bit")
print(f"arrived, on {device}: {arrived((x @ w.t()) + change):.2f} large one first,")
print(f"   {arrived(change.clone().addmm_(x, w.t())):.2f} small one first")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# A rounded number lies on a grid, and what is less than half a step of the grid does not move it.
# The course's first version had this fault, and passed every test of gradients: those are right, it is the step that does not arrive.
# The second computed the small one first, and passed this test too, on a CPU.
#
# </details>
#
# **Predict.** The same line, `small.addmm_(x, w.t())`, on an H200: how much arrives?

# %%
rounded = recorded.load("precision_8b")
print(recorded.caption(rounded))
arrivals = {}
for name, matrices in rounded["arrived"].items():
    draws = [share for row in matrices.values() for share in row["arrived"]]
    total = sum(row["microseconds"] for row in matrices.values())
    arrivals[name] = {"mean": np.mean(draws), "low": min(draws), "high": max(draws)}
    arrivals[name]["µs, all products"] = total
pd.DataFrame(arrivals).T.round(2)

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Nothing: cuBLAS adds in the output's memory, and where it adds as it is, with a factor of 1, it rounds the product *before* it adds.
# With another factor on what is there it adds in float32 and rounds the sum. So `course_utils.training.fast.matmul` computes twice the small product and lets `addmm_` halve it, which is exact and takes hardly longer.
#
# </details>
#
# No test on a CPU can find that. What found it was a loss: the fast trainer's mean loss lay above TRL's wherever pairs were seen again.
# Either an adapter had learned less, or 16-bit arithmetic hid from itself what the adapter had learned. Two losses tell these apart: the adapter's by float32 (*learned*), and by the arithmetic that trained it (of that, *seen*).
#
# **Predict.** Which was it? And how much of its adapter does TRL's own bf16 see?

# %%
seeds = ("precision_8b", "precision_8b_seed1", "precision_8b_seed2")
judged = recorded.load_if_there(*seeds)
for record in judged.values():
    print(f"seed {record['seed']}: {recorded.caption(record)}")
print(f"{rounded['steps']} steps of 8 pairs, {rounded['lengths']['pairs']} different")
speed.learned_and_seen(judged.values())

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# (Learning, on random tokens, is to know 16 pairs by heart.)
# By float32 all adapters are worth nearly the same: nothing was learned less. But with `addmm_` as it was, the trainer hardly saw what its adapter had learned, so every loss and reward that it logged said *nothing happens here*, and later steps followed gradients of a model without the adapter.
# (An adapter that grows should outgrow the grid, in a longer training or with a higher learning rate; when, was not measured.)
# Now the fast trainer sees more of it than TRL's own 16 bit does.
#
# </details>
#
# Why does TRL's 16 bit see less? PEFT adds the branch to a `W x` that is rounded already. What happens to the sum next decides what survives.
# So the question was asked for each kind of matrix: its adapter alone, the others as before training.
#
# **Predict.** Which matrices' adapters are hidden most?

# %%
asked = recorded.load_if_there("precision_8b", "precision_8b_matrices")
by_matrix = next(record for record in asked.values() if "by_matrix" in record)
print(recorded.caption(by_matrix))
gains = pd.DataFrame(by_matrix["by_matrix"]).T
gains["seen"] = (gains["own"] / gains["float32"]).map("{:.0%}".format)
gains.rename(columns=lambda c: f"nats lower by {c}" if c != "seen" else c).round(4)

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Nats by which the loss falls; one seed. PEFT keeps the norms in float32, so what follows a norm is added in float32.
# The sums of `gate_proj` and `up_proj` are multiplied with each other before they are rounded, those of `q_proj` and `k_proj` with the rotary angles: off the grid, a small change moves the rounding now and then, and on average all of it arrives.
# `v_proj` and `o_proj` are used as they are: on the grid, and what is less than half a step is gone.
# (This reading fits the table; it was not tested by itself.)
#
# </details>
#
# That is the check to run on any fast trainer, this one included.

# %% [markdown]
# ## Appendix B. Optional: a claim that did not hold
#
# An earlier version of this notebook took its times from these records of other calls:

# %%
repeats = recorded.load("speed_8b_repeats")
print(recorded.caption(repeats))
for arm, seconds in repeats["seconds_per_1000_pairs"].items():
    seconds = [*seconds, peers["arms"][arm]["seconds_per_1000_pairs"]["median"]]
    later = speed.interval(llama["arms"][arm]["seconds_per_1000_pairs"])
    print(f"{arm}, {len(seconds)} calls of {repeats['steps']} steps: ", end="")
    print(f"{min(seconds):.0f} to {max(seconds):.0f} s; in laps {later}")

# %% [markdown]
# What was wrong with those?

# %%
of_laps = {
    arm: [round(1e6 * lap["seconds"] / lap["tokens"]) for lap in laps]
    for arm, laps in llama["rounds"].items()
}
print("seconds per million tokens (chosen and rejected), lap by lap")
pd.DataFrame(of_laps).T

# %% [markdown]
# TRL's first laps are its slowest. (Why was not measured; its batches have another shape every time, so an allocator that learns the sizes is a suspect.)
# The earlier records timed eight steps behind three: whoever times few steps compares with TRL at its slowest.
# A real training is long, so the later laps count.

# %% [markdown]
# ## Appendix C. Optional: pauses that were not where they seemed
#
# *Nothing* was longer in an earlier version. It looked like a pause between two kernels, thousands of times, so a third of the kernels was taken out.
#
# **Predict.** What became of the pauses?

# %%
pauses = recorded.load("speed_8b_pauses")
print(recorded.caption(pauses), f"({pauses['what']})")
history = {k: v["profile"] for k, v in pauses["versions_of_the_trainer"].items()}
history = pd.DataFrame(history | {"now: no requests": in_fast}).T
idle = history["wall_ms"] - history["busy_ms"]
shown = {"kernels of a step": history["kernels"], "ms of nothing in a step": idle}
(pd.DataFrame(shown).div(history["steps"], axis=0)).astype(float).round()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Hardly anything. A list of all pauses showed where they were: a few long ones made up most of the time, and all of them lay around the optimizer.
# bitsandbytes asks for its paged state before each update, and each launch behind such a request waits until it is served. *Running ahead* leaves the requests out now (`course_utils/training/fast/waits.py`).
#
# </details>

# %% [markdown]
# ## Appendix D. Optional: an L4 by projection, and several nodes
#
# **The next number is not measured.**
# An L4's bf16 peak is listed as 121 TFLOP/s, dense, and this card's as 989. If large products reached the same share of it there as here, the trainer the same share of the floor, and no launch limited it, 1,000 pairs would take:

# %%
L4_PEAK, H200_PEAK = 121e12, 989e12  # FLOP/s, see the references
l4_rate = L4_PEAK * llama["matrix_flops_per_second"] / H200_PEAK
for name in ("fast, TRL's memory", "lean"):
    if name in llama["arms"]:
        run, share = llama["rounds"][name][0], llama["arms"][name]["share_of_floor"]
        minutes = 1000 * run["flops"] / run["pairs"] / l4_rate / share["median"] / 60
        print(f"{name}: {minutes:.0f} minutes (projected), {run['peak_gib']:.1f} GiB")

# %% [markdown]
# A slower card hides launches better and has a slower memory, so either may be wrong by a good part; measure yours with `tests/benchmarks/bench_orpo.py`.
#
# **Several nodes.** How the engine is told, not a result: every node runs the same command, only its rank differs, and `--output` lies on a disk that they share.
#
# ```bash
# accelerate launch --config_file $CONFIG --num_machines 2 --num_processes 16 \
#     --machine_rank $MACHINE_RANK --main_process_ip $HEAD --main_process_port 29500 \
#     -m course_utils.training --profile a100 --batch-size 128 --output /shared/a100 --resume
#
# torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d \
#     --rdzv_endpoint $HEAD:29500 --rdzv_id orpo \
#     -m course_utils.training --profile a100 --batch-size 128 --output /shared/a100 --resume
# ```
#
# Slurm starts one launcher a node; `--requeue` and `--resume` together survive a lost one (your shell's `#!` line goes on top):
#
# ```bash
# #SBATCH --nodes 2 --ntasks-per-node 1 --gpus-per-node 8 --requeue
# export HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# srun bash -c 'accelerate launch \
#     --config_file $(python -m course_utils.training --config-path ddp) \
#     --num_machines $SLURM_NNODES --num_processes $((8 * SLURM_NNODES)) \
#     --machine_rank $SLURM_NODEID --main_process_ip $HEAD --main_process_port 29500 \
#     -m course_utils.training --profile a100 --batch-size 128 --output $SCRATCH/a100 --resume'
# ```
#
# SkyPilot rents the nodes as well; its managed jobs start again elsewhere when a spot machine is taken away:
#
# ```yaml
# num_nodes: 2
# resources: {accelerators: "H100:8", use_spot: true}
# file_mounts:
#   /runs: {name: orpo-runs, mode: MOUNT}   # a bucket that outlives the machines
# setup: pip install -c constraints.txt -e .
# run: |
#   accelerate launch --config_file $(python -m course_utils.training --config-path ddp) \
#     --num_machines $SKYPILOT_NUM_NODES --num_processes $((8 * SKYPILOT_NUM_NODES)) \
#     --machine_rank $SKYPILOT_NODE_RANK --main_process_port 29500 \
#     --main_process_ip $(echo "$SKYPILOT_NODE_IPS" | head -n 1) \
#     -m course_utils.training --profile a100 --batch-size 128 --output /runs/a100 --resume
# ```
#
# Between nodes some 170 MB of gradients travel once a step, so DDP with LoRA asks little of the network; FSDP sends the weights themselves for every row.
# The limit is the step: 8 pairs are one for each of eight GPUs, whose rows are then too short to fill one; a larger `--batch-size` fills them, and is another training, whose learning rate has to be found again.

# %% [markdown]
# ## Appendix E. Optional: flash-attn
#
# The packed trainer brings its attention along: PyTorch ships FlashAttention 2's kernels.
# A model that you load yourself can use the package `flash-attn` instead. It ships as source and compiles for a long time, so first see what it brings on your card.

# %%
import time

from torch.nn.functional import scaled_dot_product_attention

attention, why = models.probe_attention()
print(f"attention of a loaded model: {attention} ({why})")


def sdpa(q, k, v, causal):
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    return scaled_dot_product_attention(*turned, is_causal=causal)


# %%
if attention == "flash_attention_2":
    from flash_attn import flash_attn_func

    heads = torch.randn(3, 1, 4096, 32, 128, device="cuda", dtype=torch.bfloat16)
    q, k, v = heads.requires_grad_()  # (batch, tokens, heads, width of a head)
    for name, attend in {"SDPA": sdpa, "flash-attn": flash_attn_func}.items():
        for lap in range(20):
            if lap == 10:  # the laps before warm up
                torch.cuda.synchronize()
                start_of_laps = time.perf_counter()
            attend(q, k, v, causal=True).sum().backward(retain_graph=True)
        torch.cuda.synchronize()
        took = (time.perf_counter() - start_of_laps) / 10
        print(f"{name}: {1000 * took:.2f} ms for 4,096 tokens, mean of 10")


# %% [markdown]
# Without the package the second cell does nothing, and nothing is missing: SDPA is used.
# Where no wheel fits your torch, leave it at that. (The course has no measurement of its own: its machines had no `flash-attn`.)
#

# %% [markdown]
# ## Exercises
#
# A check says in words what is not right yet. Stuck? `checks.hint("7.3")`, and once more for a stronger hint.
# The cell below each exercise folds both hints and a tested solution.
#
# **7.1 · 10 min · ●○○** What share of a run is padding, if rows are batched as they come?

# %%
def padding_share(lengths: list[int], batch_size: int) -> float:
    """Padding as a share of all tokens held; a batch is padded to its longest row."""
    ...


checks.padding_share(padding_share)

# %%
checks.solution("7.1")


# %% [markdown]
# **7.2 · 20 min · ●●●** Three answers to one prompt? Write a mask for one prefix and any number of branches.

# %%
def branch_mask(prefix: int, branches: list[int]) -> torch.Tensor:
    """(T, T) bool, True where the row's token may see the column's; lengths given."""
    ...


checks.branch_mask(branch_mask)

# %%
checks.solution("7.2")


# %% [markdown]
# ## Hunts
#
# A hunt is a recipe that runs, looks fine and is wrong. Below is what a user reports; find the cause, then change the recipe.
# The check runs it small and judges what it does, so any right repair passes. The second cell shows the recipe at work: look there first.
#
# **Hunt 7.3 · 15 min · ●●○** "I pack four sequences per row. It is twice as fast, and the loss is a little higher than before, from the very first step. More so if the sequences are short."

# %%
def pack(sequences):
    """Several sequences of token ids (T_i,) in one row, for `model(**pack(...))`. The
    loss must be that of the sequences one by one: the mean over all their tokens.
    """
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.cat(sequences)[None]  # (1, T)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    blocks = [torch.ones(length, length).tril() for length in lengths]
    mask = torch.block_diag(*blocks).bool()[None, None]  # (1, 1, T, T)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": mask,
        "labels": ids.clone(),  # the model shifts them by one
    }


checks.hunt_other_loss(pack)

# %%
sequences = checks.material("7.3")
for name, value in pack(sequences).items():
    print(f"{name:15s}{tuple(value.shape)}")

# %%
checks.solution("7.3")


# %% [markdown]
# **Hunt 7.4 · 15 min · ●●○** "The longer I measure, the faster my trainer gets: 2.4 s per step, then 0.24, then 0.03. And yet a thousand steps take more than three minutes."
# The card is make-believe and takes no real time, but it works as a GPU does.

# %%
def seconds_per_step(card, steps=10):
    """Seconds of a step in a long training. `card.step()` starts one, `card.clock()`
    is the time, `card.synchronize()` waits until the card has done all it was given.
    The first steps compile; after ten at most, a card is as fast as it will be.
    """
    start = card.clock()
    for _ in range(steps):
        card.step()
    return (card.clock() - start) / steps


checks.hunt_too_fast(seconds_per_step)

# %%
for steps in (10, 100, 1_000):
    card = checks.material("7.4", compiled=6)
    print(f"{steps:5,} steps: {seconds_per_step(card, steps):.3f} s per step")

# %%
checks.solution("7.4")

# %% [markdown]
# ## Five questions
#
# Put a letter for each `...`; the cell then says whether it is right, and why.
# Or unfold the answers, once you have your own.

# %%
answers = {1: ..., 2: ..., 3: ..., 4: ..., 5: ...}
checks.quiz("07", answers)

# %% [markdown]
# ## References
#
# * Hong, Lee and Thorne, *ORPO: Monolithic Preference Optimization without Reference Model*, 2024, arXiv:2403.07691: the loss whose pairs share a prompt.
# * Dettmers et al., *QLoRA: Efficient Finetuning of Quantized LLMs*, 2023, arXiv:2305.14314: NF4, and optimizers in paged memory.
# * Dao, *FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning*, 2023, arXiv:2307.08691: attention over sequences of different lengths.
# * PyTorch, *CUDA semantics: CUDA Graphs* and *torch.compile* in its documentation.
# * McCormick, *Colab GPUs: features and pricing*, 2024, updated 2026: the L4's memory and its 121 TFLOP/s.
# * Bekman, *Machine Learning Engineering*, `compute/accelerator`: the H200's 989 TFLOP/s.
# * Labonne, *Fine-tune Llama 3 with ORPO*, 2024: 1,000 pairs in *about 2 hours on an L4*.
