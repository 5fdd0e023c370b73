# %% [markdown]
# # 05 · Is it better, or is it noise?
#
# {{badge}}
#
# **You will learn**
# to say how wide an interval is before you run an evaluation,
# to compare two models on the same items and count how many items that saves,
# and to tell the noise of the prompts from the noise of the seed.
#
# **Time and hardware**: {{recorded}}.
# Section 2 trains the model of your profile for 60 steps; the other sections need no GPU.
#
# **You need** notebook 04 (a run that learns) and the idea of a standard error.

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
import numpy as np
import pandas as pd
import transformers
from scipy import stats

from course_utils import chat, checks, evaluation, lab, mixing, models, plots, records

SEED = 0
print(f"profile {profile.name}: {reason}. Seed {SEED}")

# %% [markdown]
# ## 1. How wide is an interval?
#
# A preference accuracy is a share of pairs, so chance alone moves it.
# Say that a model truly ranks 60 % of all pairs rightly.
#
# **Predict.** You measure it on ten pairs. How often will it look no better than a coin?

# %%
pd.set_option("display.max_colwidth", None)
rng = np.random.default_rng(SEED)
fig, ax = plt.subplots(figsize=(6, 3), dpi=90)
for n, style in ((10, ":"), (210, "--"), (420, "-")):
    measured = rng.binomial(n, 0.6, size=10_000) / n
    low, high = np.quantile(measured, (0.025, 0.975))
    print(
        f"n {n:3d}: 95 % of evaluations give {low:.2f} to {high:.2f}; "
        f"a coin or worse in {(measured <= 0.5).mean():.1%}"
    )
    ax.ecdf(measured, ls=style, color="black", label=f"{n} pairs")
ax.axvline(0.5, color=plots.COLOURS["base"], lw=1)
ax.legend(frameon=False, fontsize=8)
plots.tidy(
    ax,
    "Ten pairs cannot tell 0.6 from a coin (truth 0.6, 10,000 evaluations)",
    "measured accuracy",
    "share of evaluations below",
)
plt.show()

# %% [markdown]
# *Figure: cumulative share of simulated evaluations over the accuracy they measure; with 10 pairs the curve climbs slowly from 0.2 to 1 and passes 0.5 at more than a third, with 210 and 420 pairs it is a steep step at 0.6.*
#
# With ten pairs, which is what the article kept, more than a third of all evaluations miss the gain altogether.
# In practice the truth is unknown and one evaluation is all you have.
# The Wilson interval turns that one result into a range of truths that fit it.

# %%
for n in (10, 210, 420):
    right = np.arange(n) < round(0.6 * n)
    print(f"{right.sum():3d} of {n:3d} right: {evaluation.estimate(right)}")

# %% [markdown]
# Twice the pairs do not halve the interval: its width falls with the square root of n.
#
# ## 2. A short run to evaluate
#
# 60 steps of ORPO with the settings of notebook 04, half of what a full run takes.
# The base is scored before it, on the same held-out pairs.

# %%
from datasets import Dataset
from peft import LoraConfig
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

STEPS = 60
model, tokenizer = models.load_base(profile)
control_ids = chat.use_llama3_chat(tokenizer)
mix = mixing.build(profile.data)
batch = profile.per_device_batch_size * profile.gradient_accumulation_steps
rows = mix.train.select_columns(["prompt", "chosen", "rejected"])
train, _ = chat.check_pairs(rows, tokenizer, profile.max_length, "drop")
held_out, _ = chat.check_pairs(mix.evaluation, tokenizer, profile.max_length, "drop")
print(f"{STEPS * batch} pairs to train, {len(held_out)} held out")

