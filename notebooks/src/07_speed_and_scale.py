# %% [markdown]
# # 07 · From two hours to minutes: where does the time go?
#
# {{badge}}
#
# **You will learn**
# to count what a training step computes and does not need,
# to time its parts fairly,
# and to build one lever that is exact: pairs that share their prompt, and logits only where a loss term looks.
#
# **Time and hardware**: {{recorded}}.
# Everything here runs on the lab's small model and on TRL's real batches, in every profile.
#
# **You need** notebooks 01 and 04.
# This first form teaches the idea; the full trainer, several GPUs and measurements on the real shape are not in it yet.

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
import pandas as pd
import torch
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from course_utils import chat, checks, evaluation, lab, mixing, orpo, plots

print(f"profile {profile.name}: {reason}. Model here: the lab's, seed 0")

# %% [markdown]
# ## 1. What a step computes and does not need
#
# TRL puts the chosen and the rejected answers of a micro-batch below one another and pads all rows to the longest.
#
# **Predict.** How much of that is padding, with 8 pairs and with 2? And how often is the prompt computed?

# %%
model, tokenizer = lab.load_base()
chat.use_llama3_chat(tokenizer)
pairs = mixing.build().train.select(range(480)).remove_columns("source")


def trainer_of(batch_size):
    """TRL's trainer; `article` and this one differ only in the micro-batch."""
    arguments = lab.trainer_arguments(3e-3, 10, 0, "outputs/07")
    arguments["per_device_train_batch_size"] = batch_size
    config = ORPOConfig(beta=0.5, remove_unused_columns=False, **arguments)
    return ORPOTrainer(model, config, train_dataset=pairs, processing_class=tokenizer)


trainers = {size: trainer_of(size) for size in (8, 2)}
batches = {size: list(t.get_train_dataloader()) for size, t in trainers.items()}


# %%
def rows_of(batch, side):
    """The real tokens of each row, and how many of them are prompt."""
    for ids, labels, mask in zip(
        batch[f"{side}_input_ids"], batch[f"{side}_labels"],
        batch[f"{side}_attention_mask"], strict=True,
    ):  # fmt: skip
        yield ids[mask == 1], int((labels[mask == 1] == -100).sum())


def waste(batch, trainer):
    joined = trainer.concatenated_inputs(batch, padding_value=trainer.padding_value)
    mask = joined["concatenated_attention_mask"]
    chosen, rejected = (list(rows_of(batch, s)) for s in ("chosen", "rejected"))
    prompt = sum(length for _, length in rejected)  # its second coming
    scored = sum(len(ids) - 1 for ids, _ in chosen)  # the NLL reads the whole row
    scored += sum(len(ids) - length for ids, length in rejected)
    return {
        "padding": 1 - float(mask.float().mean()),
        "prompt again": prompt / mask.numel(),
        "logits nobody reads": 1 - scored / mask.numel(),
    }


shares = {
    size: pd.DataFrame([waste(batch, trainers[size]) for batch in batches[size]])
    for size in batches
}
pd.DataFrame(
    {
        f"{size} pairs ({len(table)} batches)": {
            name: str(evaluation.estimate(table[name])) for name in table
        }
        for size, table in shares.items()
    }
)


# %% [markdown]
# Shares of all positions that the model computes, means over micro-batches with 95 % intervals.
# Padding grows with the micro-batch, because one long row decides the width of all.
# The logits are what costs memory at 8B: 128,256 numbers for each position, read or not.
#
# ## 2. Where the seconds go
#
# The same 8 pairs as one micro-batch of 8 or as four of 2, the article's way, taking turns so that both meet the same machine.
#
# **Predict.** Four small steps compute less padding. Are they faster?

# %%
def timed(micro_batches, trainer, optimizer):
    seconds = {"forward": 0.0, "backward": 0.0}
    for batch in micro_batches:
        start = time.perf_counter()
        loss = trainer.get_batch_loss_metrics(model, batch, "train")[0]
        middle = time.perf_counter()
        (loss / len(micro_batches)).backward()
        seconds["forward"] += middle - start
        seconds["backward"] += time.perf_counter() - middle
    start = time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    return seconds | {"optimizer": time.perf_counter() - start}


optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)  # times, changes nothing
model.train()
measured = {8: [], 2: []}
for turn in range(13):
    for size, trainer in trainers.items():
        step = batches[size][turn * 8 // size : (turn + 1) * 8 // size]
        measured[size].append(timed(step, trainer, optimizer))
times = {size: pd.DataFrame(rows[1:]) for size, rows in measured.items()}  # 1 warm-up

# %%
fig, ax = plt.subplots(figsize=(6, 2.4), dpi=90)
left = {size: 0.0 for size in times}
shades = {"forward": "#333333", "backward": "#7f7f7f", "optimizer": "#cccccc"}
names = {8: "1 × 8 pairs", 2: "4 × 2 pairs"}
for part, shade in shades.items():
    for size, table in times.items():
        width = table[part].median() * 1000
        ax.barh(names[size], width, left=left[size], color=shade,
                label=part if size == 8 else None)
        left[size] += width
ax.legend(frameon=False, fontsize=8, loc="lower right")
plots.tidy(ax, "A step of 8 pairs: the backward pass takes most (median of 12 steps)",
           "milliseconds", "")
plt.tight_layout()
plt.show()
totals = {size: table.sum(axis=1) for size, table in times.items()}
low, ratio, high = (totals[2] / totals[8]).quantile([0.25, 0.5, 0.75])
ratio = f"{ratio:.2f} (middle half {low:.2f} to {high:.2f})"
print(f"4 × 2 takes {ratio} times as long as 1 × 8: median of 12 steps")


# %% [markdown]
# *Figure: two stacked bars of milliseconds for one optimizer step, forward, backward and optimizer, for one micro-batch of 8 pairs and four of 2.*
#
# What the ratio is depends on the machine: a CPU saves padding with small batches and pays little for launching work.
# A fast GPU is the opposite case, because small micro-batches leave it waiting for the next launch.
# So measure on the card that you use.
#
# ## 3. One lever, built small
#
# A pair shares its prompt, so one row can hold both: `[prompt | chosen | rejected]`.
# The rejected answer must not see the chosen one, and its positions start again where the prompt ends.

# %%
def shared_row(chosen, rejected, prompt):
    """One row for a pair: ids (T,), positions (T,), and what sees what (T, T)."""
    ids = torch.cat([chosen, rejected[prompt:]])
    again = torch.arange(prompt, len(rejected))
    positions = torch.cat([torch.arange(len(chosen)), again])
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    mask[len(chosen) :, prompt : len(chosen)] = False
    return ids, positions, mask


def logps_at(hidden, rows, targets):
    """Log-probs of `targets`, with logits for these rows only."""
    logits = model.lm_head(hidden[rows]).float()
    return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def pair_logps(chosen, rejected, prompt):
    """Log-probs of the chosen row's tokens and of the rejected answer's."""
    ids, positions, mask = shared_row(chosen, rejected, prompt)
    hidden = model.model(
        input_ids=ids[None], position_ids=positions[None],
        attention_mask=mask[None, None], use_cache=False,
    ).last_hidden_state[0]  # fmt: skip
    end = len(chosen)
    first = logps_at(hidden, torch.arange(end - 1), chosen[1:])
    # The prompt's last token predicts the rejected answer's first.
    rows = torch.cat([torch.tensor([prompt - 1]), torch.arange(end, len(ids) - 1)])
    return first, logps_at(hidden, rows, rejected[prompt:])


# %%
def shared_loss(batch, beta=0.5):
    """The ORPO loss of a batch, a shared row for each pair; and the positions used."""
    nll, chosen_logps, rejected_logps, used = [], [], [], 0
    sides = zip(rows_of(batch, "chosen"), rows_of(batch, "rejected"), strict=True)
    for (chosen, prompt), (rejected, _) in sides:
        first, second = pair_logps(chosen, rejected, prompt)
        nll.append(-first)
        chosen_logps.append(first[prompt - 1 :].mean())
        rejected_logps.append(second.mean())
        used += len(chosen) + len(rejected) - prompt
    nll = torch.cat(nll).mean()
    chosen_logps, rejected_logps = map(torch.stack, (chosen_logps, rejected_logps))
    return orpo.orpo_loss(nll, chosen_logps, rejected_logps, beta), used


def gradients(loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# %% [markdown]
# **Predict.** Is this the same loss, or nearly the same?

# %%
positions, worst = [], 0.0
for batch in batches[8][:5]:
    plain = trainers[8].get_batch_loss_metrics(model, batch, "train")[0]
    shared, used = shared_loss(batch)
    torch.testing.assert_close(shared, plain, atol=1e-5, rtol=1e-5)
    a, b = gradients(plain), gradients(shared)
    worst = max(worst, float((a - b).norm() / a.norm()))
    wide = max(batch[f"{side}_input_ids"].shape[1] for side in ("chosen", "rejected"))
    positions.append(used / (2 * 8 * wide))
assert worst < 1e-4
kept = evaluation.estimate(positions)
print(f"5 batches: losses equal to 1e-5, gradients to {worst:.0e} of their length")
print(f"positions computed: {kept} of TRL's")

# %% [markdown]
# The same loss and the same gradient, from a part of the positions.
# This sketch runs pair by pair, which wastes what it saves; a real trainer packs many shared rows into one, without padding.
#
# ## 4. What it would mean at 8B
#
# A projection, not a measurement: arithmetic from the shape alone.

# %%
weights = 8_030_261_248 - 128_256 * 4096  # the input embedding is a look-up
tokens = 1000 * 2 * 400  # 1,000 pairs, two rows of 400 tokens: an assumption
flop = 3 * 2 * weights * tokens  # forward, and backward twice
for name, rate in {"L4": 121e12, "A100": 312e12, "H100 or H200": 989e12}.items():
    print(f"{name:13s} {flop / rate / 60:5.1f} min at its data sheet's full rate")
print("logits of one position in float32:", 128_256 * 4 // 1024, "KiB")

# %% [markdown]
# The rates are the cards' dense bf16 figures, which no real training reaches.
# Frozen weights need no weight gradient, so LoRA needs about a third less than this.
# The distance between such a floor and a measured run is what a fast trainer can win.
#
# ## Recap

# %%
pd.DataFrame(
    [
        ("padding, 8 pairs", evaluation.estimate(shares[8]["padding"])),
        ("padding, 2 pairs", evaluation.estimate(shares[2]["padding"])),
        ("logits nobody reads, 8 pairs", evaluation.estimate(shares[8].iloc[:, 2])),
        ("time of 4 × 2 over 1 × 8", ratio),
        ("positions with shared prompts over TRL's", kept),
    ],
    columns=["metric", "value"],
).assign(n=lambda table: [getattr(value, "n", 12) for value in table["value"]])

# %%
print(
    f"Finding: a shared prompt without padding needs {kept.value:.0%} of TRL's "
    f"positions for the same loss; {shares[8].iloc[:, 2].mean():.0%} of TRL's logits "
    "nobody reads"
)

# %% [markdown]
# Not in this form: a packed trainer, compiled layers, memory, several GPUs.
#
# ## Exercises
#
# **7.1 · 10 min · ●●○** Write `padding_share(lengths, batch_size)`: the share of padding when rows are batched as they come.

# %%
padding_share = ...
checks.padding_share(padding_share)

# %%
checks.solution("7.1")

# %% [markdown]
# **7.2 · 15 min · ●●●** Write `branch_mask(prefix, branches)`: the attention mask of one prompt with any number of answers.

# %%
branch_mask = ...
checks.branch_mask(branch_mask)

# %%
checks.solution("7.2")

# %% [markdown]
# ## References
#
# - Hu et al. (2021), *LoRA: Low-Rank Adaptation of Large Language Models*, arXiv:2106.09685.
# - Dettmers et al. (2023), *QLoRA: Efficient Finetuning of Quantized LLMs*, arXiv:2305.14314.
