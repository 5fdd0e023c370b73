# %% [markdown]
# # 07 · From two hours to minutes: where does the time go?
#
# {{badge}}
#
# **You will learn**
# to count the tokens of a real batch that no loss term needs,
# to time a training step by its parts, with a spread,
# and to build one lever, the shared prefix, and prove that loss and gradients stay the same.
#
# **Time and hardware**: {{recorded}}.
# This form measures the lab's small model in every profile; for 8B it does arithmetic and says so.
#
# **You need** notebook 01 (the loss) and notebook 04 (TRL's trainer).

# %% tags=["colab"]
import sys

if "google.colab" in sys.modules:
    # %pip install -q "orpo-course @ git+{{repository}}"

# %%
from course_utils import profiles, quiet

profile, reason = profiles.choose()
profiles.stay_offline()  # this notebook needs nothing from the hub
quiet.hide_library_chatter()
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from course_utils import chat, checks, evaluation, lab, mixing, models, orpo, plots

print(f"profile {profile.name}: {reason}. Model here: the lab's, seed 0")

# %% [markdown]
# ## 1. What is in a batch?
#
# TRL's own trainer, with the settings of notebook 04, makes the batches.

# %%
from peft import LoraConfig
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

mix = mixing.build()
pairs = mix.train.select(range(800)).select_columns(["prompt", "chosen", "rejected"])


def make_trainer(micro_batch):
    torch.manual_seed(0)
    model, tokenizer = lab.load_base()
    control_ids = chat.use_llama3_chat(tokenizer)
    config = ORPOConfig(
        per_device_train_batch_size=micro_batch, beta=0.5, max_length=256, seed=0,
        output_dir="outputs/07", report_to="none", disable_tqdm=True, bf16=False,
        use_cpu=True, gradient_checkpointing=False, remove_unused_columns=False,
    )  # fmt: skip
    adapter = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.0, task_type="CAUSAL_LM",
        target_modules=models.LINEAR_LAYERS,
        trainable_token_indices={"embed_tokens": control_ids, "lm_head": control_ids},
    )  # fmt: skip
    return ORPOTrainer(
        model, config, train_dataset=pairs, processing_class=tokenizer,
        peft_config=adapter,
    )  # fmt: skip


trainers = {size: make_trainer(size) for size in (2, 8)}
batch = next(iter(trainers[8].get_train_dataloader()))
print({name: tuple(value.shape) for name, value in batch.items() if "ids" in name})


# %% [markdown]
# Chosen and rejected are padded to one length and go through the model as one batch of 16 rows.
# Each position of it falls into one of four classes.
#
# **Predict.** What share of the positions is padding, with 8 pairs in a batch? And with 2?

# %%
def unpadded(batch, side, pair):
    """Token ids and labels of one row of a batch."""
    real = batch[f"{side}_attention_mask"][pair] == 1
    return (
        batch[f"{side}_input_ids"][pair][real].tolist(),
        batch[f"{side}_labels"][pair][real].tolist(),
    )


def shared_length(first, second):
    """Length of the longest common beginning; at least one token is left to each."""
    longest = min(len(first), len(second)) - 1
    return next((i for i in range(longest) if first[i] != second[i]), longest)


def count(batch):
    """Positions by class, and the rows of logits that a loss term needs."""
    found = dict.fromkeys(
        (
            "padding",
            "first copy",
            "second copy of the prefix",
            "rest of the rejected answer",
            "logits needed",
        ),
        0,
    )
    pairs = len(batch["chosen_labels"])
    width = max(batch["chosen_labels"].shape[1], batch["rejected_labels"].shape[1])
    for pair in range(pairs):
        chosen, _ = unpadded(batch, "chosen", pair)
        rejected, labels = unpadded(batch, "rejected", pair)
        shared = shared_length(chosen, rejected)
        answer = sum(label != -100 for label in labels)
        found["padding"] += 2 * width - len(chosen) - len(rejected)
        found["first copy"] += len(chosen)
        found["second copy of the prefix"] += shared
        found["rest of the rejected answer"] += len(rejected) - shared
        found["logits needed"] += len(chosen) - 1 + answer
    return pd.Series(found)


# %%
totals = {}
for size, trainer in trainers.items():
    totals[size] = sum(count(batch) for batch in trainer.get_train_dataloader())
shares = pd.DataFrame(totals)
positions = shares.drop(index="logits needed").sum()
(shares / positions).rename(columns=lambda size: f"{size} pairs a batch").style.format(
    "{:.1%}"
)

# %%
fig, ax = plt.subplots(figsize=(7, 2.2), dpi=90)
left = np.zeros(2)
greys = {
    "first copy": "#0072b2",
    "rest of the rejected answer": "#d55e00",
    "second copy of the prefix": "#bbbbbb",
    "padding": "#eeeeee",
}
for name, colour in greys.items():
    part = (shares.loc[name] / positions).to_numpy()
    ax.barh(
        [f"{size} pairs" for size in totals], part, left=left, color=colour, label=name
    )
    left += part