# %%
adapter = LoraConfig(
    r=profile.lora_rank, lora_alpha=profile.lora_alpha, lora_dropout=0.0,
    target_modules=models.LINEAR_LAYERS, task_type="CAUSAL_LM",
    trainable_token_indices={"embed_tokens": control_ids, "lm_head": control_ids},
)  # fmt: skip
config = ORPOConfig(
    beta=profile.beta, learning_rate=profile.learning_rate, warmup_steps=10,
    max_steps=STEPS, max_length=profile.max_length, seed=SEED, optim=profile.optim,
    per_device_train_batch_size=profile.per_device_batch_size,
    gradient_accumulation_steps=profile.gradient_accumulation_steps,
    gradient_checkpointing=profile.gradient_checkpointing,
    bf16=profile.dtype == "bfloat16", fp16=profile.dtype == "float16",
    use_cpu=profile.name == "cpu", output_dir="outputs/05", save_strategy="no",
    logging_nan_inf_filter=False, remove_unused_columns=False, report_to="none",
    disable_tqdm=True,
)  # fmt: skip
trainer = ORPOTrainer(
    model, config, train_dataset=Dataset.from_list(train[: STEPS * batch]),
    processing_class=tokenizer, peft_config=adapter,
)  # fmt: skip

# %%
prompts = [pair["prompt"] for pair in held_out[:210]]


def good_answers(model):
    """Per prompt: is the answer good? {"greedy": (N,) bool, "sampled": (N,) bool}"""
    found = {}
    for name, temperature in (("greedy", 0), ("sampled", 1.0)):
        written = evaluation.generate(model, tokenizer, prompts, temperature, seed=SEED)
        found[name] = evaluation.verify_generations(prompts, written).good
    return found


# TRL has wrapped the adapter around the model by now; before a step it changes nothing.
base = evaluation.score_pairs(model, tokenizer, held_out, profile.max_length)
judged = {"base": good_answers(model)} if profile.data == "world" else {}
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
orpo = evaluation.score_pairs(trainer.model, tokenizer, held_out, profile.max_length)
for name, scores in (("base", base), ("ORPO", orpo)):
    print(f"{name}: preference accuracy {evaluation.estimate(scores.preferred)}")

# %% [markdown]
# The two intervals lie far apart, so here the verdict is easy.
# It is harder when they overlap, and "the intervals overlap" is *not* the test, as section 4 shows.
#
# ## 3. The same items, compared item by item
#
# Both models answered the same pairs, and some pairs are hard for any model.
# So look at what changed on each pair.
#
# **Predict.** Of the pairs, how many did ORPO win over the base? Did it lose any?

# %%
change = orpo.preferred.astype(int) - base.preferred.astype(int)
gained, lost = (change == 1).sum(), (change == -1).sum()
print(f"{gained} gained, {lost} lost, {(change == 0).sum()} unchanged")
print(f"McNemar's exact test: p = {stats.binomtest(gained, gained + lost).pvalue:.1e}")


# %% [markdown]
# McNemar's test asks: if neither model were better, each *changed* pair would be a coin toss.
# Unchanged pairs say nothing about the difference.
#
# The size of the difference gets its interval from a bootstrap that draws *pairs*, so both answers to a pair stay together.

# %%
def difference(first, second, axis=-1):
    return second.mean(axis) - first.mean(axis)


both = (base.preferred.astype(float), orpo.preferred.astype(float))
for paired in (False, True):
    interval = stats.bootstrap(
        both, difference, paired=paired, n_resamples=2000, rng=SEED
    ).confidence_interval
    print(
        f"paired {paired!s:5}: {difference(*both):+.3f} "
        f"[{interval.low:+.3f}, {interval.high:+.3f}]"
    )

# %% [markdown]
# Pairing hardly narrows this interval: what the base gets right says nearly nothing of what ORPO gets right.
# The closer two models are, the more it helps; section 4 measures how much.
#
# `evaluation.compare_paired` does both, the test and the interval. From here on it is imported.

# %%
comparison = evaluation.compare_paired(base.preferred, orpo.preferred)
assert (comparison.gained, comparison.lost) == (gained, lost)
assert comparison.difference.value == difference(*both)
print(comparison)

