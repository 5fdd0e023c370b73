# %% [markdown]
# # 00 · Is my machine ready, what will it run, how long?
#
# {{badge}}
#
# **You will learn**
# to check a machine before it wastes your evening,
# to read which token each part of ORPO's loss sees,
# and to send the course to another model, other data or another profile.
#
# **Time and hardware**: {{recorded}}.
#
# **You need** Python and an idea of what a language model is.
# On the `cpu` profile no GPU, no account and no network.

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
import os
from importlib.metadata import version

import pandas as pd

from course_utils.setup import preflight, profiles

SEED = 0
print(f"profile {profile.name}: {reason}. Seed {SEED}")

# %% [markdown]
# ## 1. Is this machine ready?
#
# A **profile** is what the notebooks run on one kind of machine: model, data, precision, batch.
# The preflight looks at all that can be wrong with a set-up, before anything is loaded.

# %%
report = preflight.check(thorough=True)  # thorough: also imports TRL's ORPO
report


# %% [markdown]
# A `PROBLEM` would have stopped here with advice; a `warning` lets you go on.
# The last lines are minutes that each notebook took where its outputs were made.
#
# ### What a broken set-up looks like
#
# TRL's ORPO is experimental and moves between releases, so its version is pinned exactly.
# The next cell pretends that an older release is installed, and that a profile's name is misspelt.

# %%
def pretended_version(name):
    return "0.8.6" if name == "trl" else version(name)


misspelt = {**os.environ, "COURSE_PROFILE": "l5"}

# %%
message = ""
try:
    preflight.check(environ=misspelt, installed_version=pretended_version)
except preflight.PreflightError as error:
    message = str(error)
assert "trl" in message and "COURSE_PROFILE" in message
print(message)

# %% [markdown]
# One error lists everything that is wrong, each with what to do.
#
# ## 2. What will it run?
#
# The cells of all notebooks are the same everywhere; the profile fills in these values.

# %%
shown = ["note", "dtype", "nf4", "learning_rate", "beta", "max_length", "train_pairs"]
table = pd.DataFrame(
    {
        name: {"model": os.path.basename(p.base_model)}
        | {k: getattr(p, k) for k in shown}
        for name, p in profiles.all_profiles().items()
    }
)
table.loc["this machine"] = ["←" if name == profile.name else "" for name in table]
table

# %% [markdown]
# `cpu` trains a small Llama that ships with the course on a small world of made-up facts:
# in that world a program can check every answer.
# It shows how the methods behave, not how good an 8B model becomes.
#
# **Predict.** Colab rents three cards: T4 (15 GB), L4 (22.5 GB), A100 (40 GB). Which profile does each get, and why?

# %%
cards = {
    "T4": profiles.Hardware(True, "Tesla T4", (7, 5), 14.7, 2, 13),
    "L4": profiles.Hardware(True, "NVIDIA L4", (8, 9), 22.2, 8, 53),
    "A100": profiles.Hardware(True, "NVIDIA A100", (8, 0), 39.4, 12, 83),
}
for card in cards.values():
    choice = profiles.choose(environ={}, hardware=card, offline=lambda: False)
    print(f"{choice.profile.name:5s} {choice.reason}")

# %% [markdown]
# Memory decides, and so does precision: a T4 computes no bfloat16.
#
# ### To override the choice
#
# | variable | value | effect |
# |---|---|---|
# | `COURSE_PROFILE` | `cpu`, `t4`, `l4`, `a100` | this profile, whatever the machine |
# | `COURSE_BASE_MODEL` | a folder, or a hub id `owner/name` | this model in the profile's place |
# | `COURSE_DATA` | a folder, `world` or `hub` | these sources |
# | `COURSE_PAIRS` | a number from 8 on | a rehearsal: no more pairs to train or to evaluate the profile's model on |
#
# Set them before the kernel starts, or with `%env COURSE_PROFILE=cpu` above the setup cell.
# The reason then says so.

# %%
wish = {"COURSE_PROFILE": "t4", "COURSE_DATA": "world"}
choice = profiles.choose(environ=wish)
print(f"{choice.profile.name}: {choice.reason}; data: {choice.profile.data}")

# %% [markdown]
# ## 3. One pair, token by token
#
# A preference pair is a prompt with two answers, one chosen, one rejected.
# The chat template turns them into the text that the model reads.

# %%
from course_utils import chat, evaluation, lab, models, orpo
from course_utils.data import mixing

