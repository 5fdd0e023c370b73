# %% [markdown]
# # 00 · What is preference tuning for, and is my machine ready?
#
# {{badge}}
#
# **You will learn**
# to say what pretraining, SFT, RLHF, DPO and ORPO each need,
# to check a machine before it wastes your evening,
# and to read which token each part of ORPO's loss sees.
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
# ## 1. What is preference tuning for?
#
# **Pretraining** makes a model that continues text: ask it a question, and it may answer, or ask another one.
# **SFT** (supervised fine-tuning) shows it good answers, and it learns to answer like them.
# SFT never sees a *bad* answer.
# So nothing tells the model which features of a good answer matter, and which ones are accidents.
#
# **Preference tuning** shows pairs: a prompt, a *chosen* answer and a *rejected* one.
# People find it easier to say which of two answers is better than to write a perfect one.
# There are three ways to use such pairs, and each is simpler than the one before:
#
# - **RLHF** (2022) trains a *reward model* on the pairs. Then the model writes answers, the reward model marks them, and reinforcement learning raises the marks.
# - **DPO** (2023) needs no reward model and writes no answers while it trains. It compares the model with a frozen copy of itself, the *reference model*.
# - **ORPO** (2024) needs no reference model and no SFT beforehand. It adds one term to SFT's loss, and the term compares the two answers.

# %%
import matplotlib.pyplot as plt

from course_utils import plots

fig, ax = plt.subplots(figsize=(9.5, 3.4), dpi=90)
plots.road_to_orpo(ax)
plt.show()

# %% [markdown]
# *Figure: five columns, one per method. Pretraining needs plain text, one model and one stage. SFT needs good answers, one model and one more stage. RLHF needs good answers and pairs, four models in memory and three more stages. DPO needs good answers and pairs, two models and two more stages. ORPO needs pairs, one model and one more stage.*
#
# Fewer models in memory means a smaller GPU; fewer stages mean fewer places where something goes wrong unnoticed.
# Whether ORPO's answers are as good is a question of measurement: notebook 01 compares it with SFT and DPO.
#
# ### Who is who in this course
#
# - **The article** is *Fine-tune Llama 3 with ORPO* by Maxime Labonne (April 2024). It trained Llama 3 8B on 1,000 pairs, and thousands of people copied its recipe. This course repeats it, measures that it hardly learned, finds out why, and fixes it.
# - **The paper** is *ORPO* by Hong, Lee and Thorne (2024). It invented the loss.
# - **The lab** is a small Llama of 3.5 million weights and a small world of made-up facts, both shipped with the course. A program checks every answer there, and a training takes a minute on a laptop. It shows how methods behave, not how good an 8B model becomes.
# - **Recorded** results come from longer runs. Each names its machine, date and command, and you can repeat it.
#
# Words that you do not know stand in the [glossary](#glossary) at the end of this notebook.
#
# ## 2. Is this machine ready?
#
# A **profile** is what the notebooks run on one kind of machine: model, data, precision, batch.
# The preflight checks everything that can be wrong with a set-up, before anything is loaded.

# %%
report = preflight.check(thorough=True)  # thorough: also imports TRL's ORPO
report.minutes.pop("00_start_here", None)  # this notebook's own stand at its top
report


# %% [markdown]
# A `PROBLEM` would have stopped here with advice; a `warning` lets you go on.
# The last lines say how many minutes each notebook took where its outputs were made.
#
# ### What a broken set-up looks like
#
# The article was written for TRL 0.8.6. Its code does not run with today's TRL, nor this course with that one.
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
# ## 3. What will it run?
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
# Profile `cpu` is the lab.
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
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Memory decides, and so does precision: a T4 computes no bfloat16.
#
# </details>
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
# ## 4. One pair, token by token
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
pair = mix.train[0]
for part in ("prompt", "chosen", "rejected"):
    for message in pair[part]:
        print(f"{part:9s}{message['role']:10s} {message['content']}")