# %% [markdown]
# ## 4. How many pairs does pairing save?
#
# Base against ORPO is a landslide. The interesting contests are close ones:
# the recorded runs of SFT and of ORPO with β 0.1, on the same 420 prompts.
#
# The saving is a ratio of variances: that of two separate samples over that of the differences.
#
# **Predict.** For which measure does pairing save least: preference accuracy, greedy answers, or sampled answers?

# %%
BITS = {
    "preference accuracy": lambda run: run["preferred"],
    "good, greedy": lambda run: run["greedy"]["good_bits"],
    "good, sampled": lambda run: run["sampled"]["good_bits"],
}


def items(name, measure, seed=0):
    """(420,) 0 or 1: one entry a held-out prompt, of a recorded run."""
    return np.array([int(bit) for bit in BITS[measure](lab.recorded(name)[seed])])


def saving(first, second):
    return (first.var() + second.var()) / (second - first).var()


# %%
saved, table = {}, []
for measure in BITS:
    runs = [
        (items("SFT", measure, s), items("ORPO β 0.1", measure, s)) for s in range(3)
    ]
    saved[measure] = worth = [saving(*run) for run in runs]
    table.append({
        "measure": measure,
        "ORPO β 0.1 minus SFT, seed 0": str(evaluation.compare_paired(*runs[0])),
        "420 pairs compared pairwise are worth": f"{420 * np.mean(worth):.0f} "
        f"({420 * min(worth):.0f} to {420 * max(worth):.0f}, 3 seeds)",
    })  # fmt: skip
print(records.caption(records.load("lab_findings")))
pd.DataFrame(table).set_index("measure")

# %% [markdown]
# Greedily, both models stumble over the same few prompts, so pairing saves most.
# Sampled answers add dice of their own to every item, so on average it saves least, and the seeds disagree on how much.
# The last column counts pairs for *each* of two separate samples, and every one would have to be written by somebody.
#
# Can pairing turn a verdict? Two recorded methods that end close to each other:

# %%
close = ("ORPO β 0.1", "SFT, then DPO LR 3e-05")
for seed in range(3):
    scores = [items(name, "preference accuracy", seed) for name in close]
    each = [str(evaluation.estimate(values.astype(bool))) for values in scores]
    separate = stats.ttest_ind(*scores).pvalue
    print(
        f"seed {seed}: {each[0]} and {each[1]}, as separate samples p = {separate:.2f}"
    )
    print(f"        paired {evaluation.compare_paired(*scores)}")

# %% [markdown]
# On seed 0 the intervals overlap and a test for separate samples sees nothing, while the paired test does.
# So overlapping intervals do not show that two models are equal.
# But look at the other seeds before you call one *method* better: the verdict is about two trained models.
#
# ## 5. Greedy and sampled say different things
#
# Greedy decoding shows the model's favourite answer, sampling shows what it believes.
#
# **Predict.** SFT and ORPO with β 0.1, recorded: which of the two ways of decoding tells them apart?

# %%
if profile.data == "world":
    judged["ORPO"] = good_answers(trainer.model)
    for name in ("greedy", "sampled"):
        for method in ("base", "ORPO"):
            print(f"{method}, {name}: good {evaluation.estimate(judged[method][name])}")
else:
    print("would judge this run's answers, but a program can only judge the lab's")
for measure in ("good, greedy", "good, sampled"):
    result = evaluation.compare_paired(
        items("SFT", measure), items("ORPO β 0.1", measure)
    )
    print(f"recorded, ORPO - SFT, {measure}: {result}")

# %% [markdown]
# Asked for their favourite answer, SFT and ORPO are equally good; asked to sample, ORPO is better by a margin that no noise explains.
# SFT's favourite answers are fine and its distribution is not: it also learned the flaws in the chosen answers.
# This notebook's own run is short, so its greedy answers are still far from that level.
# Report both, and the temperature with them: a table that holds one of the two can prove either claim.
#
# ## 6. Prompts are one source of noise, seeds another
#
# An interval over prompts answers: what would *this model* do on other prompts?
# It does not answer: what would *this method* give if I trained again?

