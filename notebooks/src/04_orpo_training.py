# %% [markdown]
# # 04 · Does it learn, and how would I know?
#
# {{badge}}
#
# **You will learn**
# to see in a run's own curves that it learns nothing, although its loss falls,
# to climb from the article's recipe to one that works, one fix per rung, and to rank the fixes,
# and to train with curves, checkpoints and a resume that you can trust.
#
# **Time and hardware**: {{recorded}}.
# Sections 1 to 4 use the lab's small model in every profile; section 5 trains the model of your profile.
#
# **You need** notebook 01 (the loss) and, for a GPU profile, notebook 03 (loading in 4 bit).
# Abbreviations are explained in the [glossary](00_start_here.ipynb#glossary).

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
import numpy as np
import pandas as pd
import torch
import transformers

from course_utils import chat, evaluation, lab, models, plots, recorded
from course_utils.data import mixing
from course_utils.exercises import checks

print(f"profile {profile.name}: {reason}")

# %% [markdown]
# ## 1. The recipe as published
#
# The article trained Llama 3 8B on 1,000 pairs for one epoch:
# LoRA of rank 16, learning rate 8e-6, β 0.1, 8 pairs per step, dropout 0.05, ten pairs for evaluation.
# It reports margins near 0 and accuracies near 0.5: a coin would do as well.
# Its code no longer imports, so here is what its arguments are called today.

# %%
pd.DataFrame(
    [
        ("from trl import ORPOTrainer", "from course_utils.training import …"),
        ("setup_chat_format(…)", "a chat template; no resizing (section 4)"),
        ("evaluation_strategy=", "eval_strategy="),
        ("tokenizer=", "processing_class="),
        ("max_prompt_length=", "gone: long prompts must be filtered (section 4)"),
    ],
    columns=["April 2024", "today"],
).style.hide()

# %% [markdown]
# The lab runs it with the same settings on its own data: 1,000 pairs, 124 steps of 8.
# Llama 3's chat tokens are new to this base model, as they are to Llama 3 8B's.

# %%
from datasets import Dataset
from peft import LoraConfig

from course_utils.training import ORPOConfig, ORPOTrainer

lab_mix = mixing.build()
columns = ["prompt", "chosen", "rejected"]
lab_pairs = lab_mix.train.select(range(1000)).select_columns(columns)
held_out = list(lab_mix.evaluation)[:210]  # 30 of each source
prompts = [pair["prompt"] for pair in held_out[:105]]


def fresh_lab_model():
    """The lab's base and its tokenizer, with Llama 3's chat format and token ids."""
    model, tokenizer = lab.load_base()
    return model, tokenizer, chat.use_llama3_chat(tokenizer)


def settings(steps, **changes):
    """The article's settings on the lab, changed where a cell says so."""
    article = dict(
        learning_rate=8e-6,
        beta=0.1,
        lr_scheduler_type="linear",
        warmup_steps=10,
        per_device_train_batch_size=8,
        max_steps=steps,
        max_length=256,
        output_dir="outputs/04/lab",
        save_strategy="no",
        logging_steps=20,
        report_to="none",
        disable_tqdm=True,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        seed=0,
    )
    return ORPOConfig(**article | changes)


# %%
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
ARTICLE_LORA = LoraConfig(
    r=16,
    lora_alpha=32,
    lora_dropout=0.05,
    task_type="CAUSAL_LM",
    target_modules=ATTENTION + MLP,  # all seven matrices of a Llama layer
)
base, tokenizer, control_ids = fresh_lab_model()
article_strings = lab.count_prompt_twice(lab_pairs, tokenizer)
article = ORPOTrainer(
    base,
    settings(60, refuse_prompt_twice=False),  # our trainer would refuse these rows
    train_dataset=article_strings,
    processing_class=tokenizer,
    peft_config=ARTICLE_LORA,
)
curve = evaluation.PreferenceCurve(tokenizer, held_out, every=30, max_length=256)
article.add_callback(curve)
article.remove_callback(transformers.PrinterCallback)
article.train()
pd.DataFrame(curve.history).set_index("step").round(3)

# %% [markdown]
# **Predict.** That was 60 of the article's 124 steps. Would the other 64 have helped?

# %%
print(recorded.caption(recorded.load("ladder")))
lab.summary(["base, Llama 3 chat", "the article"], record="ladder")


# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# They would not: after all 124 steps, five seeds stand where the base stands.
#
# </details>
#
# ### Does a falling loss mean that it learns?
#
# Perhaps the learning rate is too low? Here is the same run with a learning rate ten times as high, as its own log shows it.
#
# **Predict.** The loss falls from 3.8 to 2.3. Has the model learned to prefer chosen answers?

