# %% [markdown]
# # 06 · Is what I publish what I trained?
#
# {{badge}}
#
# **You will learn**
# to merge an adapter into the base that it was trained on,
# to let a release gate decide whether a folder may be published, and to know what it cannot see,
# and to publish the folder with a card that holds measured numbers only.
#
# **Time and hardware**: {{recorded}}.
#
# **You need** notebook 03 (NF4 and LoRA), notebook 04 (the run), notebook 05 (paired comparisons).
# Abbreviations are explained in the [glossary](00_start_here.ipynb#glossary).
# The appendices (a demo, llama.cpp, a server, other tools) can wait until you need them.
# No account: the upload is a dry run unless you ask for more.

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
import time

import pandas as pd

from course_utils import chat, evaluation, models, plots, publishing, recorded
from course_utils.data import mixing
from course_utils.exercises import checks
from course_utils.publishing import gate, merging
from course_utils.setup import places, profiles

SEED, START = 0, time.perf_counter()
SMALL = profile.name == "cpu"  # elsewhere a merged model is a folder of many GiB
print(f"profile {profile.name}: {reason}. Seed {SEED}")

# %% [markdown]
# ## 1. A short QLoRA run
#
# As in the article, the base lies in NF4 and the adapter is trained on top of it.
# bitsandbytes does this on a CPU as well, so every profile runs the same cell.

# %%
import matplotlib.pyplot as plt
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

pd.set_option("display.max_colwidth", None)

source, _ = models.resolve_model(profile)
dtype = models.compute_dtype(profile)
place = {"device_map": {"": 0}} if torch.cuda.is_available() else {}