# %%
names = ["SFT", "ORPO β 0.5", "LoRA LR 0.003, β 0.5", "LoRA LR 0.001, β 0.5",
         "LoRA LR 0.001, β 1"]  # fmt: skip
fig, ax = plt.subplots(figsize=(7, 3), dpi=90)
results = [lab.over_seeds(lab.recorded(n), BITS["good, greedy"])[0] for n in names]
plots.estimates(ax, names, results, "", "")
for row, name in enumerate(names):
    seeds = [items(name, "good, greedy", seed).mean() for seed in range(3)]
    ax.plot(seeds, [row] * 3, "x", color="black", ms=7)
plots.tidy(
    ax,
    "Half-trained runs differ by seed far more than by prompt (3 seeds, n = 420)",
    "good, greedy: mean and 95 % interval over prompts; × single seeds",
    "",
)
plt.tight_layout()
plt.show()

# %% [markdown]
# *Figure: share of good greedy answers of five recorded methods. For fully trained methods the three seeds lie within or near the interval over prompts; for LoRA at a learning rate of 0.001 the crosses spread from about 0.2 to 0.7, far outside their narrow intervals.*

# %%
for name in names:
    seeds = [items(name, "good, greedy", seed).mean() for seed in range(3)]
    over_seeds = stats.ttest_1samp(seeds, 0).confidence_interval()
    over_prompts, _ = lab.over_seeds(lab.recorded(name), BITS["good, greedy"])
    print(
        f"{name:21s} prompts {over_prompts}  "
        f"seeds [{over_seeds.low:.2f}, {over_seeds.high:.2f}] (t, 2 degrees of freedom)"
    )


# %% [markdown]
# For the well-trained methods both kinds of noise are of one size.
# For the half-trained ones the interval over prompts is narrow and misleading: one seed of three came out far ahead.
# Three seeds that disagree so much tell next to nothing about the method's mean; the t interval even leaves the range from 0 to 1, which says the same.
#
# ## 7. What could this evaluation have seen?
#
# The *minimum detectable effect* is the difference that a test finds four times in five.
# For paired items it depends on how many items change at all.
#
# **Predict.** If 14 % of the pairs change, which difference can 420 pairs show?

# %%
def detectable(n, changed, power=0.8):
    """Smallest true difference that McNemar's test at 5 % finds with this power."""
    z_alpha, z_power = stats.norm.ppf(0.975), stats.norm.ppf(power)
    gap = np.linspace(0, changed, 2001)[1:]
    needed = (z_alpha * np.sqrt(changed) + z_power * np.sqrt(changed - gap**2)) ** 2
    enough = gap[needed / gap**2 <= n]
    return enough[0] if len(enough) else np.nan


def simulated_power(n, changed, gap, runs=2000):
    shares = [(changed + gap) / 2, (changed - gap) / 2, 1 - changed]
    gained, lost, _ = rng.multinomial(n, shares, runs).T
    # McNemar's exact test again: a coin is symmetric, so twice the smaller tail.
    p_values = 2 * stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5)
    return (p_values < 0.05).mean()


# %%
rows = []
for measure in ("preference accuracy", "good, sampled"):
    changed = np.mean(items("SFT", measure) != items("ORPO β 0.1", measure))
    for n in (10, 210, 420, 800):
        gap = detectable(n, changed)
        power = simulated_power(n, changed, gap) if gap == gap else np.nan
        rows.append(
            {
                "measure": measure,
                "pairs that change": f"{changed:.0%}",
                "n": n,
                "detectable difference": f"{gap:.3f}" if gap == gap else "none",
                "power, simulated": f"{power:.2f}" if gap == gap else "–",
            }
        )
pd.DataFrame(rows).set_index(["measure", "n"])

# %% [markdown]
# Ten pairs find nothing at all, and the simulation confirms the formula: about four in five, a little less because the exact test is cautious.
# Compute this table *before* the run; afterwards, "no significant difference" otherwise means nothing.
#
# One more trap: picking the best of many. Suppose that all methods are equally good.