ax.legend(
    frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.3)
)
waste = 1 - (
    shares.loc[["first copy", "rest of the rejected answer"], 8].sum() / positions[8]
)
plots.tidy(
    ax,
    f"{waste:.0%} of the positions in batches of 8 are padding or copies "
    f"(n = {len(pairs)} pairs)",
    "",
    "",
)
plt.tight_layout()
plt.show()


# %% [markdown]
# *Figure: TODO*
#
# TODO
#
# ## 2. Where do the seconds go?
#
# One step is: fetch a batch, forward, backward, optimizer. Each is timed on its own.
#
# **Predict.** How much longer than the forward pass is the backward pass, when only LoRA is trained?

# %%
def timed_step(trainer, batches, optimizer):
    """Seconds by part of one optimizer step over these micro-batches."""
    seconds = dict.fromkeys(("batch", "forward", "backward", "optimizer"), 0.0)
    for _ in range(8 // trainer.args.per_device_train_batch_size):
        marks = [time.perf_counter()]
        inputs = next(batches)
        marks.append(time.perf_counter())
        loss, _ = trainer.get_batch_loss_metrics(trainer.model, inputs)
        marks.append(time.perf_counter())
        loss.backward()
        marks.append(time.perf_counter())
        for part, duration in zip(seconds, np.diff(marks), strict=False):
            seconds[part] += duration
    start = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    return seconds | {"optimizer": time.perf_counter() - start}


STEPS = 25
steps, machinery = {size: [] for size in trainers}, {}
for size, trainer in trainers.items():
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    machinery[size] = (iter(trainer.get_train_dataloader()), torch.optim.AdamW(trained))
    timed_step(trainer, *machinery[size])  # the first one also warms up
for _ in range(STEPS):  # taken in turns, so that a busy moment hits both
    for size, trainer in trainers.items():
        steps[size].append(timed_step(trainer, *machinery[size]))

# %%
rows = {}
for size, measured in steps.items():
    table = pd.DataFrame(measured)
    table["whole step"] = table.sum(axis=1)
    low, middle, high = table.quantile([0.25, 0.5, 0.75]).to_numpy() * 1000
    rows[f"{size} x {8 // size}"] = [
        f"{m:.1f} ({a:.1f} to {b:.1f})"
        for a, m, b in zip(low, middle, high, strict=True)
    ]
print(f"milliseconds a step of 8 pairs: median (middle half) of {STEPS} steps, 1 run")
pd.DataFrame(rows, index=table.columns)

# %% [markdown]
# TODO

# %%
whole = {size: np.array([sum(s.values()) for s in m]) for size, m in steps.items()}
ratio = evaluation.estimate(whole[2] / whole[8])
print(f"2 x 4 takes {ratio} times as long as 8 x 1 (mean of {ratio.n} steps in turns)")

# %%
from torch.profiler import ProfilerActivity, profile as record

calls = {}
for size, trainer in trainers.items():
    with record(activities=[ProfilerActivity.CPU]) as recorded:
        timed_step(trainer, *machinery[size])
    calls[size] = sum(event.count for event in recorded.key_averages())
print(f"operations called in a step: 2 x 4 {calls[2]:,}, 8 x 1 {calls[8]:,}")


# %% [markdown]
# TODO
#
# ## 3. A lever: the prefix once, the logits where they are needed
#
# Chosen and rejected begin alike. A row can hold the common beginning once, then the rest of either:
#
# `[prefix | rest of chosen | rest of rejected]`
#
# Two things keep it equal: the rejected rest must not see the chosen rest, and its positions must continue from the prefix.

# %%
def branch_row(chosen, rejected):
    """ids (T,), positions (T,) and mask (T, T) of one row for both answers."""
    shared = shared_length(chosen, rejected)
    ids = torch.tensor(chosen + rejected[shared:])
    positions = torch.cat(
        [torch.arange(len(chosen)), torch.arange(shared, len(rejected))]
    )
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    mask[len(chosen) :, shared : len(chosen)] = False  # rejected must not see chosen
    return ids, positions, mask, shared


first_pair = [unpadded(batch, side, 0)[0] for side in ("chosen", "rejected")]
ids, positions, mask, shared = branch_row(*first_pair)
fig, ax = plt.subplots(figsize=(3.6, 3.4), dpi=90)
ax.imshow(mask, cmap="Greys", interpolation="nearest")
plots.tidy(ax, f"One pair, {len(ids)} tokens: who sees whom", "sees", "token")
plt.tight_layout()
plt.show()


# %% [markdown]
# *Figure: TODO*
#
# Which rows of logits does a loss term need?
# Of the chosen branch all, because TRL's NLL covers the prompt; of the rejected branch only the answer.
# The last token of the prefix predicts the first token of both branches.

# %%
def lever_loss(model, batch, pair, beta):
    """ORPO's loss of one pair from one row, with logits at scored positions only."""
    chosen, chosen_labels = unpadded(batch, "chosen", pair)
    rejected, rejected_labels = unpadded(batch, "rejected", pair)
    ids, positions, mask, shared = branch_row(chosen, rejected)
    llama = model.get_base_model()
    hidden = llama.model(
        input_ids=ids[None], position_ids=positions[None], use_cache=False,
        attention_mask=mask[None, None],
    ).last_hidden_state[0]  # fmt: skip
    at = np.arange(len(rejected))
    at = np.where(at < shared, at, at - shared + len(chosen))  # where its tokens lie
    first = sum(label == -100 for label in rejected_labels)
    scored = np.concatenate([np.arange(len(chosen) - 1), at[first - 1 : -1]])
    targets = torch.tensor(chosen[1:] + rejected[first:])
    logps = -torch.nn.functional.cross_entropy(
        llama.lm_head(hidden[scored]), targets, reduction="none"
    )
    of_chosen, of_rejected = logps.split([len(chosen) - 1, len(rejected) - first])
    answer = sum(label != -100 for label in chosen_labels)
    return orpo.orpo_loss(
        -of_chosen.mean(),
        of_chosen[-answer:].mean()[None],
        of_rejected.mean()[None],
        beta,
    )


# %% [markdown]
# The same pair through TRL's own code, and the same gradients?
#
# **Predict.** Equal to how many digits?

# %%
def one_pair(batch, pair):
    """The batch with this pair alone, its padding cut off."""
    width = {
        s: int(batch[f"{s}_attention_mask"][pair].sum()) for s in ("chosen", "rejected")
    }
    return {name: value[pair : pair + 1, : width[name.split("_")[0]]]
            for name, value in batch.items() if name.split("_")[0] in width
            and torch.is_tensor(value)}  # fmt: skip


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


trainer, model = trainers[8], trainers[8].model
gaps = []
for pair in range(8):
    plain, _ = trainer.get_batch_loss_metrics(model, one_pair(batch, pair))
    lever = lever_loss(model, batch, pair, beta=0.5)
    torch.testing.assert_close(lever, plain, rtol=1e-5, atol=1e-5)
    ours, theirs = gradients(model, lever), gradients(model, plain)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    gap = float((lever - plain).detach().abs())
    gaps.append((gap, float((ours - theirs).abs().max())))
loss_gap, gradient_gap = np.max(gaps, axis=0)
print(f"8 pairs, largest difference: loss {loss_gap:.1e}, gradient {gradient_gap:.1e}")


# %% [markdown]
# Exact to rounding. A lever that changes the result is no lever.
#
# **Predict.** How much faster is it on one pair?

# %%
def seconds(run):
    start = time.perf_counter()
    gradients(model, run())
    return time.perf_counter() - start


ratios = []
for pairs_batch, _ in zip(trainer.get_train_dataloader(), range(5), strict=False):
    for pair in range(8):
        single = one_pair(pairs_batch, pair)
        ratios.append(
            seconds(lambda: trainer.get_batch_loss_metrics(model, single)[0])
            / seconds(lambda: lever_loss(model, pairs_batch, pair, 0.5))
        )
speedup = evaluation.estimate(ratios)
print(f"TRL's step takes {speedup} times as long (n = {speedup.n} pairs, each once)")

# %% [markdown]
# TODO
#
# ## 4. What it means for 8B: arithmetic, not a measurement
#
# **Everything in this section is a projection.**
# A frozen weight costs 2 FLOP a token forward, 2 to pass the gradient on, and 2 more where checkpointing computes the layer again.

# %%
LAYERS, HEAD = 6_979_321_856, 525_336_576  # Llama 3 8B: linear weights, output head
L4_PEAK = 121e12  # bf16 FLOP/s, dense, a published peak that no program reaches
pairs_8b, longest = 1000, 1024


def minutes(tokens, logit_rows):
    return (6 * LAYERS * tokens + 4 * HEAD * logit_rows) * pairs_8b / L4_PEAK / 60


most = minutes(2 * longest, 2 * longest)
print(
    f"if every row had {longest} tokens, {pairs_8b} pairs: "
    f"{most:.0f} min at an L4's peak"
)

# %% [markdown]
# TODO

# %%
padded = positions[8] / len(pairs)
kept = shares.loc[["first copy", "rest of the rejected answer"], 8].sum() / len(pairs)
needed = shares.loc["logits needed", 8] / len(pairs)
print("with the lab's shares, for a pair of any length:")
for name, tokens, logits in (
    ("as TRL does it", padded, padded),
    ("logits where needed", padded, needed),
    ("and the prefix once, no padding", kept, needed),
):
    share = minutes(tokens, logits) / minutes(padded, padded)
    print(f"  {name:32s} {share:.0%} of the arithmetic")

# %% [markdown]
# TODO
#
# ## Recap

# %%
print("TODO recap")

# %% [markdown]
# ## Exercises
#
# **7.1 · 10 min · ●○○** `padding_share(lengths, batch_size)`: the share of padding if rows are batched as they come.

# %%
padding_share = ...
checks.padding_share(padding_share)

# %%
checks.solution("7.1")

# %% [markdown]
# **7.2 · 20 min · ●●●** Three answers to one prompt? `branch_mask(prefix, branches)`: a mask for one prefix and any number of branches, given their lengths.

# %%
branch_mask = ...
checks.branch_mask(branch_mask)

# %%
checks.solution("7.2")

# %% [markdown]
# ## References