# %%
def over_steps(name, column):
    """Mean over seeds of what the trainer logged: (steps, values)."""
    logs = [run["log"] for run in lab.recorded(name, "ladder")]
    values = np.array([[row[column] for row in log] for log in logs])
    return [row["step"] for row in logs[0]], values.mean(0)


compared = {
    "the article, 8e-6": ("the article", ":"),
    "8e-5": ("+ learning rate 8e-5", "--"),
    "3e-3": ("+ learning rate 3e-3", "-"),
}
panels = {
    "loss": "loss",
    "rewards/accuracies": "accuracy in the batch",
    "rewards/margins": "margin",
}

# %%
fig, axes = plt.subplots(1, 3, figsize=(10.5, 2.9), dpi=80)
for ax, (column, title) in zip(axes, panels.items(), strict=True):
    for label, (name, style) in compared.items():
        ax.plot(*over_steps(name, column), style, color="black", label=label)
    plots.tidy(ax, title, "optimizer step", column)
axes[1].axhline(0.5, color=plots.COLOURS["base"], lw=1)
axes[0].legend(frameon=False, fontsize=8, title="learning rate")
plt.tight_layout()
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: the trainers' own logs over 124 steps, means of five seeds, for three learning rates. At 8e-6 nothing moves. At 8e-5 the loss falls steadily while accuracy in the batch stays at a coin's one half and the margin at 0. At 3e-3 all three move.*
#
# At 8e-5 the model learns to *write* chats: the NLL falls for every answer, chosen or rejected.
# It does not learn to *prefer*. The loss is nearly all NLL, so it cannot show the difference.
# **Watch preference accuracy and the log odds ratio on held-out pairs; the loss alone tells you nothing about preferences.**
#
# </details>
#
# ## 2. Would the article have seen it?
#
# It kept 1 % of 1,000 pairs for evaluation: ten.
#
# **Predict.** Five of ten pairs are ranked rightly. Between which accuracies can the truth lie?