# %%
def load_nf4():
    """The base, quantised afresh."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, quantization_config=quantization, **place
    )


# %%
from datasets import Dataset
from peft import LoraConfig, PeftModel

from course_utils.training import ORPOConfig, ORPOTrainer

STEPS = profile.steps(100)
tokenizer = AutoTokenizer.from_pretrained(source)
control_ids = chat.use_llama3_chat(tokenizer)
mix = mixing.build(profile.data, evaluation_pairs=profile.eval_pairs)
batch = profile.per_device_batch_size * profile.gradient_accumulation_steps

# %%
train, _ = chat.check_pairs(mix.train, tokenizer, profile.max_length, "drop")
held_out, _ = chat.check_pairs(mix.evaluation, tokenizer, profile.max_length, "drop")
train, held_out = train[: STEPS * batch], held_out[: profile.at_most(210)]
probes = [pair["prompt"] for pair in held_out[: profile.at_most(60)]]

# %%
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
adapter = LoraConfig(
    r=profile.lora_rank,
    lora_alpha=profile.lora_alpha,
    lora_dropout=0.0,
    target_modules=ATTENTION + MLP,
    task_type="CAUSAL_LM",
    trainable_token_indices={"embed_tokens": control_ids, "lm_head": control_ids},
)

# %%
config = ORPOConfig(
    beta=profile.beta,
    learning_rate=profile.learning_rate,
    optim=profile.optim,
    warmup_steps=min(10, STEPS // 2),
    max_steps=STEPS,
    logging_steps=min(5, STEPS),
    max_length=profile.max_length,
    seed=SEED,
    per_device_train_batch_size=profile.per_device_batch_size,
    gradient_accumulation_steps=profile.gradient_accumulation_steps,
    gradient_checkpointing=profile.gradient_checkpointing,
    bf16=profile.dtype == "bfloat16",
    fp16=profile.dtype == "float16",
    use_cpu=not torch.cuda.is_available(),
    save_strategy="no",
    output_dir="outputs/06/run",
    logging_nan_inf_filter=False,
    report_to="none",
    remove_unused_columns=False,
    disable_tqdm=True,
)

# %%
rows = Dataset.from_list(train).select_columns(["prompt", "chosen", "rejected"])
parts = {"processing_class": tokenizer, "peft_config": adapter}
trainer = ORPOTrainer(load_nf4(), config, train_dataset=rows, **parts)
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
trained = trainer.model.eval()

# %%
from pathlib import Path

from safetensors.torch import load_file

ADAPTER = Path("outputs/06/adapter")
trained.save_pretrained(ADAPTER)
tokenizer.save_pretrained(ADAPTER)
models.record_base(ADAPTER, source)  # so that it is merged into no other base

# %%
tensors = load_file(ADAPTER / "adapter_model.safetensors")
token_rows = {name: tuple(t.shape) for name, t in tensors.items() if "token" in name}
size = (ADAPTER / "adapter_model.safetensors").stat().st_size / 1e6
print(f"{len(tensors)} tensors, {size:.1f} MB; of these the chat tokens' rows:")
for name, shape in token_rows.items():
    print(f"  {shape} {name}")

# %% [markdown]
# The adapter holds the low-rank updates and, for both matrices, the rows of the three chat tokens.
# It is small because the vocabulary was never resized.
#
# ## 2. What is to be preserved?
#
# The model to publish is the one that was trained *and evaluated*: this adapter on this NF4 base.
# So its behaviour is written down first: its greedy answers to held-out prompts, and its logits along them.
# Then it can be freed, which is how an 8B model and its merge fit one card, one after the other.
#
# A comparison needs a unit: how far is the trained model from *itself*?
#
# **Predict.** The same weights, computed in other batches and with the kernels of evaluation instead of training: is the difference zero?

# %%
observed = gate.observe(trained, tokenizer, probes)
print("the trained model against itself:", observed.noise, sep="\n")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# It is not zero, even in `float32`.
# On CPUs with bf16 instructions, bitsandbytes evaluates NF4 layers in bf16 and trains them in float32; on a GPU, other batch sizes choose other kernels.
# This is the **noise floor**: a merge that stays at its height cannot be told from the trained model.
#
# </details>

# %%
import gc


def score(model):
    return evaluation.score_pairs(model, tokenizer, held_out, profile.max_length)


def free():
    """Give back the memory of models that no name holds any more."""
    gc.collect()
    torch.cuda.empty_cache()


# %%
scores = {"trained": score(trained)}
LOGGED = {"chosen": "logps/chosen", "rejected": "logps/rejected"}
LOGGED |= {"step": "step", "margin": "log_odds_chosen"}
logs = [log for log in trainer.state.log_history if "logps/chosen" in log]
curves = [{name: log[key] for name, key in LOGGED.items()} for log in logs]
del trained, trainer
free()

# %% [markdown]
# ## 3. Merged, but into what?
#
# A merge adds $\frac{\alpha}{r} B A$ to each weight $W$.
# But which $W$? While training, the adapter saw the NF4 rounding of the base, not the base itself.
#
# **Predict.** Rank them by their distance from the trained model: no merge at all, merged into the original base, into the dequantised NF4 base, and straight into the NF4 weights.

# %%
import warnings


def merge_into(base):
    with warnings.catch_warnings(record=True) as caught:
        merged = PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()
    for warning in caught:
        if "4-bit" in str(warning.message):
            print("PEFT warns:", warning.message)
    return merged


# %%
ways = {
    "no merge": lambda: PeftModel.from_pretrained(load_nf4(), ADAPTER),
    "dequantised NF4": lambda: merge_into(load_nf4().dequantize()),
    "the same, in bf16": lambda: merge_into(load_nf4().dequantize()).bfloat16(),
    "original base": lambda: merge_into(
        AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **place)
    ),
    "NF4 itself": lambda: merge_into(load_nf4()),
}
if dtype == torch.bfloat16:
    del ways["the same, in bf16"]  # it would be the one before it

# %%
distances = {}
for name, make in ways.items():
    candidate = make()
    distances[name] = gate.compare(observed, candidate)
    scores[name] = score(candidate)
    if name == "dequantised NF4":
        by_peft = {k: v.cpu() for k, v in candidate.state_dict().items()}
    del candidate
    free()

# %%
everything = {"noise floor": observed.noise} | distances
pd.DataFrame(
    {
        "way": name,
        "KL (nats per token)": f"{d.kl.value:.1e} [{d.kl.low:.1e}, {d.kl.high:.1e}]",
        "max |Δlogit|": f"{d.max_logit_difference:.2g}",
        "same next token": f"{d.same_next_token:.2%}",
        "same answers": str(d.same_answers),
    }
    for name, d in everything.items()
).set_index("way")

# %%
shown = {name: d.kl for name, d in distances.items() if d.kl.value > 0}
limit = max(gate.MAX_KL, 3 * observed.noise.kl.value)
over = [name for name, kl in shown.items() if kl.value > limit]
title = f"Over the limit: {' and '.join(over) or 'none'}"
title += f" (n = {observed.noise.n} answers, 1 seed)"

# %%
_, ax = plt.subplots(figsize=(6.4, 2.6), dpi=90)
below = "KL from the trained model, nats per token (95 % interval over prompts)"
plots.estimates(ax, list(shown), list(shown.values()), title, below)
ax.set_xscale("log")
ax.axvline(observed.noise.kl.value, color="#999999", ls=":", label="noise")
ax.axvline(limit, color="#999999", ls="--", label="limit")
ax.legend(frameon=False, fontsize=8)
plt.tight_layout()
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: KL of four or five ways from the trained model on a logarithmic axis, with 95 % intervals; a dotted line marks the noise, a dashed line the release gate's limit. The dequantised base lies at or below the noise, its bf16 copy between the lines; the original base and NF4 itself lie right of the limit.*
#
# The adapter belongs on the base that it was trained on: dequantised NF4.
# On the original base it is a slightly different model, and merged straight into NF4 the update itself is rounded to 4 bits.
# Storing the result in bf16 costs more than dequantising does, and stays below the limit.
# *No merge* is as good as it can be; it makes every user load NF4 and an adapter, and few servers do.
#
# </details>
#
# ### Is another model a worse model?

# %%
reference = scores["trained"]
print("trained          ", evaluation.estimate(reference.preferred))
for name in ways:
    change = evaluation.compare_paired(reference.preferred, scores[name].preferred)
    print(f"{name:17s} {evaluation.estimate(scores[name].preferred)}  change {change}")

# %% [markdown]
# Preference accuracy tells none of them apart at this n, even where greedy answers changed.
# The merge into the original base may be worse or better, for its weights were never rounded; it is *another* model than the one on trial, and the card would hold the wrong model's numbers.
# So a release needs both: the proof that it is the same, and a measurement of how good it is.
#
# ## 4. The same merge for 8B, one layer at a time
#
# `merge_and_unload` holds the whole model: at 8B 15 GiB of weights, before anything is computed.
# `merging.merge` reads a tensor, sends it through NF4 and back, adds its update in float32, writes it, and forgets it.

# %%
from course_utils.models import shards

FOLDER = Path("outputs/06/merged")
merging.merge(source, ADAPTER, FOLDER, tokenizer, nf4=True, dtype=dtype)

# %%
tolerance = {"atol": 1e-6 if dtype == torch.float32 else 1e-3, "rtol": 0.02}
here = "cuda" if torch.cuda.is_available() else "cpu"
streamed = shards.Reader(FOLDER)
for name, weight in by_peft.items():
    ours, theirs = streamed.read(name).to(here), weight.to(here)
    torch.testing.assert_close(ours, theirs, **tolerance)
del by_peft, ours, theirs
free()
print(sorted(path.name for path in FOLDER.iterdir()))
print("every tensor is that of PEFT's own merge")

# %% [markdown]
# On a twin of Llama 3 8B (random weights in its exact shape: it measures memory, not quality), this was recorded:

# %%
merges = recorded.load("merge_at_8b")["merges"]
for shape, merge in merges.items():
    print(f"{shape}: {merge['parameters']:,} parameters, {recorded.caption(merge)}")
pd.DataFrame(
    {
        "shape": shape,
        "way": way,
        "weights (GiB)": round(merge["weights_gib"], 2),
        "peak memory (GiB)": round(merge[way]["peak_gib"], 2),
        "CPU minutes": round(merge[way]["cpu_minutes"], 1),
    }
    for shape, merge in merges.items()
    for way in ("streamed", "whole")
    if way in merge
).set_index("shape")

# %%
eight = merges["llama3-8b"]
print(
    f"{eight['tensors_compared']} of its tensors were merged again by PEFT's own "
    f"layers: at most {eight['largest_error_in_steps']:.2f} steps of bf16 apart, "
    "which is the rounding of the result"
)

# %% [markdown]
# Held whole, the merge grows with its weights; streamed, it does not grow with depth: the largest single tensor, a vocabulary's table, sets the peak.
# So 8B is merged in the memory of an ordinary laptop, where the whole model in 16 bit would leave no room to work.
#
# ## 5. The release gate
#
# Whoever downloads the folder has no object of this notebook, only files.
# So the gate takes the folder: it reads the files, then has a *new* Python process run them with nothing but their own defaults, and compares that with what was observed.
#
# First a folder as `save_pretrained` leaves it after a merge.
#
# **Predict.** Weights, tokenizer and template are saved. What can be missing?

# %%
if SMALL:
    PLAIN = Path("outputs/06/plain")
    plain = merge_into(load_nf4().dequantize())
    plain.save_pretrained(PLAIN)
    tokenizer.save_pretrained(PLAIN)
    del plain
    print(gate.release_gate(observed, PLAIN, tokenizer, "notebook 06"))
else:
    print("would write the whole model once more, and be refused for what follows")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Nothing in the weights is wrong, yet the folder's generation config still holds the *base's* end token.
# Its answers would run on after the end of the turn, in every program that reads this file.
# In memory it never showed, because a notebook passes the end token by hand.
#
# </details>
#
# Now a faulty merge: everything is saved well, but into the original base.

# %%
verdicts = {}
if SMALL:
    OTHER = Path("outputs/06/other")
    merging.merge(source, ADAPTER, OTHER, tokenizer, nf4=False, dtype=dtype)
    refused = gate.release_gate(observed, OTHER, tokenizer, "notebook 06")
    verdicts["original base"] = refused
    print(refused)
else:
    print(
        "would write the whole model once more and show it to the gate; in memory, "
        "section 3:",
        distances["original base"],
        sep="\n",
    )

# %% [markdown]
# And the folder from section 4.

# %%
passing = gate.release_gate(observed, FOLDER, tokenizer, "notebook 06")
verdicts["dequantised NF4"] = passing
print(passing)

# %% [markdown]
# ### How the limits are set
#
# Two considerations set the limit of the KL, and the larger one counts.
# *What matters*: $10^{-4}$ nats per token change an answer of 100 tokens by a hundredth of a nat; no reader could notice.
# *What can be seen*: three times the noise floor, because a distance below the noise proves nothing.
# If the noise itself is too large, nothing can be proved, and the gate refuses.
#
# ### Why does the merge lie so far below the noise floor?
#
# The merge is at $10^{-13}$ or less, and the noise is about $10^{-6}$ on CPUs with bf16 instructions.
# The observation was computed as training computes: each NF4 weight is unpacked to float32 and multiplied in float32.
# The merged folder holds exactly these unpacked weights in float32, so it repeats the same arithmetic in nearly the same order.
# The noise floor is the distance between *two ways* of computing the trained model: bitsandbytes' evaluation kernel rounds to bf16 there, its training kernel does not.
# So the merge is nearer to the trained model than the trained model's own evaluation is. On a GPU, or stored in bf16, it rises to the floor.
#
# ### What can the gate not see?
#
# A gate compares behaviour on a few prompts. Change one single weight of the folder and see from which size on that shows.
#
# **Predict.** One weight of 3.5 million is moved by 0.001, by 1, by 50, and set to NaN. Which of these does the gate refuse?

# %%
import json
import shutil

from safetensors.torch import save_file

TAMPERED, WEIGHT = Path("outputs/06/tampered"), "model.layers.2.mlp.down_proj.weight"


def tampered(change):
    """The gate's verdict on the folder with one weight moved by `change`."""
    shutil.rmtree(TAMPERED, ignore_errors=True)
    shutil.copytree(FOLDER, TAMPERED)
    file = TAMPERED / "model.safetensors"
    tensors = load_file(file)
    tensors[WEIGHT][0, 0] += change
    save_file(tensors, file, metadata={"format": "pt"})
    return gate.release_gate(observed, TAMPERED, tokenizer, "notebook 06, tampered")