# %% [markdown]
# ORPO's loss has two terms: the NLL imitates, and the odds ratio compares.
#
# **Predict.** Four stretches of text: the prompt and the answer, in the chosen row and in the rejected row.
# Which term sees which?

# %%
view = chat.show_loss_view(tokenizer, pair, profile.max_length)
view

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# The chosen answer is seen by both terms, the rejected one by the odds ratio alone.
# The prompt of the chosen row counts for the NLL as well: that is TRL's choice, and notebook 01 proves it.
#
# </details>
#
# ## 5. One forward pass
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
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# At equality it is $\log 2 \approx 0.693$. <!-- measured -->
# Above that, the model finds the rejected answer likelier; below it, the chosen one.
# One pair is an anecdote, so here are pairs that no training will see.
#
# </details>

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
# ## 6. Four answers, judged
#
# The small world comes with a verifier: a program that says of any answer whether its content is right,
# its manners are polite, its ending does not ramble, and whether the model ended its turn.
#
# **Predict.** Four answers to one question, sampled from the base. How many will be good in every respect?

# %%
prompt = held_out[0]["prompt"]
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
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Half of what the lab's base read in pretraining was false or rude, so it mixes voices.
# How often it is good was measured on 420 held-out prompts, and recorded.
#
# </details>

# %%
from course_utils import recorded

print(recorded.caption(recorded.load("lab_findings")))
lab.summary(["base"])

# %% [markdown]
# ## 7. What comes, and how long it takes
#
# | | question | the run that answers it |
# |---|---|---|
# | 01 | What does SFT do to the answers you did not want? | SFT, DPO and ORPO side by side; the loss by hand |
# | 02 | How is a preference mix built, and what is in it? | seven sources, their rules, duplicates, licences |
# | 03 | How does 8B fit on one card? | NF4 and LoRA by hand; chat tokens that are really trained |
# | 04 | Does it learn, and how would I know? | a ladder: the article's recipe, then one fix per rung |
# | 05 | Is it better, or is it noise? | paired comparisons with intervals |
# | 06 | Is what I publish what I trained? | merge, and the proof that nothing changed |
# | 07 | From two hours to minutes: where does the time go? | profiling, packing, several GPUs |
# | 08 | What do I copy for my own model? | the recipe on one page, without the course's package |
#
# Each starts on its own. For theory take 01, for a first training 04, for Llama 3 8B on a card 03 and then 04.
# Parts marked *Optional* can be left out; the others are a day's reading.