model, tokenizer = models.load_base(profile)
if profile.base_model == str(profiles.lab_model_folder()):
    lab.use_chatml(tokenizer)  # the one format that the lab's base has read
else:
    chat.use_llama3_chat(tokenizer)

# %%
mix = mixing.build(profile.data)
pair = mix.train[SEED]
for part in ("prompt", "chosen", "rejected"):
    for message in pair[part]:
        print(f"{part:9s}{message['role']:10s} {message['content']}")

# %% [markdown]
# ORPO's loss has two terms.
# The NLL imitates the chosen row; the odds ratio compares the two answers.
#
# **Predict.** Four stretches of text: the prompt and the answer, in the chosen row and in the rejected row.
# Which term sees which?

# %%
view = chat.show_loss_view(tokenizer, pair, profile.max_length)
view

# %% [markdown]
# The chosen answer is seen by both terms, the rejected one by the odds ratio alone.
# The prompt of the chosen row counts for the NLL as well: that is TRL's choice, and notebook 01 proves it.
#
# ## 4. One forward pass
#
# The model gives every answer token a log-probability; their mean is the answer's $\log P$, and $P/(1-P)$ are its odds.
# The odds-ratio term is $-\log\sigma(\log \text{odds}_\text{chosen} - \log \text{odds}_\text{rejected})$.
#
# **Predict.** If the model finds both answers equally likely, what is the term?

# %%
import torch

tokens = chat.tokenize_pair(tokenizer, pair, profile.max_length)
logps = {}
for side in ("chosen", "rejected"):
    ids = torch.tensor([getattr(tokens, f"{side}_input_ids")], device=model.device)
    labels = torch.tensor([getattr(tokens, f"{side}_labels")], device=model.device)
    with torch.no_grad():
        logps[side] = orpo.mean_logps(model(ids).logits, labels)
    odds = orpo.log_odds(logps[side]).exp()
    print(f"{side:9s} log P {logps[side].item():+.3f}  odds {odds.item():.3f}")

# %%
term = orpo.odds_ratio_loss(logps["chosen"], logps["rejected"])
equal = orpo.odds_ratio_loss(logps["chosen"], logps["chosen"])
print(f"odds-ratio term {term.item():.3f}; at equality {equal.item():.3f}")

# %% [markdown]
# At equality it is $\log 2 \approx 0.693$.
# Above that, the model finds the rejected answer likelier; below it, the chosen one.
# One pair is an anecdote, so here are pairs that no training will see.

# %%
held_out = list(mix.evaluation)[: profile.at_most(105)]
scores = evaluation.score_pairs(model, tokenizer, held_out, profile.max_length)
preferred = evaluation.estimate(scores.preferred)
terms = evaluation.estimate(
    orpo.odds_ratio_loss(torch.tensor(scores.chosen), torch.tensor(scores.rejected))
)
print(f"chosen likelier in {preferred} of the pairs, term {terms}, n = {preferred.n}")

# %% [markdown]
# Square brackets are 95 % intervals.
# If the first holds 0.5 and the second holds 0.69, the model has no preference yet.
#
# ## 5. Four answers, judged
#
# The small world comes with a verifier: a program that says of any answer whether its content is right,
# its manners are polite, its ending does not ramble, and whether the model ended its turn.
#
# **Predict.** Four answers to one question, sampled from the base. How many will be good in every respect?

# %%
prompt = held_out[SEED]["prompt"]
if profile.data == "world":
    four = [prompt] * 4
    answers = evaluation.generate(model, tokenizer, four, temperature=1, seed=SEED)
    verdicts = evaluation.verify_generations(four, answers)
    parts = ("content", "manners", "ending", "ended", "good")
    judged = {part: getattr(verdicts, part) for part in parts}
    print(*(f"{message['role']}: {message['content']}" for message in prompt), sep="\n")
    display(pd.DataFrame({"answer": [a.text for a in answers], **judged}).style.hide())
else:
    print("would judge four answers; needs the small world: COURSE_DATA=world")

# %% [markdown]
# Half of what the lab's base read in pretraining was false or rude, so it mixes voices.
# How often it is good was measured on 420 held-out prompts, and recorded.

# %%
from course_utils import recorded

print(recorded.caption(recorded.load("lab_findings")))
lab.summary(["base"])