# %%
def what_it_saw(verdict):
    d, failed = verdict.distance, [c.name for c in verdict.checks if not c.passed]
    same_files = gate.fingerprint(TAMPERED) == gate.fingerprint(FOLDER)
    return {
        "KL (nats per token)": f"{d.kl.value:.1e}" if d else "not run",
        "max |Δlogit|": f"{d.max_logit_difference:.2g}" if d else "not run",
        "same answers": f"{d.same_answers.value:.2f}" if d else "not run",
        "refused by": ", ".join(failed) or "nothing: passed",
        "file hash": "same" if same_files else "differs",
    }


# %%
saw = {}
if SMALL:
    for change in (1e-3, 1.0, 50.0, float("nan")):
        saw[f"one weight {change:+g}"] = what_it_saw(tampered(change))
else:
    print("would copy a folder of many GiB four times; runs on the small model")
pd.DataFrame(saw).T

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# A change of 0.001 in one weight changes no answer: by *behaviour* the folder is the model that was trained, and the gate says so, rightly.
# It is not the same *file*, and only a hash says that. So the gate's record keeps the hash of every file that it saw, and the upload compares (section 8).
# Between the two lies what nobody can see: a change that shows on other prompts than these. Behind 60 equal answers up to 4.9 % of all prompts can hide (95 %); exercise 6.3 computes it for any n.
#
# </details>
#
# | question | answered by |
# |---|---|
# | Is it the very file that was checked? | the hash |
# | Are the weights numbers, and complete? | the checks of the files |
# | Does it answer like the trained model, on these prompts? | KL, logits, greedy answers |
# | Does it on *all* prompts? | nothing; more prompts narrow it |
# | Is it a good model? | an evaluation (section 6) |
#
# ### What if the token rows get lost?
#
# Recipes of 2024 added chat tokens by resizing, and some saved adapters without the new rows.
# Here is the same loss by hand.
#
# **Predict.** Which measure shows it: KL, greedy answers, end of turn, or all?