# %%
methods = sorted({run["name"] for run in records.load("lab_findings")["runs"]})
best = rng.binomial(420, 0.5, size=(10_000, len(methods))).max(1) / 420
print(
    f"{len(methods)} equal methods, truth 0.50, n 420: "
    f"the best measures {best.mean():.3f}"
)

# %% [markdown]
# The winner of a sweep looks better than it is, so measure it again on pairs that the sweep did not use.
#
# ## 8. All recorded methods in one table
#
# Square brackets: 95 % interval over prompts. Round brackets: range over seeds.

# %%
print(records.caption(records.load("lab_findings")))
lab.summary(methods)

# %% [markdown]
# The failures are in it too: LoRA at 8e-06 and 8e-05 stands where the base stands.
# With untrained chat tokens the preference accuracy looks fine, and next to no answer is good:
# a single measure would have passed that model.
#
# ## 9. What about benchmarks?
#
# The article evaluated its model on four suites, 0-shot (TruthfulQA with its own fixed examples) and without a chat template.
# **These scores were published by others; nothing in this notebook measured them, and they come without intervals.**
#
# | model | average | AGIEval | GPT4All | TruthfulQA | BigBench |
# |---|---|---|---|---|---|
# | Llama-3-8B-Instruct | 51.34 | 41.22 | 69.86 | 51.65 | 42.64 |
# | OrpoLlama-3-8B, 1,000 pairs (the article's) | 46.76 | 31.56 | 70.19 | 48.11 | 37.17 |
# | Llama-3-8B, the base | 45.42 | 31.10 | 69.95 | 43.91 | 36.70 |
#
# Whether 46.76 against 45.42 is noise cannot be told from this table: it needs each question's result for both models, compared pairwise.
# This notebook does not run lm-evaluation-harness yet.
#
# ## Recap

# %%
rows = [
    {
        "method": name,
        "metric": "preference accuracy",
        "result": str(value),
        "n": value.n,
    }
    for name, value in (
        ("base", evaluation.estimate(base.preferred)),
        ("ORPO, 60 steps", evaluation.estimate(orpo.preferred)),
        ("ORPO minus base, paired", comparison.difference),
    )
]
rows += [
    {"method": name, "metric": f"good, {how}", "result": str(evaluation.estimate(good)),
     "n": len(good)}
    for name, found in judged.items() for how, good in found.items()
]  # fmt: skip
pd.DataFrame(rows).assign(seeds=1, profile=profile.name).set_index(["method", "metric"])

# %%
worth = np.mean(saved["preference accuracy"])
spread = [items("LoRA LR 0.001, β 1", "good, greedy", seed).mean() for seed in range(3)]
gain = comparison.difference
print(
    f"Finding: 60 steps gain {gain.value:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}] in "
    f"preference accuracy (n = {gain.n}, 1 seed); pairing is worth {worth:.1f} times "
    f"the pairs in a close contest; one setting's seeds span {min(spread):.2f} to "
    f"{max(spread):.2f}"
)

# %% [markdown]
# ## Exercises
#
# **5.1 · 10 min · ●○○** Three seeds gave three scores. Return the 95 % interval of their mean.

# %%
seed_interval = ...
checks.seed_interval(seed_interval)

# %%
checks.solution("5.1")

# %% [markdown]
# **5.2 · 15 min · ●●○** How many pairs does a paired comparison need?
# `changed` is the share of pairs on which the two models will differ, `difference` the true difference; two-sided at 5 %, power 80 %.

# %%
paired_pairs_needed = ...
checks.paired_pairs_needed(paired_pairs_needed)

# %%
checks.solution("5.2")

# %% [markdown]
# ## References
#
# - McNemar (1947), *Note on the sampling error of the difference between correlated proportions or percentages*.
# - Wilson (1927), *Probable inference, the law of succession, and statistical inference*.
# - Efron and Tibshirani (1993), *An Introduction to the Bootstrap*.
# - The article: *Fine-tune Llama 3 with ORPO* (April 2024), for the benchmark scores in section 9.