# %%
minutes = pd.DataFrame(report.minutes, index=["minutes", "profile"]).T
if len(minutes):
    minutes["minutes"] = minutes["minutes"].astype(float).round(1)
    print(f"in all {minutes['minutes'].sum():.0f} minutes, as recorded on two cores")
    print("(this notebook's own minutes stand at its top)")
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
# <a id="glossary"></a>
# ## 8. Glossary
#
# **Text and tokens**
#
# | term | meaning |
# |---|---|
# | <a id="token"></a>token | a piece of a word, with a number; a model reads and writes tokens |
# | <a id="bos"></a>BOS, EOS | the token that begins a text, and the one that ends it |
# | <a id="eot"></a>EOT, `<\|eot_id\|>` | Llama 3's token that ends one turn of a chat; generation must stop there |
# | <a id="pad"></a>padding | filler tokens that make the rows of a batch equally long; no loss counts them |
# | <a id="chat-template"></a>chat template | the rule that turns messages with roles into one text with control tokens |
# | <a id="label"></a>label, mask | the token that a position should predict; −100 marks a position that is not scored |
# | <a id="packing"></a>packing | several sequences in one row, so that no padding is computed |
#
# **Probability and loss**
#
# | term | meaning |
# |---|---|
# | <a id="logits"></a>logits | one score per token of the vocabulary; softmax makes probabilities of them |
# | <a id="logprob"></a>log-prob | logarithm of a probability, at most 0; here the mean per token of an answer |
# | <a id="nats"></a>nats | the unit of natural logarithms; a coin toss is log 2 ≈ 0.693 nats |
# | <a id="nll"></a>NLL | negative log-likelihood, minus the mean log-prob of the right tokens: SFT's loss |
# | <a id="perplexity"></a>perplexity | exp(NLL): among how many equally likely tokens the model seems to choose |
# | <a id="odds"></a>odds, log-odds | P / (1 − P), and its logarithm |
# | <a id="odds-ratio"></a>odds ratio | odds of the chosen answer over odds of the rejected one |
# | <a id="beta"></a>β (beta) | in ORPO the weight of the odds-ratio term (the paper's λ); in DPO something else: how far the model may leave its reference |
# | <a id="margin"></a>margin | how far the chosen answer is ahead; here the log odds ratio. TRL logs it multiplied by β |
# | <a id="accuracy"></a>preference accuracy | share of pairs whose chosen answer the model finds likelier |
# | <a id="kl"></a>KL | Kullback–Leibler divergence, in nats: how far one distribution is from another; 0 if equal |
#
# **Training**
#
# | term | meaning |
# |---|---|
# | <a id="sft"></a>SFT | supervised fine-tuning: raise the log-prob of given answers |
# | <a id="rlhf"></a>RLHF | reinforcement learning from human feedback, through a reward model |
# | <a id="dpo"></a>DPO | direct preference optimization: compare with a frozen reference model |
# | <a id="orpo"></a>ORPO | odds ratio preference optimization: SFT's loss plus a term on the odds ratio |
# | <a id="trl"></a>TRL | Hugging Face's library of these trainers, on top of transformers |
# | <a id="adapter"></a>adapter | a few new weights beside frozen ones; PEFT is the library for them |
# | <a id="lora"></a>LoRA | an adapter of two thin matrices per layer, of rank *r* |
# | <a id="nf4"></a>NF4 | a code of 16 values for a weight, so 4 bits each; bitsandbytes is its library |
# | <a id="qlora"></a>QLoRA | LoRA on top of a base that is stored in NF4 |
# | <a id="gradient-checkpointing"></a>gradient checkpointing | keep fewer activations and compute the others again: less memory, more time |
# | <a id="epoch"></a>epoch, step | once through the data; one update of the weights |
#
# **Machines and files**
#
# | term | meaning |
# |---|---|
# | <a id="kv"></a>KV | keys and values of attention, kept in a cache while a model writes |
# | <a id="bf16"></a>bf16, fp16, fp32 | floats of 16 bits with a wide or a narrow range, and of 32 bits |
# | <a id="ddp"></a>DDP | one copy of the model per GPU; gradients are averaged |
# | <a id="fsdp"></a>FSDP | each GPU holds a share of every layer |
# | <a id="merge"></a>merge | add an adapter to its base, so that one ordinary model is left |
# | <a id="gguf"></a>GGUF | the file format of llama.cpp, for laptops |
# | <a id="gate"></a>release gate | the check in notebook 06 that a folder is the model that was trained |
# | <a id="safetensors"></a>safetensors | the hub's file format for weights; it cannot hold code |
#
# ## Recap

# %%
n = preferred.n
recap = pd.DataFrame(
    [
        ("base", "chosen answer likelier, share of pairs", preferred, n),
        ("base", "odds-ratio term, nats (log 2 is 0.69)", terms, n),
        ("preflight", "wrong set-ups refused, with advice", "both", 2),
    ],
    columns=["method", "metric", "result [95 % interval]", "n"],
)
recap.assign(seeds=1, profile=profile.name).set_index("method")

# %%
coin = preferred.low <= 0.5 <= preferred.high
print(
    f"Finding: profile {profile.name} is ready; its base, before tuning, finds the "
    f"chosen answer likelier in {preferred} of {n} pairs, "
    + ("no better than a coin" if coin else "so it leans to one side")
)

# %% [markdown]
# **Now you can** say what ORPO needs, check a machine, and read what its loss sees.
# **Next you need** the loss itself: notebook 01 derives it and compares SFT, DPO and ORPO.

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