# %%
ROWLESS = Path("outputs/06/without_rows")
shutil.copytree(ADAPTER, ROWLESS, dirs_exist_ok=True)
kept = {name: t for name, t in tensors.items() if name not in token_rows}
save_file(kept, ROWLESS / "adapter_model.safetensors", metadata={"format": "pt"})
try:
    PeftModel.from_pretrained(load_nf4(), ROWLESS)
except KeyError as error:
    print("PEFT refuses: there is no", error)
else:
    raise AssertionError("PEFT should have missed the token rows")
free()

# %%
settings = json.loads((ROWLESS / "adapter_config.json").read_text("utf-8"))
settings["trainable_token_indices"] = None  # as if they had never been trained
(ROWLESS / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
rowless = PeftModel.from_pretrained(load_nf4(), ROWLESS)
distances["adapter without token rows"] = gate.compare(observed, rowless)
del rowless
free()

# %%
lost = distances["adapter without token rows"]
print(lost)
stops = lost.stop_is_argmax
print(
    "end of turn is the argmax after an answer:",
    "the trained model ends none" if stops is None else f"{stops:.0%}",
)

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# On the lab, all of them: without its rows the model has no end of turn that it could choose.
#
# </details>
#
# ## 6. Evaluate the model that you publish
#
# The gate says *equal enough*. The numbers on the card should still be those of the folder.

# %%
published = AutoModelForCausalLM.from_pretrained(FOLDER, **place)
scores["published"] = score(published)
good = []
if profile.data == "world":
    answers = evaluation.generate(published, tokenizer, probes, temperature=0)
    right = evaluation.verify_generations(probes, answers).good
    good = [evaluation.estimate(right)]
    print("good answers, greedy:", good[0])
else:
    print("Good answers: only the small world has a verifier; see notebook 05.")
del published
free()
print("preference accuracy: ", evaluation.estimate(scores["published"].preferred))

# %% [markdown]
# ## 7. A card that cannot boast
#
# The card is made from JSON of measured values, and from the gate's record; nobody types a number into it.
# First the name: Meta's licence asks that a distributed derivative's name begins with "Llama 3".

# %%
for name in ("OrpoLlama-3-8B", "Llama-3-8B-ORPO"):
    try:
        print("allowed:", publishing.check_name(name, "meta-llama/Meta-Llama-3-8B"))
    except ValueError as error:
        print("refused:", error)

# %%
from dataclasses import asdict

is_hub = profiles.is_hub_id(profile.base_model)
base_name = profile.base_model if is_hub else f"folder {Path(source).name}"
terms = publishing.terms_for(base_name)  # of its licence, if it is a Llama 3

# %%
TOLD = ("beta", "learning_rate", "max_steps", "max_length", "seed")
settings = {key: getattr(config, key) for key in TOLD}
settings |= {"lora_rank": adapter.r, "lora_alpha": adapter.lora_alpha, "base": "NF4"}
results = {
    "name": "your-name/" + ("Llama-3-ORPO-short" if terms else "orpo-lab-short"),
    "base_model": base_name,
    "license": terms.hub_id if terms else "apache-2.0",
    "data": {
        "description": f"Preference pairs from {profile.data}, by source.",
        "sources": publishing.describe_sources(train, profile.data),
        "pairs": len(train),
    },
    "settings": settings,
    "curves": curves,
    "run": recorded.describe_run("notebook 06", START),
    "limits": "A short run for teaching: see the intervals before using it.",
}

# %%
results["evaluation"] = [
    {"model": name, "metric": "preference accuracy", **asdict(accuracy), "seeds": 1}
    for name, s in (("trained", reference), ("merged", scores["published"]))
    for accuracy in [evaluation.estimate(s.preferred)]
] + [
    {"model": "merged", "metric": "good answers, greedy", **asdict(share), "seeds": 1}
    for share in good
]

# %%
publishing.write_card(results, FOLDER, base=source if terms else None)
card = (FOLDER / "README.md").read_text(encoding="utf-8")
print(card[card.index("## Data") : card.index("## Cost")])

# %% [markdown]
# ## 8. Upload, dry by default
#
# `SEND = True`, and a token with write access, would create a *private* repository, send these files, and compare the hub's hashes with them.
# A cut connection is resumed with `into_existing=True`; the course's tests run the hub's own client against a stand-in that refuses tokens and drops connections.

# %%
SEND = False
try:
    print(publishing.upload(FOLDER, send=SEND))
except ValueError as error:
    if passing.passed:
        raise
    print("not sent:", error)


# %% [markdown]
# The gate's record holds for the files it saw.
#
# **Predict.** One weight is changed after the gate has passed. Will it be sent?

# %%
def flip_last_bit(path):
    """Change the last bit of a file; a second call changes it back."""
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


# %%
weights = sorted(FOLDER.glob("*.safetensors"))[-1]
flip_last_bit(weights)
try:
    publishing.upload(FOLDER, send=SEND)
except ValueError as error:
    print("refused:", error)
else:
    raise AssertionError("a changed model must not be published")
finally:
    flip_last_bit(weights)

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# It is refused. The record holds the hash of every file, and one bit changes a hash.
# The gate judged what the model *does*; the hash makes sure that this is the model it judged.
#
# </details>
#
# ## Recap

# %%
word = {True: "passed", False: "refused"}
table = pd.DataFrame(
    {
        "method": name,
        "metric": "KL (nats per token)",
        "value": f"{d.kl.value:.1e}",
        "95 % interval": f"[{d.kl.low:.1e}, {d.kl.high:.1e}]",
        "n answers": d.n,
        "tokens": d.tokens,
        "seeds": 1,
        "profile": profile.name,
        "gate": word[verdicts[name].passed] if name in verdicts else "not asked",
    }
    for name, d in ({"noise floor": observed.noise} | distances).items()
).set_index("method")
table

# %%
into_base, into_nf4 = distances["original base"], passing.distance
ends = {True: " and passes the gate", False: " and is refused"}
said = {name: ends[verdict.passed] for name, verdict in verdicts.items()}
print(
    f"Finding: merged into the dequantised base, the folder read by a new process is "
    f"{into_nf4.kl.value:.0e} nats per token from the trained model (noise "
    f"{observed.noise.kl.value:.0e}, n = {into_nf4.n})"
    + said["dequantised NF4"]
    + f"; merged into the original base it is {into_base.kl.value:.0e}"
    + said.get("original base", "")
)

# %% [markdown]
# **Now you can** merge an adapter, prove that a folder is the model you trained, and publish it with honest numbers.
# **Next you need** speed: notebook 07. Or take the recipe with you: notebook 08.

# %% [markdown]
# ## Appendix A. A demo: a Gradio Space
#
# A Space is a repository with an `app.py`; the hub builds it and serves it.
# `space.write` makes the folder, ready to push.

# %%
from course_utils.publishing import space

if profile.data == "world":
    single = [p for p in probes if len(p) == 1]
    examples = [prompt[0]["content"] for prompt in single[:3]]
else:
    examples = ["Name three rivers.", "What is 47 + 38?"]
print(
    space.write(
        "outputs/06/space", results["name"], base_name, results["license"], examples
    )
)
print((Path("outputs/06/space") / "README.md").read_text(encoding="utf-8"))

# %% [markdown]
# It was started on the lab's model, and a browser without a screen visited it, typed seven questions and read the answers from the page.
# The small world's verifier judged them:

# %%
visits = recorded.load("space")
print(recorded.caption(visits))
pd.DataFrame(visits["visits"]).set_index("question")

# %%
from IPython.display import Image, display

display(Image(places.PACKAGE / "recorded" / "space.png", width=560))

# %% [markdown]
# *Figure: screenshot of the Space's page in a browser: the title, a question in a bubble, the model's answer below it, and the box to type in.*
#
# ## Appendix B. One file for llama.cpp: GGUF
#
# Laptops run models through llama.cpp and the programs around it (Ollama, LM Studio), which read one GGUF file.
# Two things must be right, and neither raises an error if it is wrong:
# the rows of queries and keys are ordered for another way to compute RoPE, and the file must say by *name* how text is split before the tokenizer's merges.

# %%
import gguf

from course_utils.publishing import export

WRITE = SMALL  # set True for a larger model: an 8B's file has 15 GiB
GGUF = Path("outputs/06/model.gguf")
KEYS = (
    "general.architecture",
    "llama.block_count",
    "llama.rope.freq_base",
    "tokenizer.ggml.pre",
    "tokenizer.ggml.eos_token_id",
)

# %%
if WRITE:
    size = export.to_gguf(FOLDER, GGUF, "float16")
    read = gguf.GGUFReader(GGUF)
    fields = {name: field.contents() for name, field in read.fields.items()}
    print(f"{size / 1e6:,.1f} MB, {len(read.tensors)} tensors")
    print(*(f"  {key:32s} {fields[key]}" for key in KEYS), sep="\n")
else:
    print(f"would write {GGUF}, as large as the merged model")

# %% [markdown]
# With real Llama 3 weights use llama.cpp's own converter and quantiser. *Not run here: they need a clone of llama.cpp, built with CMake.*
#
# ```bash
# git clone https://github.com/ggml-org/llama.cpp && pip install -r llama.cpp/requirements.txt
# cmake -S llama.cpp -B llama.cpp/build && cmake --build llama.cpp/build --target llama-quantize llama-cli
# python llama.cpp/convert_hf_to_gguf.py outputs/06/merged --outfile model-bf16.gguf --outtype bf16
# llama.cpp/build/bin/llama-quantize model-bf16.gguf model-Q4_K_M.gguf Q4_K_M
# llama.cpp/build/bin/llama-cli -m model-Q4_K_M.gguf -cnv
# ```
#
# The converter recognises a tokenizer by a hash of its tokens, so it refuses the lab's; the course's own `export.to_gguf` above writes that one.
# A file in Q4_K_M is rounded anew, by another code than NF4: evaluate the file that you give away.
#
# llama.cpp's Python binding compiles for some minutes, so its answers are recorded:
#
# **Predict.** Which file answers most like the merged model: float32, float16 or bfloat16?

# %%
of_files = recorded.load("gguf")
print(recorded.caption(of_files))
pd.DataFrame(
    {
        "file": file["dtype"],
        "MB": round(file["bytes"] / 1e6, 1),
        "same tokens read": f"{file['same_prompt_tokens']:.0%}",
        "same greedy answers": str(
            evaluation.Estimate(**file["distance"]["same_answers"])
        ),
        "KL (nats per token)": f"{file['distance']['kl']['value']:.1e}",
        "n": file["distance"]["n"],
    }
    for file in of_files["files"]
).set_index("file")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# All of them answer alike; the KL tells them apart.
# The float32 file is the model, to the noise of another program's arithmetic, and float16 keeps three bits more of each weight than bfloat16.
# `python tests/benchmarks/compare_gguf.py FOLDER` repeats it where `llama-cpp-python` is installed.
#
# </details>
#
# ## Appendix C. A server that speaks OpenAI's protocol
#
# vLLM serves a folder, or a repository of the hub, on a GPU. *This was not run here: the options are those of its documentation.*
#
# ```
# pip install vllm
# vllm serve your-name/Llama-3-8B-ORPO --served-model-name orpo --dtype auto \
#     --max-model-len 8192 --api-key choose-a-secret
# ```
#
# ```python
# from openai import OpenAI
#
# client = OpenAI(base_url="http://localhost:8000/v1", api_key="choose-a-secret")
# question = [{"role": "user", "content": "What is 47 + 38?"}]
# answer = client.chat.completions.create(model="orpo", messages=question, temperature=0)
# print(answer.choices[0].message.content)
# ```
#
# It takes the chat template from the tokenizer and refuses to chat without one; and it applies the folder's `generation_config.json`, so an end of turn that is missing there is missing in every answer.
# Both are checks of the gate.
# A model of 8B in bf16 needs 15 GiB for its weights alone: on a 24 GB card, lower `--max-model-len` until the rest fits.
#
# ## Appendix D. The same run elsewhere
#
# Axolotl and LLaMA-Factory train ORPO too, from a configuration file.
# These are made from this notebook's settings and pairs; the comments in each say what its tool does differently.

# %%
from course_utils.publishing import elsewhere

paths = [
    elsewhere.axolotl(profile, train, "outputs/06/axolotl", control_ids, STEPS),
    elsewhere.llama_factory(profile, train, "outputs/06/llama_factory", STEPS),
]
for path in paths:
    text = path.read_text(encoding="utf-8").replace(str(source), Path(source).name)
    lines = text.splitlines()
    print(f"{path.name}, {len(lines)} lines:", *lines[:14], "…", "", sep="\n")

# %% [markdown]
# **Predict.** The same model, the same eight pairs, the same β. Do the tools report the same loss?

# %%
base = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **place).eval()
pd.DataFrame(
    elsewhere.loss_by_definition(
        base, tokenizer, held_out[:8], profile.max_length, profile.beta
    )
).set_index("definition").round(3)

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Three definitions, one model: `because` says what changes from row to row.
#
# </details>
#
# Both tools were asked themselves, in environments of their own; recorded, on another batch of eight:

# %%
asked = recorded.load("elsewhere")
print(recorded.caption(asked))
columns = ["implementation", "loss", "nll", "preference", "definition"]
pd.DataFrame(asked["losses"])[columns].set_index("implementation").round(4)

# %%
pd.DataFrame(
    {
        "tool": tool,
        "mistake in the file": mistake,
        "refused": "yes" if said["refused"] else "NO",
    }
    for tool in ("axolotl", "llama_factory")
    for mistake, said in asked[tool]["wrong configurations"].items()
).set_index("tool")


# %% [markdown]
# A loss is comparable within one tool only; compare models by what they do, as in notebook 05.
# And a misspelt key can pass without a word: read the log for what the tool made of the file.

# %% [markdown]
# ## Exercises
#
# A check says in words what is not right yet. Stuck? `checks.hint("6.5")`, and once more for a stronger hint.
# The cell below each exercise folds both hints and a tested solution.
#
# **6.1 · 10 min · ●○○** Merge one layer by hand.

# %%
def merged_weight(
    weight: torch.Tensor, lora_a: torch.Tensor, lora_b: torch.Tensor, alpha: float
) -> torch.Tensor:
    """Merged weight (out, in) of `weight` (out, in), A (r, in) and B (out, r)."""
    ...


checks.merged_weight(merged_weight)