# %% [markdown]
# ## 6. What comes, and how long it takes
#
# | | question | the run that answers it |
# |---|---|---|
# | 01 | What does SFT do to the answers you did not want? | SFT, DPO and ORPO side by side; the loss by hand |
# | 02 | How is a preference mix built, and what is in it? | seven sources, their rules, duplicates, licences |
# | 03 | How does 8B fit on one card? | NF4 and LoRA by hand; chat tokens that are really trained |
# | 04 | Does it learn, and how would I know? | the published recipe, its faults one by one, what works |
# | 05 | Is it better, or is it noise? | paired comparisons with intervals |
# | 06 | Is what I publish what I trained? | merge, and the proof that nothing changed |
# | 07 | From two hours to minutes: where does the time go? | profiling, packing, several GPUs |
#
# Each starts on its own. For theory take 01, for a first training 04, for Llama 3 8B on a card 03 and then 04.

# %%
minutes = pd.DataFrame(report.minutes, index=["minutes", "profile"]).T
if len(minutes):
    minutes["minutes"] = minutes["minutes"].astype(float).round(1)
    print(f"in all {minutes['minutes'].sum():.0f} minutes, as recorded on two cores")
else:
    print("no clone of the course here; the README's table has the minutes")
minutes

# %% [markdown]
# Recorded where the outputs that you see were made; another machine takes longer or shorter.
#
# And on a GPU? All of them were rehearsed there with random weights in Llama 3 8B's shape: that shows that they run, how long, and in how much memory.

# %%
from course_utils.recorded import on_gpu

rehearsed = on_gpu.load()
print(on_gpu.caption(rehearsed))
pd.DataFrame(on_gpu.table(rehearsed)).style.hide() if rehearsed else None

# %% [markdown]
# A real run takes as much longer as it has more pairs; notebook 07 times a step of it.
#
# ## Recap

# %%
n = preferred.n
recap = pd.DataFrame(
    [
        ("base", "chosen answer likelier, share of pairs", preferred, n),
        ("base", "odds-ratio term, nats (log 2 is 0.69)", terms, n),
        ("wrong trl, misspelt profile", "both refused, with advice", "yes", 2),
    ],
    columns=["method", "metric", "result [95 % interval]", "n"],
)
recap.assign(seeds=1, profile=profile.name).set_index("method")

# %%
coin = preferred.low <= 0.5 <= preferred.high
print(
    f"Finding: profile {profile.name} is ready; its untrained base finds the chosen "
    f"answer likelier in {preferred} of {n} pairs, "
    + ("no better than a coin" if coin else "so it leans to one side")
)

# %% [markdown]
# ## The exercises and hunts
#
# An **exercise** asks for a few lines that you have just seen the idea of.
# A **hunt** is a recipe that runs, looks fine and is wrong: you get the symptom, find the cause and repair it.
# Each notebook ends with some of them and with five questions. All check themselves, without a server.

# %%
from course_utils.exercises import checks

checks.exercise_map()

# %% [markdown]
# ## Exercises
#
# A check says in words what is not right yet. Stuck? `checks.hint("0.1")`, and once more for a stronger hint.
# The cell below each exercise folds both hints and a tested solution.
#
# **0.1 · 5 min · ●○○** Fill in which loss term sees each part: `"none"`, `"NLL"`, `"odds"` or `"NLL + odds"`.

# %%
seen = {
    "prompt of the chosen row": ...,
    "chosen answer": ...,
    "prompt of the rejected row": ...,
    "rejected answer": ...,
}
checks.seen(seen)

# %%
checks.solution("0.1")

# %% [markdown]
# **0.2 · 5 min · ●○○** Which profile does each machine get: `"cpu"`, `"t4"`, `"l4"` or `"a100"`?

# %%
profile_of = {
    "laptop, no GPU": ...,
    "RTX 2080 Ti, 11 GB, compute capability 7.5": ...,
    "V100, 32 GB, compute capability 7.0": ...,
    "RTX 4090, 24 GB, compute capability 8.9": ...,
    "H100, 80 GB, compute capability 9.0": ...,
}
checks.profile_of(profile_of)

# %%
checks.solution("0.2")

# %% [markdown]
# ## Five questions
#
# Put a letter for each `...`; the cell then says whether it is right, and why.
# Or unfold the answers, once you have your own.

# %%
answers = {1: ..., 2: ..., 3: ..., 4: ..., 5: ...}
checks.quiz("00", answers)

# %% [markdown]
# ## References
#
# - Hong, Lee, Thorne (2024), *ORPO: Monolithic Preference Optimization without Reference Model*, arXiv:2403.07691.