# %%
for n in (10, 210, 800):
    half = np.arange(n) < n // 2
    print(f"{n // 2} of {n}: {evaluation.estimate(half)}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# With ten pairs, nearly anything between a quarter and three quarters is possible.
# Exercise 4.1 computes how many pairs you need.
#
# </details>
#
# ## 3. The ladder
#
# Seven runs of five seeds each. Every rung keeps the changes of the rungs below it, and adds one.
#
# **Predict.** Which rung brings most: counting the prompt once, training the chat tokens, the learning rate, or β?

# %%
rungs = list(lab.RUNGS)
runs = {name: lab.recorded(name, "ladder") for name in [*rungs, *lab.TAKEN_BACK]}
print(recorded.caption(recorded.load("ladder")))
shown = ["preference accuracy", "good, sampled", "good, greedy"]
print(f"n = {runs[rungs[0]][0]['n']} held-out prompts, {len(runs[rungs[0]])} seeds")
lab.summary(rungs, record="ladder")[shown]


# %%
def accuracy_of(run):
    return run["preferred"]


def good_of(run):
    return run["sampled"]["good_bits"]


fig, axes = plt.subplots(1, 2, figsize=(10, 3), dpi=80, sharey=True)
for ax, bits, title in (
    (axes[0], accuracy_of, "preference accuracy"),
    (axes[1], good_of, "share good, sampled"),
):
    values = [lab.over_seeds(runs[name], bits)[0] for name in rungs]
    plots.estimates(ax, rungs, values, title, "share of prompts (95 % interval)")
    ax.set_xlim(0, 1)
plt.tight_layout()
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: recorded preference accuracy and share of good sampled answers for the seven rungs. The first four rungs stay at the base's level; the learning rate of 3e-3 lifts both, β 0.5 and twice the steps add a little each.*
#
# The learning rate is the rung on which the run begins to move.
# That does not make the rungs below it useless: they had nothing to work on yet.
#
# </details>
#
# So does the order of the rungs matter? Take each fix back alone, from the rung `+ β 0.5`:

# %%
best = runs["+ β 0.5"]
taken_back = pd.DataFrame(
    {
        "change": name,
        "preference accuracy": lab.effect(best, runs[name], accuracy_of),
        "good, sampled": lab.effect(best, runs[name], good_of),
    }
    for name in lab.TAKEN_BACK
)
order = taken_back["good, sampled"].map(lambda effect: effect.value)
taken_back.loc[order.sort_values().index].set_index("change")


# %% [markdown]
# The table is ranked by effect on the answers; intervals are over prompts, each compared with itself, means of five seeds.
#
# 1. **Learning rate** and **chat tokens** are each indispensable: without either of them no answer is good.
#    Both fall to 0, so this measure cannot say which of the two matters more.
#    Preference accuracy hardly notices the missing chat tokens.
# 2. **β** from 0.1 to 0.5 is a small gain over prompts; notebook 05 counts the seeds as well, and leaves it open. It is a choice of its own, apart from the learning rate.
# 3. **Counting the prompt twice** changes no share here that this n could see.
#    It is a fault all the same. That the NLL reads the prompt is TRL's intention (notebook 01); here the *odds ratio* scores the user's words as well, and it distorts every figure that the trainer logs (sections 4.1 and 5).
# 4. **Real dropout** makes no difference that counts, so 0 is the honest setting.
#
# What does not follow: that the same holds at 8B. The lab's model is small and wants far higher rates.
# Section 7 says what the course recommends there, and on which evidence.
#
# ## 4. One cause at a time
#
# ### 4.1 What is scored as the answer?
#
# The recipe turns `chosen` and `rejected` into strings of the whole conversation and leaves the string column `prompt` beside them.
# TRL takes strings as they are.
#
# **Predict.** What does the trainer score as the "answer" of the first pair?

# %%
def labels_as_text(trainer, row=0):
    labels = trainer.train_dataset[row]["chosen_labels"]
    scored = [label for label in labels if label != -100]
    return len(scored), tokenizer.decode(scored)


count, text = labels_as_text(article)
print(f"{count} scored tokens:\n{text}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# The user's turn is scored as if the assistant had written it.
# With raw messages the answer alone is scored, and a check proves it for every row.
#
# </details>

# %%
raw_messages = ORPOTrainer(
    fresh_lab_model()[0],
    settings(60),
    train_dataset=lab_pairs,
    processing_class=tokenizer,
)
count, text = labels_as_text(raw_messages)
print(f"{count} scored tokens:\n{text}\n")
rows = chat.assert_labels_hold_no_user_text(raw_messages, tokenizer, lab_pairs)
print(f"{rows} rows hold no user text")
try:
    chat.assert_labels_hold_no_user_text(article, tokenizer, lab_pairs)
except AssertionError as error:
    print("the article's rows:", str(error).splitlines()[0])
else:
    raise AssertionError("the check should have found the fault")

# %% [markdown]
# The ladder found no harm to the lab's answers.
# The harm is to the run's own log, which understates what was learned: section 5 shows it.
#
# ### 4.2 The learning rate is a full fine-tuning rate
#
# 8e-6 is what the paper used to train *all* weights, for ten epochs.
# LoRA starts from a zero update, and 124 steps of 8e-6 leave it there.

# %%
rates = ["8e-06", "8e-05", "0.0003", "0.001", "0.003", "0.01"]
fig, ax = plt.subplots(figsize=(6, 3), dpi=90)
for bits, label, style in (
    (lambda run: run["preferred"], "preference accuracy", "o-"),
    (lambda run: run["sampled"]["good_bits"], "good, sampled", "s--"),
):
    by_rate = [lab.recorded(f"LoRA LR {rate}, β 0.1") for rate in rates]
    results = [lab.over_seeds(seeds, bits) for seeds in by_rate]
    means = [value.value for value, _ in results]
    low = [value.value - value.low for value, _ in results]
    high = [value.high - value.value for value, _ in results]
    rate = [float(r) for r in rates]
    ax.errorbar(rate, means, [low, high], fmt=style, color="k", label=label, capsize=2)
ax.set_xscale("log")
ax.legend(frameon=False, fontsize=8)
plots.tidy(
    ax,
    "LoRA learns nothing below 1e-3 (β 0.1, 124 steps, 3 seeds, n = 420)",
    "learning rate",
    "share of held-out prompts",
)
plt.show()
print(recorded.caption(recorded.load("lab_findings")))

# %% [markdown]
# *Figure: recorded preference accuracy and share of good sampled answers over learning rates from 8e-6 to 1e-2, with 95 % intervals over prompts; both stay at the base's level up to 3e-4 and rise until 3e-3; at 1e-2 the accuracy holds and the answers get worse.*
#
# The sweep's shape is the lesson, not its numbers: a 3.5-million-parameter model wants far higher rates than 8B.
# For LoRA the rule of thumb is ten times the full fine-tuning rate, which makes 8e-5 the place to start a sweep at 8B (section 7).
#
# ### 4.3 The chat tokens are never learned
#
# LoRA changes the projections, not the embedding rows of tokens that pretraining never saw.

# %%
fresh, tokenizer, control_ids = fresh_lab_model()
untrained, rows = chat.untrained_token_ids(fresh, control_ids)
print("never trained:", tokenizer.convert_ids_to_tokens(untrained))
lab.summary(["+ β 0.5", "without: chat tokens trained"], record="ladder")[shown]


# %% [markdown]
# Same run, one difference: without the token rows the model almost never ends its turn, so no answer is good.
# A direct look: how likely is the end token right after a right answer?

# %%
def end_probability(model, pairs):
    """Mean probability of the end token after the chosen answers of `pairs`."""
    values = []
    for pair in pairs:
        ids = chat.tokenize_pair(tokenizer, pair, 1024).chosen_input_ids
        with torch.no_grad(), evaluation.autocast(model):
            logits = model(torch.tensor([ids[:-1]], device=model.device)).logits
        values.append(float(logits[0, -1].float().softmax(-1)[ids[-1]]))
    value = evaluation.estimate(values)
    return f"{value.value:.2g} [{value.low:.2g}, {value.high:.2g}] (n = {value.n})"


print(f"base: P(end token) after an answer {end_probability(fresh, held_out[:35])}")

# %% [markdown]
# Section 5 trains the rows and prints the same number again.
#
# ### 4.4 Which dropout is at work?
#
# **Predict.** The recipe sets `lora_dropout=0.05`. TRL's `disable_dropout` is on by default. Which wins?

# %%
dropouts = [m.p for m in article.model.modules() if isinstance(m, torch.nn.Dropout)]
print(
    f"config says {article.model.peft_config['default'].lora_dropout}, "
    f"the {len(dropouts)} dropout layers have p = {set(dropouts)}"
)

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# All dropout is off while the configuration still claims 0.05.
# The ladder's last run switched real dropout on, with `disable_dropout=False`, and gained nothing that counts.
# A setting that does nothing should say 0.
#
# </details>
#
# ### 4.5 One long prompt poisons everything
#
# A prompt of `max_length` tokens leaves no token of the answer, so its mean is 0/0.

# %%
long = {"role": "user", "content": "What is the river of Marsenmo? " * 40}
poisoned = lab_pairs.select(range(12)).to_list()
poisoned[3] = {**poisoned[3], "prompt": [long]}


def train_poisoned(trainer_class, config_class):
    arguments = lab.trainer_arguments(3e-3, 2, 0, "outputs/04/lab")
    trainer = trainer_class(
        fresh_lab_model()[0],
        config_class(**arguments | {"logging_steps": 1}),
        train_dataset=Dataset.from_list(poisoned),
        processing_class=tokenizer,
        peft_config=ARTICLE_LORA,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    logged = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    adapter = [p for n, p in trainer.model.named_parameters() if "lora_" in n]
    broken = sum(bool(p.isnan().any()) for p in adapter)
    print(f"logged losses {logged}; tensors with NaN: {broken} of {len(adapter)}")


try:
    train_poisoned(ORPOTrainer, ORPOConfig)
except ValueError as error:
    print("ours:", error)
try:
    from trl.experimental import orpo as trl_orpo
except ImportError:
    print("TRL's ORPO is not in this version: its result is recorded, not run")
else:
    train_poisoned(trl_orpo.ORPOTrainer, trl_orpo.ORPOConfig)

# %% [markdown]
# The adapter is gone, and the log shows an innocent 0.0, because the trainer filters NaN from its logs.
# TRL's only sign is one warning, which a long log buries.
# Two fixes: refuse such rows beforehand, and set `logging_nan_inf_filter=False`.

# %%
kept, dropped = chat.check_pairs(poisoned, tokenizer, 256, on_problem="drop")
print(f"{len(kept)} rows kept; dropped: {dict(dropped)}")

# %% [markdown]
# ### 4.6 Two ends, two beginnings
#
# ChatML writes a line break after each end token, and TRL then adds a second end token behind it.
# And a tokenizer adds its own BOS to text in which the template has already written one.

# %%
chatml = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_, other = lab.load_base()
other.chat_template = chatml
ends = chat.tokenize_pair(other, lab_pairs[0], 256).chosen_input_ids[-4:]
print("the answer's last tokens:", other.convert_ids_to_tokens(ends))
text = tokenizer.apply_chat_template(held_out[0]["prompt"], tokenize=False)
print(
    "BOS when tokenised again:",
    tokenizer(text)["input_ids"].count(0),
    "| with add_special_tokens=False:",
    tokenizer(text, add_special_tokens=False)["input_ids"].count(0),
)

# %% [markdown]
# ## 5. The settings that work
#
# Now the model of your profile: raw messages, chat tokens trained, a LoRA learning rate, no phantom dropout, pairs checked, enough of them held out.
# Where the profile says NF4, the base is loaded in 4 bit (notebook 03 explains each argument).

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

source, note = models.resolve_model(profile)  # a folder, or a hub id
dtype = models.compute_dtype(profile)
four_bit = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=dtype,
)
model = AutoModelForCausalLM.from_pretrained(
    source,
    dtype=dtype,
    quantization_config=four_bit if profile.nf4 else None,
    device_map={"": 0} if torch.cuda.is_available() else None,
)
tokenizer = AutoTokenizer.from_pretrained(source)

# %%
control_ids = chat.use_llama3_chat(tokenizer)  # eos: <|eot_id|>, pad: a reserved one
mix = mixing.build(profile.data, evaluation_pairs=profile.eval_pairs)
columns = ["prompt", "chosen", "rejected"]
train, dropped = chat.check_pairs(
    mix.train.select_columns(columns), tokenizer, profile.max_length, on_problem="drop"
)
test, _ = chat.check_pairs(mix.evaluation, tokenizer, profile.max_length, "drop")
train = Dataset.from_list(train[: profile.train_pairs])
STEPS = profile.steps(124)
shown = test[: profile.at_most(105)]  # on the curves
print(f"{len(train)} pairs to train, {len(test)} held out, dropped: {dict(dropped)}")

# %%
adapter = LoraConfig(
    r=profile.lora_rank,
    lora_alpha=profile.lora_alpha,
    lora_dropout=0.0,
    task_type="CAUSAL_LM",
    target_modules=ATTENTION + MLP,
    trainable_token_indices={"embed_tokens": control_ids, "lm_head": control_ids},
)

# %% [markdown]
# Curves go to Weights & Biases. Without a key the run stays on this disk.

# %%
import os

import wandb

if os.environ.get("WANDB_API_KEY"):
    wandb.login()
else:
    os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_PROJECT"] = "orpo-course"
os.environ.update(WANDB_SILENT="true", WANDB_DIR="outputs/04")
os.makedirs("outputs/04", exist_ok=True)

# %%
bf16 = profile.dtype == "bfloat16"
config = ORPOConfig(
    output_dir="outputs/04/run",
    learning_rate=profile.learning_rate,
    beta=profile.beta,
    lr_scheduler_type="linear",
    warmup_steps=min(10, STEPS // 2),
    per_device_train_batch_size=profile.per_device_batch_size,
    gradient_accumulation_steps=profile.gradient_accumulation_steps,
    max_steps=STEPS,
    max_length=profile.max_length,
    optim=profile.optim,
    bf16=bf16,
    fp16=profile.dtype == "float16",
    use_cpu=not torch.cuda.is_available(),
    gradient_checkpointing=profile.gradient_checkpointing,
    logging_steps=min(5, STEPS),
    logging_nan_inf_filter=False,  # show NaN instead of hiding it
    save_strategy="no",
    remove_unused_columns=False,
    report_to="wandb",
    run_name="fixed",
    disable_tqdm=True,
    seed=0,
)

# %% [markdown]
# **Predict.** Where will preference accuracy stand after 124 steps of 8 pairs: 0.5, 0.7, 0.9?

# %%
curve = evaluation.PreferenceCurve(
    tokenizer,
    shown,
    every=31,
    max_length=profile.max_length,
    on_point=plots.LiveCurves(f"held out (1 seed, n = {len(shown)})"),
)
fixed = ORPOTrainer(
    model,
    config,
    train_dataset=train,
    processing_class=tokenizer,
    peft_config=adapter,
    callbacks=[curve],
)
chat.assert_labels_hold_no_user_text(fixed, tokenizer, train)
fixed.remove_callback(transformers.PrinterCallback)
fixed.train()
wandb.finish()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: held-out log-probs and preference accuracy, redrawn while the run goes; chosen rises from the base's level, rejected stays behind, accuracy leaves 0.5 early.*
#
# On the lab the fixed recipe leaves the coin's 0.5 early and ends near 0.9, on pairs that it was not trained on.
#
# </details>

# %%
from pathlib import Path

assert all(p.isfinite().all() for p in fixed.model.parameters() if p.requires_grad)
for folder in sorted(Path("outputs/04/wandb").glob("*run-*"))[-1:]:
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    print(f"run on disk: {size / 1e3:.0f} kB. Send it later with: wandb sync {folder}")

# %% [markdown]
# ### The same curves, without an account
#
# A trap in TRL's names: `log_odds_chosen` is the log odds ratio, and `log_odds_ratio` is its log σ.
# `rewards/margins` is scaled by β, so margins of runs with different β cannot be compared.

# %%
log = pd.DataFrame([row for row in fixed.state.log_history if "nll_loss" in row])
fig, axes = plt.subplots(1, 3, figsize=(10, 2.8), dpi=80)
panels = {
    "nll_loss": ("NLL over prompt and chosen", "nats per token"),
    "log_odds_chosen": ("log odds ratio", "nats"),
    "rewards/accuracies": ("accuracy in the training batch", "share"),
}
for ax, (column, (title, unit)) in zip(axes, panels.items(), strict=True):
    ax.plot(log["step"], log[column], color="black", lw=1)
    plots.tidy(ax, title, "optimizer step", unit)
plt.tight_layout()
plt.show()


# %% [markdown]
# *Figure: three training curves from the trainer's own log; the NLL falls quickly and then slowly, the log odds ratio and the accuracy in the batch climb with noise.*

# %%
def score():
    return evaluation.score_pairs(fixed.model, tokenizer, test, profile.max_length)


scores = {"fixed": score()}
with fixed.model.disable_adapter():
    scores["base"] = score()
for name in ("base", "fixed"):
    print(
        f"{name}: preference accuracy {evaluation.estimate(scores[name].preferred)}, "
        f"log odds ratio {evaluation.estimate(scores[name].margin)}, n = {len(test)}"
    )
print(f"P(end token) after an answer {end_probability(fixed.model, test[:35])}")

# %% [markdown]
# On the lab the end token, which the base never expects, is now nearly certain after an answer.
#
# Had this very model been measured with the doubled prompt, the figure would have been smaller.
# The course's trainer refuses such rows, so here it is asked to let them pass:

# %%
from course_utils.training.orpo_rows import tokenize_rows

doubled = lab.count_prompt_twice(Dataset.from_list(test), tokenizer)
careless = ORPOConfig(
    output_dir="outputs/04",
    max_length=profile.max_length,
    refuse_prompt_twice=False,
    use_cpu=not torch.cuda.is_available(),
)
rows, _ = tokenize_rows(doubled, tokenizer, careless)
twice = evaluation.score_rows(fixed.model, list(rows), tokenizer.pad_token_id)
once = scores["fixed"]
print(f"log odds ratio, prompt once:  {evaluation.estimate(once.margin)}")
print(f"log odds ratio, prompt twice: {evaluation.estimate(twice.margin)}")
print(f"preference accuracy, twice:   {evaluation.estimate(twice.preferred)}")

# %% [markdown]
# The same difference is divided by more tokens, and the prompt's own tokens add their noise.
#
# And the answers themselves, where a program can judge them:

# %%
asked = prompts[: profile.at_most(len(prompts))]


def good_share(name, model, tokenizer):
    """Sample an answer to each prompt and let the lab's verifier judge it."""
    written = evaluation.generate(model, tokenizer, asked, 1.0)
    share = evaluation.estimate(evaluation.verify_generations(asked, written).good)
    print(f"{name:16s} good, sampled: {share} (n = {share.n})")
    return share


good = {}
if profile.data == "world":
    _, lab_tokenizer, _ = fresh_lab_model()
    with fixed.model.disable_adapter():
        good["base"] = good_share("base", fixed.model, tokenizer)
    good_share("article, the lab", article.model, lab_tokenizer)
    good["fixed"] = good_share("fixed", fixed.model, tokenizer)
else:
    print("Only the lab's answers can be judged by program; recorded there:")
    print(lab.summary(["base, Llama 3 chat", "+ β 0.5"], "ladder").to_string())

# %% [markdown]
# ## 6. Killed half-way
#
# Colab disconnects. A run that cannot resume exactly is not a run that you can trust.
# This script trains 16 steps and saves at 8; as soon as the checkpoint is there, the process is killed from outside, as an operating system does it.

# %%
# %%writefile outputs/04/resume.py
import sys

from course_utils.setup import profiles

profiles.stay_offline()
from peft import LoraConfig

from course_utils import chat, lab, models
from course_utils.data import mixing
from course_utils.training import ORPOConfig, ORPOTrainer


def make_trainer(folder):
    model, tokenizer = lab.load_base()
    ids = chat.use_llama3_chat(tokenizer)
    lora = LoraConfig(
        r=16, lora_alpha=32, task_type="CAUSAL_LM", target_modules=models.LINEAR_LAYERS,
        trainable_token_indices={"embed_tokens": ids, "lm_head": ids},
    )
    config = ORPOConfig(
        output_dir=folder, max_steps=16, save_steps=8, learning_rate=3e-3, beta=0.5,
        max_length=256, report_to="none", disable_tqdm=True, bf16=False, use_cpu=True,
        gradient_checkpointing=False, remove_unused_columns=False, seed=0,
    )
    pairs = mixing.build().train.select(range(200))
    pairs = pairs.select_columns(["prompt", "chosen", "rejected"])
    return ORPOTrainer(
        model, config, train_dataset=pairs, processing_class=tokenizer, peft_config=lora
    )


if __name__ == "__main__":
    make_trainer(sys.argv[1]).train()

# %%
import shutil
import subprocess
import time

for name in ("killed", "unbroken"):
    shutil.rmtree(f"outputs/04/{name}", ignore_errors=True)  # of an earlier run
killed = subprocess.Popen(
    [sys.executable, "outputs/04/resume.py", "outputs/04/killed"],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
)
while not Path("outputs/04/killed/checkpoint-8/trainer_state.json").exists():
    assert killed.poll() is None, "the script ended before its first checkpoint"
    time.sleep(0.05)
killed.kill()
saved = sorted(path.name for path in Path("outputs/04/killed").glob("checkpoint-*"))
print(f"exit status {killed.wait()}, checkpoints: {saved}")
assert saved == ["checkpoint-8"]

# %% [markdown]
# **Predict.** Resumed from step 8 to 16, how far are its weights from those of a run that was never killed?

# %%
import runpy

make_trainer = runpy.run_path("outputs/04/resume.py")["make_trainer"]
weights = {}
for name in ("unbroken", "killed"):
    trainer = make_trainer(f"outputs/04/{name}")
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=name == "killed")
    state = trainer.model.state_dict()
    weights[name] = {n: w for n, w in state.items() if "lora_" in n or "token" in n}
largest = max(
    float((weights["killed"][name] - weight).abs().max())
    for name, weight in weights["unbroken"].items()
)
print(f"largest difference in {len(weights['killed'])} tensors: {largest:.1e}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# The checkpoint holds weights, optimizer, schedule and the place in the data, so nothing is lost but the steps since the last save.
#
# </details>
#
# ## 7. When something is wrong: symptom, cause, check, fix
#
# In the order in which to look.
#
# | | symptom | likely cause | check | fix |
# |---|---|---|---|---|
# | 1 | loss is NaN, or reads 0.0 for some steps | a prompt fills `max_length`, so an answer has no label | `chat.check_pairs(…)`; are all weights finite? | drop such pairs; `logging_nan_inf_filter=False` |
# | 2 | loss does not fall | learning rate of full fine-tuning with LoRA | sweep the rate over a factor of 100 | ten times the full rate as a start |
# | 3 | loss falls, accuracy stays near 0.5 | it learns to write, not to prefer: too few steps, rate or β too low | log odds ratio on held-out pairs | a higher rate first, then more pairs, then a larger β |
# | 4 | accuracy jumps up and down | too few evaluation pairs | its interval: ten pairs give 0.24 to 0.76 | at least 200 pairs, better 800; a fixed seed |
# | 5 | margins much smaller than somebody else's | `rewards/margins` is multiplied by β; or the prompt is scored as answer | divide by β; decode the labels | raw messages, and `assert_labels_hold_no_user_text` |
# | 6 | chosen and rejected log-probs both fall | β too large, or the rate | curves of both sides | a smaller β |
# | 7 | good accuracy, but it **never stops generating** | the end token's rows were never trained | P(end token) after a right answer | `trainable_token_indices` for both matrices |
# | 8 | it stops here, but never stops after publishing | `generation_config.json` still holds the base's end token | read the file (notebook 06, section 5) | save the generation config with the tokenizer's `eos_token_id` |
# | 9 | it never stops, and `pad_token` is `eos_token` | the collator masks every pad token, so the end token has no label | is the last label the end token? | pad with a reserved token |
# | 10 | answers end, and a second turn begins | ChatML's line break, or a second end token | the last ids of a tokenised answer (section 4.6) | one end token, nothing behind it |
# | 11 | everything is worse after reloading | merged into another base than it was trained on | the release gate (notebook 06) | merge into the dequantised base |
#
# ### What the course recommends at 8B, and on which evidence
#
# | setting | recommendation | evidence |
# |---|---|---|
# | messages, not strings | `prompt`, `chosen`, `rejected` as lists of messages | decoded labels: section 4.1. It holds for every size |
# | chat tokens | train their rows in both matrices | no good answer without them (ladder). Llama 3's base has the same untrained rows; how much 8B loses was not measured here |
# | learning rate | 8e-5, then sweep 5e-5 to 5e-4 | rule of thumb (*LoRA Without Regret*): ten times the full rate. **Not measured at 8B**; the lab needs 3e-3 |
# | β | 0.1, then try 0.5 | the paper used 0.1 and 0.2 for 7B models; a small gain on the lab, open once seeds count (notebook 05) |
# | pairs and steps | as many as you can afford; 1,000 are few | twice the steps and all pairs: the ladder's last rung |
# | dropout | 0 | TRL switches it off anyway; on the lab no difference that counts |
# | evaluation pairs | 800 | arithmetic (section 2), so it holds for every size |
#
# ## Recap

# %%
rows = [
    {
        "run": name,
        "preference accuracy": str(evaluation.estimate(scores[name].preferred)),
        "n pairs": len(test),
        "good, sampled": str(good.get(name, "not judged")),
        "n answers": len(asked) if good else 0,
        "seeds": 1,
        "profile": profile.name,
    }
    for name in ("base", "fixed")
]
pd.DataFrame(rows).set_index("run")

# %% [markdown]
# What did not show: any harm of the doubled prompt to the lab's answers.
# What was not measured: the quality of an 8B model after any of these recipes.

# %%
before, after = (evaluation.estimate(scores[n].preferred) for n in ("base", "fixed"))
article_end = lab.over_seeds(runs["the article"], accuracy_of)[0]
print(
    f"Finding: preference accuracy {before.value:.2f} at the start, "
    f"{article_end.value:.2f} with the article's settings on the lab, {after} with "
    f"the fixed ones (n = {after.n})"
)


# %% [markdown]
# **Now you can** tell a run that learns from one that does not, and name the cause.
# **Next you need** to say how sure you are that a model is better: notebook 05.

# %% [markdown]
# ## Exercises
#
# A check says in words what is not right yet. Stuck? `checks.hint("4.3")`, and once more for a stronger hint.
# The cell below each exercise folds both hints and a tested solution.
#
# **4.1 · 10 min · ●●○** How many pairs does it take to see an accuracy of 0.6 against 0.5, two-sided at 5 %, with 80 % power?

# %%
def pairs_needed(base: float, better: float) -> int:
    """Pairs that tell accuracy `better` from the known accuracy `base`."""
    ...


checks.pairs_needed(pairs_needed)

# %%
checks.solution("4.1")


# %% [markdown]
# **4.2 · 10 min · ●●○** How far can Adam move a weight in one epoch, with a learning rate that falls linearly to 0?

# %%
def furthest_move(
    pairs: int, batch: int, accumulation: int, learning_rate: float
) -> tuple[int, float]:
    """(optimizer steps, sum of the steps' learning rates) of one epoch."""
    ...


checks.furthest_move(furthest_move)

# %%
checks.solution("4.2")


# %% [markdown]
# ## Hunts
#
# A hunt is a recipe that runs, looks fine and is wrong. Below is what a user reports; find the cause, then change the recipe.
# The check runs it small and judges what it does, so any right repair passes. The second cell shows the recipe at work: look there first.
#
# **Hunt 4.3 · 15 min · ●●○** "Loss and accuracy are fine from the first step on. In use the model often begins by asking my question again, then answers it."
# The recipe makes rows for `ORPOTrainer` from a mix whose `chosen` and `rejected` hold entire dialogues.

# %%
def to_row(raw):
    """A row for ORPOTrainer. It is to score the last message of `chosen` and of
    `rejected`, its end of turn included, after all messages before it.
    """
    return {
        "prompt": raw["chosen"][:-1],
        "chosen": raw["chosen"],
        "rejected": raw["rejected"],
    }


checks.hunt_talks_to_itself(to_row)

# %%
raw = checks.material("4.3")
for name, value in to_row(raw[1]).items():
    print(name)
    for message in value:
        print(f"  {message['role']:10s}{message['content']}")

# %%
checks.solution("4.3")


# %% [markdown]
# **Hunt 4.4 · 15 min · ●●○** "I wrote my own collator for an SFT run. The loss falls as it should and the answers are right. None of them stops: each runs on to `max_new_tokens`."

# %%
def collate(rows, tokenizer):
    """A batch: input_ids, attention_mask, labels, each (B, T). Row: {"input_ids": ids
    of prompt and answer, "prompt_length": how many of them are the prompt}. The answer
    is scored up to its end of turn, which is the tokenizer's end token.
    """
    tokenizer.pad_token = tokenizer.eos_token
    ids = [{"input_ids": row["input_ids"]} for row in rows]
    batch = tokenizer.pad(ids, return_tensors="pt")
    labels = batch["input_ids"].clone()
    for label, row in zip(labels, rows, strict=True):
        label[: row["prompt_length"]] = -100
    labels[labels == tokenizer.pad_token_id] = -100
    return {**batch, "labels": labels}


checks.hunt_never_stops(collate)

# %%
rows, row_tokenizer = checks.material("4.4")
one_batch = collate(rows, row_tokenizer)
print({name: tuple(value.shape) for name, value in one_batch.items()})
print("scored tokens per row:", (one_batch["labels"] != -100).sum(1).tolist())

# %%
checks.solution("4.4")

# %% [markdown]
# ## Five questions
#
# Put a letter for each `...`; the cell then says whether it is right, and why.
# Or unfold the answers, once you have your own.

# %%
answers = {1: ..., 2: ..., 3: ..., 4: ..., 5: ...}
checks.quiz("04", answers)

# %% [markdown]
# ## References
#
# - Hong, Lee, Thorne (2024), *ORPO*, arXiv:2403.07691: full fine-tuning at 8e-6, ten epochs.
# - Schulman and Thinking Machines Lab (2025), *LoRA Without Regret*: the factor of ten.
# - Hu et al. (2021), *LoRA*, arXiv:2106.09685.