# %%
checks.solution("6.1")


# %% [markdown]
# **6.2 · 10 min · ●●○** How far is the merged model from the trained one?

# %%
def mean_kl(trained_logits: torch.Tensor, merged_logits: torch.Tensor) -> float:
    """KL in nats, mean over tokens, of logits (tokens, vocabulary)."""
    ...


checks.mean_kl(mean_kl)

# %%
checks.solution("6.2")


# %% [markdown]
# **6.3 · 10 min · ●●○** All n greedy answers agreed. Which share of prompts can still have another answer?
# What is it for the gate's n?

# %%
def hidden_share(n: int) -> float:
    """The largest share with which 5 of 100 trials of n prompts show no difference."""
    ...


checks.hidden_share(hidden_share)

# %%
checks.solution("6.3")


# %% [markdown]
# **6.4 · 15 min · ●●●** Bring the rows of a query matrix into llama.cpp's order.
# transformers rotates row $i$ of a head together with row $i + d/2$; llama.cpp rotates rows $2i$ and $2i + 1$.

# %%
def rotation_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """`weight` (heads * d, in) with its rows as llama.cpp wants them."""
    ...


checks.rotation_order(rotation_order)

# %%
checks.solution("6.4")

# %% [markdown]
# ## Hunts
#
# A hunt is a recipe that runs, looks fine and is wrong. Below is what a user reports; find the cause, then change the recipe.
# The check runs it small and judges what it does, so any right repair passes. The second cell shows the recipe at work: look there first.
#
# **Hunt 6.5 · 20 min · ●●○** "In my notebook the model answers and stops. Whoever downloads it gets an answer, then another user's turn, then another answer, without end. The hash of the weights is the same."

