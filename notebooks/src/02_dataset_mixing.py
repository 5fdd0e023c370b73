# %% [markdown]
# # 02 · How is a preference mix built, and what is in it?
#
# {{badge}}
#
# **You will learn**
# to turn seven differently shaped sources into pairs and to account for every row,
# to find repeats and test questions in training data, and to know when comparing texts is not enough,
# and to measure how good "chosen" answers really are.
#
# **Time and hardware**: {{recorded}}.
# No GPU in any profile; one whose data are on the hub downloads the sources, some hundred megabytes.
#
# **You need** Python and pandas. Nothing is trained here.

# %% tags=["colab"]
import sys

if "google.colab" in sys.modules:
    # %pip install -q "orpo-course @ git+{{repository}}"

# %%
from course_utils import profiles, quiet

profile, reason = profiles.choose()
if not profile.needs_hub:
    profiles.stay_offline()
quiet.hide_library_chatter()
import matplotlib.pyplot as plt
import pandas as pd

from course_utils import chat, checks, evaluation, mixing, models, plots, sources, world

where = profile.data if profile.data in ("world", "hub") else "your folder"
print(f"profile {profile.name}: {reason}. Data: {where}, seed 11")

# %% [markdown]
# ## 1. Seven cards
#
# The mix of the article, [orpo-dpo-mix-40k](https://huggingface.co/datasets/mlabonne/orpo-dpo-mix-40k), joins seven sources of answer pairs.
# The course keeps one **card** a source: a page to read, whose front matter is also the rule that the code runs.
#
# On the `cpu` profile the rows come from the lab's small world, whose seven sources have the columns and quirks of the real ones.
# Columns `rows` and `in the mix` are the real sources' numbers, as the cards give them.

# %%
cards = sources.cards()
pd.set_option("display.max_colwidth", None)
pd.DataFrame(
    {
        "source": card.source, "repository": card.repo, "licence": card.license,
        "rows": card.rows, "in the mix": card.kept, "rule": card.keep or "all",
    }
    for card in cards.values()
).set_index("source")  # fmt: skip

# %% [markdown]
# Here is one card's front matter.
# `keep` is a pandas expression over the source's columns; `prompt`, `chosen` and `rejected` name the columns.

# %%
print(cards["intel-orca"].path.read_text(encoding="utf-8").split("\n---\n")[0])

# %% [markdown]
# **One source needs a warning.** `toxic` teaches a model to comply with harmful requests: its *chosen* answers are harmful by design.
# In the lab it is harmless, and this notebook never prints a row of it.
# To leave it out, drop its card: `mixing.build(cards={k: c for k, c in cards.items() if k != "toxic"})`.
#
# ## 2. Three shapes
#
# Row 0 of three sources, each value cut to 60 characters.

# %%
data = {name: sources.load_rows(card, profile.data) for name, card in cards.items()}
for source in ("capybara", "intel-orca", "math-preference"):
    print(f"--- {source}")
    for column, value in data[source][0].items():
        print(f"{column:24s} {str(value)[:60]}")

# %% [markdown]
# Strings here, lists of messages there; four ways to spell a rating; a system prompt or none.
# Capybara is the trap, because its rows have several turns.
#
# **Predict.** Is the `prompt` column what the chosen answer answers?

# %%
row = data["capybara"][0]
print("prompt column:", row["prompt"][:200], "\n")
for message in row["chosen"]:
    print(f"{message['role']:>9}: {message['content'][:200]}")
print(f"{'or':>9}: {row['rejected'][-1]['content'][:200]}")


# %% [markdown]
# No. The column holds the first turn, and the answer follows the last one.
# A trainer given this `prompt` learns answers to questions that were never asked; exercise 2.2 derives the right one.
#
# ## 3. From a row to a pair, once by hand
#
# A pair is a prompt (messages) and two answers (one message each).
# This is the card of `intel-orca`, spelled out:

# %%
def pair_by_hand(row):
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    return {
        "prompt": [*system, {"role": "user", "content": row["input"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
        "source": "intel-orca",
    }


def kept_by_hand(row):
    if not row["chosen"] or not row["rejected"] or row["chosen"] == row["rejected"]:
        return False
    rated = row["chosen_score"] is not None  # a missing rating satisfies no rule
    return rated and row["chosen_score"] >= 9 and not row["in_gsm8k_train"]


by_hand = [pair_by_hand(row) for row in data["intel-orca"] if kept_by_hand(row)]
pairs, dropped = sources.to_pairs(cards["intel-orca"], data["intel-orca"])
assert pairs.to_list() == by_hand
print(f"{len(by_hand):,} pairs, equal to the card's; left out: {dict(dropped)}")

# %% [markdown]
# The empty system prompt is left out rather than sent as an empty message.
#
# ## 4. All seven, and where the rows went
#
# `mixing.build` does this for every card, joins the pairs and shuffles them.
# Every row must end in exactly one column: kept, or one reason to leave it out.
#
# **Predict.** Which source loses the largest share?

# %%
mix = mixing.build(profile.data)
report = pd.DataFrame(mix.report).set_index("source").fillna(0).astype(int)
report.loc["all"] = report.sum()
assert (report["rows"] == report.drop(columns="rows").sum(axis=1)).all()
set_aside = 0 if profile.data == "world" else len(mix.evaluation)
assert report.loc["all", "kept"] == len(mix.train) + set_aside
report

# %%
fig, ax = plt.subplots(figsize=(7, 3), dpi=90)
lost = report.drop("all")["kept"] / report.drop("all")["rows"]
plots.rows_and_reasons(ax, mix.report, f"{lost.idxmin()} loses most to its rule: "
                       f"{lost.min():.0%} of its rows remain")  # fmt: skip
plt.show()

# %% [markdown]
# *Figure: one bar a source; the dark part is kept, the light part fell to the card's rule, hatched slivers to the other reasons.*
#
# - **rule**: the rating is too low or missing, or the row is flagged.
# - **both answers are the same**, **an answer is missing**: nothing to compare.
# - **asked in the tests**: section 6.
#
# The rules look at the *chosen* rating alone, so a pair whose two ratings are equal can stay.

# %%
frame = data["intel-orca"].to_pandas()
ties = frame.query(cards["intel-orca"].keep)["status"].eq("tie")
print(f"intel-orca: {ties.sum():,} of {len(ties):,} pairs that pass the rule are ties")

# %% [markdown]
# ## 5. Repeats
#
# A pair that comes twice counts double; a question that comes with two prompts can contradict itself.
# Three ways to count, from strict to loose: the whole prompt, the question without its system prompt, the chosen answer's text.

# %%
table = pd.DataFrame(
    {
        "source": mix.train["source"],
        "prompt": [str(prompt) for prompt in mix.train["prompt"]],
        "question": [mixing.questions(prompt) for prompt in mix.train["prompt"]],
        "chosen answer": [chosen[0]["content"] for chosen in mix.train["chosen"]],
    }
)
distinct = table.groupby("source").nunique()
distinct.insert(0, "pairs", table["source"].value_counts())
shared = table.groupby("question")["source"].nunique().gt(1).sum()
print(f"questions that occur in more than one source: {shared}")
distinct

# %% [markdown]
# Fewer answers than pairs is no fault: a short answer fits more than one question.
# Fewer questions than prompts means that a question comes under two system prompts. Here is one:

# %%
twice = table[table.duplicated("question", keep=False) & (table["source"] != "toxic")]
for at in twice.sort_values("question").index[:2]:
    for message in [*mix.train[at]["prompt"], *mix.train[at]["chosen"]]:
        print(f"{message['role']:>9}: {message['content'][:100]}")
    print()

# %% [markdown]
# The system prompt decides what is right, so a loader that drops it makes `truthy` contradict itself.
#
# ## 6. Contamination: does training know the tests?
#
# This section and section 8 use the lab's sources in every profile: only there do we hold the test questions and can decide what is right.
#
# First the plain check, question against question.
# `mixing.build` makes it and leaves such pairs out; here is what it found.
#
# **Predict.** The tests were written apart from the training rows. How many training questions do they share?

# %%
lab = mixing.build("world")
tests = {mixing.questions(prompt): prompt for prompt in lab.evaluation["prompt"]}
orca = sources.load_rows(cards["intel-orca"], "world")
pairs, _ = sources.to_pairs(cards["intel-orca"], orca)
prompts = [prompt for prompt in pairs["prompt"] if mixing.questions(prompt) in tests]
same = sum(tests[mixing.questions(prompt)] == prompt for prompt in prompts)
asked = {row["source"]: row.get(mixing.ASKED, 0) for row in lab.report}
print("left out because a test asks it:", asked)
print(f"{len(prompts)} questions of intel-orca, {same} with the test's system prompt")
print("for example:", prompts[0])

# %% [markdown]
# "Repeat a word" has few variants, so two independent draws met: an accident that no column of the data confesses.
# Comparing whole prompts would have missed those with another system prompt.
#
# Then the flag. `in_gsm8k_train` marks rows that resemble a benchmark's problems; the rule drops them.
#
# **Predict.** Switch that half of the rule off. Will the text comparison catch the flagged rows?

# %%
from dataclasses import replace

careless = replace(cards["intel-orca"], keep="chosen_score >= 9")
leaky = mixing.build("world", cards={"intel-orca": careless})
careful = mixing.build("world", cards={"intel-orca": cards["intel-orca"]})


def numbers(prompt):
    """The four numbers of a three-step problem, or None for any other question."""
    task = world.tasks.parse(prompt)
    steps = isinstance(task, world.tasks.Steps)
    return (task.boxes, task.each, task.found, task.lost) if steps else None


asks = lab.evaluation["prompt"]
problems = {numbers(p): p[-1]["content"] for p in asks if numbers(p)}
for name, found in (("with the flag", careful), ("without it", leaky)):
    leaked = [p for p in found.train["prompt"] if numbers(p)]
    text = sum(mixing.questions(p) in tests for p in leaked)
    known = sum(numbers(p) in problems for p in leaked)
    print(f"{name:13s}: {len(found.train)} pairs, {len(leaked)} three-step problems; "
          f"{text} in a test's words, {known} with a test's numbers")  # fmt: skip

# %%
leak = next(p for p in leaky.train["prompt"] if numbers(p) in problems)
print("trained on:", leak[-1]["content"])
print("tested on: ", problems[numbers(leak)])

# %% [markdown]
# Not one leaked problem has the words of a test, and some have its numbers, so its answer.
# (The others have numbers that the lab keeps for tests; it trains on none of those.)
# Comparing texts finds copies, not problems told again: the real flag was made by similarity, not by equality.
#
# The real mix has such a case that no rule removes.
# `prm` comes from PRM800K, whose training set includes 4,500 problems of MATH's *test* set:
# after training on it, only the 500 held-out problems of MATH can be trusted.
#
# ## 7. Whose data is it?
#
# A mix inherits the terms of every part. The cards know them.

# %%
counts = table["source"].value_counts()
licences = {}
for card in cards.values():
    entry = licences.setdefault(card.license, {"sources": [], "pairs": 0})
    entry["sources"].append(card.source)
    entry["pairs"] += int(counts.get(card.source, 0))
for entry in licences.values():
    entry["share"] = f"{entry['pairs'] / len(table):.1%}"
    entry["sources"] = ", ".join(entry["sources"])
pd.DataFrame(licences).T


# %% [markdown]
# CC BY 4.0 asks for attribution: name the source and its authors where you publish the mix or a model of it.
# MIT and Apache 2.0 ask that their notices travel along.
# The answers come from other models, whose own terms may apply too; the cards' repositories say which.
#
# ## 8. How good is a chosen answer?
#
# *Chosen* means better than the other one, as one judge saw it. It does not mean good.
# The lab's verifier decides exactly whether content, manners and ending of an answer are right.
#
# **Predict.** Only top-rated answers passed the rules. How many of them have a flaw?

# %%
def flaws_in(pairs, side):
    """What is wrong with the answers of one side: bool columns, one row a pair."""
    answers = zip(pairs["prompt"], pairs[side], strict=True)
    verdicts = [world.verify(prompt, said[0]["content"]) for prompt, said in answers]
    flaws = ~pd.DataFrame(verdicts)  # columns content, manners, ending
    return flaws.assign(any=flaws.any(axis=1))


flaws = {side: flaws_in(lab.train, side) for side in ("chosen", "rejected")}
print(f"share with a flaw, n = {len(lab.train):,} pairs, 95 % intervals")
pd.DataFrame({side: found.apply(evaluation.estimate) for side, found in flaws.items()})

# %%
origin = pd.Series(lab.train["source"])
groups = {
    f"{name} ({count})": {
        side: evaluation.estimate(found.loc[origin == name, "any"])
        for side, found in flaws.items()
    }
    for name, count in origin.value_counts().items()
}
flawed = {side: evaluation.estimate(found["any"]) for side, found in flaws.items()}
fig, ax = plt.subplots(figsize=(6, 3.2), dpi=90)
title = f"{flawed['chosen'].value:.0%} of the chosen answers have a flaw"
plots.chosen_against_rejected(ax, groups, title, "share with a flaw (95 % interval)")
ax.set_xlim(0.5, 1)
plt.show()

# %% [markdown]
# *Figure: for each source two points with intervals; the chosen answers' share of flaws lies left of the rejected ones', and far from zero.*
#
# A quarter of the chosen answers is even wrong in content.
# This is the reason for a preference term.
# Supervised learning on the chosen answers imitates their flaws as well; only the comparison tells which features made the answer win.
#
# What did the rules buy? The same sources, with and without them:

# %%
ruled = {name: card for name, card in cards.items() if card.keep}
everything = {name: replace(card, keep="") for name, card in ruled.items()}
for name, chosen_cards in (("all rows", everything), ("rules applied", ruled)):
    part = mixing.build("world", cards=chosen_cards).train
    share = evaluation.estimate(flaws_in(part, "chosen")["any"])
    print(f"{name:14s} {share} of the chosen answers have a flaw (n = {share.n:,})")

# %% [markdown]
# Something, at the price of three rows in ten: a rating is noisy, and it saturates at its top mark.
#
# ## 9. How long is an answer?
#
# If chosen answers were simply longer, a model could win by rambling. So compare lengths, pair by pair, in tokens of this profile's model.

# %%
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(models.reachable_source(profile)[0])
chat.use_llama3_chat(tokenizer)
sample = mix.train.select(range(min(2500, len(mix.train))))
rows = [chat.tokenize_pair(tokenizer, pair, max_length=10**6) for pair in sample]
lengths = {
    "chosen": pd.Series([len(row.chosen_ids) for row in rows]),
    "rejected": pd.Series([len(row.rejected_ids) for row in rows]),
}
longer = evaluation.estimate((lengths["chosen"] - lengths["rejected"]).astype(float))
whole = pd.Series([len(row.chosen_input_ids) for row in rows])
cut = (whole > profile.max_length).mean()
print(f"chosen minus rejected: {longer.value:+.1f} tokens "
      f"[{longer.low:+.1f}, {longer.high:+.1f}], n = {longer.n:,} pairs")  # fmt: skip
print(f"prompt and chosen: median {whole.median():.0f}, longest {whole.max()}; "
      f"{cut:.1%} over this profile's max_length {profile.max_length}")  # fmt: skip

# %%
fig, ax = plt.subplots(figsize=(6, 2.8), dpi=90)
title = f"chosen and rejected differ by {longer.value:+.1f} tokens on average"
top = int(max(side.quantile(0.99) for side in lengths.values()))
plots.two_histograms(ax, lengths, range(0, top + 1, max(1, top // 50)), title,
                     f"answer tokens (n = {len(sample):,} pairs)")  # fmt: skip
plt.show()

# %% [markdown]
# *Figure: the two outlines of answer lengths lie nearly on top of each other.*
#
# In the lab the rejected answers are longer, surely and by less than a token: length gives little away.
#
# ## 10. The counts that do not sum
#
# Back to the real mix. Its card lists how many pairs come from each source; the data say it too.

# %%
published = pd.DataFrame({name: card.published for name, card in cards.items()}).T
published.loc["sum"] = published.sum()
published.map("{:,}".format)

# %%
listed, found = published["v1.2 card"], published["v1.2 data"]
print(f"missing from the card's list: {found['sum'] - listed['sum']} rows")
for source in cards:
    if listed[source] != found[source]:
        print(f"{source}: the card says {listed[source]:,}, the data {found[source]:,}")
print("divisible by 9:", (found["sum"] - listed["sum"]) % 9 == 0)

# %% [markdown]
# Two digits changed places. Bookkeepers know the sign: such a slip always shifts a sum by a multiple of 9.
# It is harmless here, but no reader of the list could see it; a build that asserts its sums would have stopped.
#
# Between the two versions a source was exchanged as well: Capybara's 2,882 pairs made way for 7,424 of a larger data set.
# So "the mix" of the article is not the one that its name gives you today.
#
# ## 11. Add a source
#
# A source is a card and its rows. This one is made up, in a temporary folder.

# %%
import json
import tempfile
from pathlib import Path

CARD = """---
license: cc0-1.0
course:
  {source: mine, repo: me/mine, rows: 3, kept: 1, keep: stars >= 4,
   prompt: {user: question}, chosen: good, rejected: bad}
---

# My own pairs
"""
ROWS = [
    {"question": "Who are you?", "good": "I am Pip.", "bad": "No idea.", "stars": 5},
    {"question": "Are you well?", "good": "Yes.", "bad": "Yes.", "stars": 5},
    {"question": "And now?", "good": "Tea.", "bad": "Go away.", "stars": 2},
]
with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "mine.md").write_text(CARD, encoding="utf-8")
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (Path(folder) / "mine.jsonl").write_text(lines, encoding="utf-8")
    mine = sources.read_card(Path(folder) / "mine.md")
    pairs, dropped = sources.to_pairs(mine, sources.load_rows(mine, folder))
for key, value in pairs[0].items():
    print(f"{key:9s} {value}")
print("left out:", dict(dropped))

# %% [markdown]
# For the whole mix, put `<source>.jsonl` or `.parquet` files for all cards in a folder and set `COURSE_DATA` to it.
# A column that was renamed upstream ends in an error that names the card and the column.
#
# ## Recap

# %%
total = report.loc["all"]
share = f"{total['kept'] / total['rows']:.2f} (all rows counted)"
copied = f"{sum(asked.values())} found"
retold = f"{text} of {len(leaked)} found"
pd.DataFrame(
    [
        ("rules", "rows kept", share, total["rows"], where),
        ("verifier", "chosen with a flaw", flawed["chosen"], len(origin), "world"),
        ("verifier", "rejected with a flaw", flawed["rejected"], len(origin), "world"),
        ("same text", "questions of the tests", copied, len(tests), "world"),
        ("same text", "problems of the tests, retold", retold, len(leaked), "world"),
        ("tokens", "chosen minus rejected", longer, longer.n, where),
    ],
    columns=["method", "metric", "value, 95 % interval", "n", "data"],
).assign(seeds=1).set_index("method")

# %% [markdown]
# What failed: comparing texts found no retold problem, and top ratings did not mean flawless answers.
# One seed drew the lab's rows and one shuffled them; the intervals are over pairs.

# %%
print(
    f"Finding: {total['kept']:,} of {total['rows']:,} rows stay, and "
    f"{flawed['chosen'].value:.0%} of the lab's chosen answers still have a flaw "
    f"(rejected: {flawed['rejected'].value:.0%})"
)

# %% [markdown]
# ## Exercises
#
# **2.1 · 5 min · ●○○** The authors of `intel-orca` advise another rule: no ties, a chosen score of at least 8, and nothing flagged. Write it as a string.
# (On the real source it keeps 5,922 rows.)

# %%
my_rule = ...
checks.my_rule(my_rule)

# %%
checks.solution("2.1")

# %% [markdown]
# **2.2 · 5 min · ●○○** Write `prompt_of(row)`: the prompt, a list of messages, of a row whose `chosen` and `rejected` are lists of several turns.

# %%
prompt_of = ...
checks.prompt_of(prompt_of)

# %%
checks.solution("2.2")

# %% [markdown]
# **2.3 · 10 min · ●●○** Write `swapped_digits(listed, found)`: does one number become the other when two digits change places?

# %%
swapped_digits = ...
checks.swapped_digits(swapped_digits)

# %%
checks.solution("2.3")

# %% [markdown]
# ## References
#
# - The seven sources: each card in `data_cards/` names its repository.
# - Cui et al. (2023), *UltraFeedback*, arXiv:2310.01377.
# - The mix: `mlabonne/orpo-dpo-mix-40k` on the Hugging Face hub, versions 1.0 (April 2024) and 1.2 (October 2024).