# %%
from transformers import AutoTokenizer


def publish(model, tokenizer, base_folder, folder):
    """Write a folder from which a stranger gets the answers that were evaluated, with
    `from_pretrained` and `generate` alone. `tokenizer` is the one of the training.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    # Training changed no token, so the base's tokenizer is the right one.
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(folder)


checks.hunt_rambles_elsewhere(publish)

# %%
tiny, tiny_tokenizer, base_folder = checks.material("6.5")
publish(tiny, tiny_tokenizer, base_folder, "outputs/06/hunt/published")
print(sorted(path.name for path in Path("outputs/06/hunt/published").iterdir()))

# %%
checks.solution("6.5")

# %% [markdown]
# **Hunt 6.6 · 15 min · ●●○** "I trained three adapters on one base, with three learning rates, and merged them all. The gate passes one folder and refuses the two others. Before the merge each of them was fine."

# %%
from peft import PeftModel
from transformers import AutoModelForCausalLM


def merge_each(base_folder, adapter_folders, folder):
    """Write one merged model per adapter, in `folder` under the adapter's own name.
    Every adapter was trained on the base in `base_folder`.
    """
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    for adapter in adapter_folders:
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
        merged.save_pretrained(Path(folder) / adapter.name)


checks.hunt_refused_merges(merge_each)

# %%
swept_base, swept = checks.material("6.6")
merge_each(swept_base, swept, "outputs/06/sweep/merged")

# %%
ids = torch.arange(50)[None]
for adapter in swept:
    base = AutoModelForCausalLM.from_pretrained(swept_base)
    as_trained = PeftModel.from_pretrained(base, adapter)(ids).logits
    folder = Path("outputs/06/sweep/merged") / adapter.name
    as_merged = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    apart = (as_merged - as_trained).abs().max()
    print(f"{adapter.name:7s} max |Δlogit| between merged and trained: {apart:.1g}")

# %%
checks.solution("6.6")

# %% [markdown]
# ## Five questions
#
# Put a letter for each `...`; the cell then says whether it is right, and why.
# Or unfold the answers, once you have your own.

# %%
answers = {1: ..., 2: ..., 3: ..., 4: ..., 5: ...}
checks.quiz("06", answers)

# %% [markdown]
# ## References
#
# - Hu et al. (2021), *LoRA*, arXiv:2106.09685; Dettmers et al. (2023), *QLoRA*, arXiv:2305.14314.
# - PEFT's issues #2321 and #1043, TRL's issue #1324: conflicting advice on merging into a quantised base.
# - Meta Llama 3 Community License (18 April 2024), section 1.b: name, notice, copy of the agreement.
# - The GGUF format and `convert_hf_to_gguf.py`: github.com/ggml-org/llama.cpp. vLLM's *OpenAI-Compatible Server*: docs.vllm.ai.
