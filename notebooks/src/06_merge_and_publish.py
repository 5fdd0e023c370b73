# %% [markdown]
# # 06 · Is what I publish what I trained?
#
# {{badge}}
#
# **You will learn**
# to merge an adapter into the base that it was trained on,
# to prove that the merged model is the one you evaluated, down to a new process that reads the saved folder,
# and to write a model card and an upload that hold measured facts only.
#
# **Time and hardware**: {{recorded}}.
# This form holds the trained and the merged model at once: at 8B that takes the `a100` profile.
#
# **You need** notebook 03 (NF4 and LoRA), notebook 04 (the run), notebook 05 (paired comparisons).
# No account: the upload is a dry run unless you ask for more.

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
import time
import matplotlib.pyplot as plt
import pandas as pd

from course_utils import chat, checks, evaluation, mixing, models, plots
from course_utils import publishing, records

SEED, START = 0, time.perf_counter()
print(f"profile {profile.name}: {reason}. Seed {SEED}")

# %% [markdown]
# ## 1. A short QLoRA run
#
# As in the article, the base lies in NF4 and the adapter is trained on top of it.
# bitsandbytes does this on a CPU as well, so every profile runs the same cell.

# %%
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

pd.set_option("display.max_colwidth", None)

source, _ = models.reachable_source(profile)
dtype = models.compute_dtype(profile)
place = {"device_map": {"": 0}} if torch.cuda.is_available() else {}


def load_nf4():
    """The base, quantised afresh."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip
    return AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, quantization_config=quantization, **place
    )


# %%
from datasets import Dataset
from peft import LoraConfig, PeftModel
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

STEPS = 60
tokenizer = AutoTokenizer.from_pretrained(source)
control_ids = chat.use_llama3_chat(tokenizer)
mix = mixing.build(profile.data, evaluation_pairs=profile.eval_pairs)
batch = profile.per_device_batch_size * profile.gradient_accumulation_steps
train, _ = chat.check_pairs(mix.train, tokenizer, profile.max_length, "drop")
held_out, _ = chat.check_pairs(mix.evaluation, tokenizer, profile.max_length, "drop")
train, held_out = train[: STEPS * batch], held_out[:210]
probes = [pair["prompt"] for pair in held_out[:40]]

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
    use_cpu=profile.name == "cpu", output_dir="outputs/06/run", save_strategy="no",
    logging_nan_inf_filter=False, remove_unused_columns=False, report_to="none",
    disable_tqdm=True,
)  # fmt: skip
rows = Dataset.from_list(train).select_columns(["prompt", "chosen", "rejected"])
trainer = ORPOTrainer(
    load_nf4(), config, train_dataset=rows, processing_class=tokenizer,
    peft_config=adapter,
)  # fmt: skip
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
trained = trainer.model.eval()
trained.save_pretrained("outputs/06/adapter")

# %%
from pathlib import Path

from safetensors.torch import load_file

ADAPTER = Path("outputs/06/adapter")
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
# ## 2. Merged, but into what?
#
# A merge adds $\frac{\alpha}{r} B A$ to each weight $W$.
# But which $W$? While training, the adapter saw the NF4 rounding of the base, not the base itself.
#
# **Predict.** Rank three merges by how far they move the model:
# into the original base, into the dequantised NF4 base, straight into the NF4 weights.

# %%
import copy
import warnings


def merge_into(base):
    with warnings.catch_warnings(record=True) as caught:
        merged = PeftModel.from_pretrained(base, ADAPTER).merge_and_unload()
    for warning in caught:
        if "4-bit" in str(warning.message):
            print("PEFT warns:", warning.message)
    return merged


bases = {
    "dequantised NF4": lambda: load_nf4().dequantize(),
    "original base": lambda: AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, **place
    ),
    "NF4 itself": load_nf4,
}
proofs, scores = {}, {"trained": evaluation.score_pairs(
    trained, tokenizer, held_out, profile.max_length)}  # fmt: skip
for name, load in bases.items():
    candidate = merge_into(load())
    proofs[name] = publishing.prove_equal(trained, candidate, tokenizer, probes)
    scores[name] = evaluation.score_pairs(
        candidate, tokenizer, held_out, profile.max_length
    )
    if name == "dequantised NF4":
        merged = candidate

# %%
half = "dequantised NF4, in bf16"
proofs[half] = publishing.prove_equal(
    trained, copy.deepcopy(merged).to(torch.bfloat16), tokenizer, probes
)
pd.DataFrame(
    {
        "merged into": name,
        "KL (nats a token)": f"{proof.kl:.1e}",
        "max |Δlogit|": f"{proof.max_logit_difference:.2f}",
        "same greedy answer": f"{proof.greedy_agreement:.0%}",
        "refused because": "; ".join(proof.failures) or "–",
    }
    for name, proof in proofs.items()
).set_index("merged into")

# %%
fig, ax = plt.subplots(figsize=(6, 2.6), dpi=90)
ax.plot([p.kl for p in proofs.values()], list(proofs), "o", color="black")
ax.axvline(publishing.MAX_KL, color=plots.COLOURS["base"], ls="--")
ax.set_xscale("log")
ax.invert_yaxis()
n = proofs[half].n
plots.tidy(
    ax,
    f"Only the dequantised base passes the limit (n = {n} answers, 1 seed)",
    "KL(trained || merged), nats a token; dashed: the limit",
    "",
)
plt.tight_layout()
plt.show()

# %% [markdown]
# *Figure: KL of each merge against the trained model on a logarithmic axis; the merge into the dequantised NF4 base lies well left of the dashed limit, the same in bf16 closer to it, and the merges into the original base and into NF4 itself lie far right of it.*
#
# The adapter belongs on the base that it was trained on: dequantised NF4.
# On the original base it is a slightly different model, and merged straight into NF4 the update itself is rounded to 4 bits.
# Storing the result in bf16 costs more than dequantising does, and stays below the limit.
#
# Why is the best merge not exact?
#
# **Predict.** Is the rest an error of the merge, or of the model it is compared with?

# %%
again = PeftModel.from_pretrained(load_nf4(), ADAPTER)
ids = torch.tensor([chat.tokenize_pair(tokenizer, held_out[0], 256).chosen_input_ids])
for mode in ("training", "evaluation"):
    again.train(mode == "training")  # no dropout: only the kernels may differ
    with torch.no_grad():
        gap = again(ids.to(again.device)).logits - merged(ids.to(merged.device)).logits
    print(f"trained model in {mode} mode, against the merge: {gap.abs().max():.1e}")

# %% [markdown]
# On CPUs with bf16 instructions, bitsandbytes evaluates NF4 layers in bf16 and trains them in float32, so the two modes differ.
# The merge reproduces what was *trained*; what differs is the kernel with which it was *evaluated*.
# On other machines both numbers are tiny.
#
# ## 3. Will the folder stop?
#
# Whoever downloads the folder has no object of this notebook, only files.
# So the proof starts a new Python process, which reads the folder and answers the same prompts.
#
# **Predict.** Weights, tokenizer and template are saved. Will the answers be the same?

# %%
FOLDER = Path("outputs/06/merged")


def save_and_prove(model):
    model.save_pretrained(FOLDER)
    tokenizer.save_pretrained(FOLDER)
    return publishing.prove_equal(trained, model, tokenizer, probes, folder=FOLDER)


print(save_and_prove(merged))
print(
    "generation config: ends at",
    merged.generation_config.eos_token_id,
    "but the turn ends with",
    tokenizer.eos_token_id,
)

# %% [markdown]
# Nothing in the weights is wrong, and not one answer agrees: the folder's generation config still holds the *base's* end token.
# Its answers run on after the end of the turn, in every program that reads this file.
# In memory it never showed, because this notebook passes the end token by hand.

# %%
merged.generation_config.eos_token_id = tokenizer.eos_token_id
merged.generation_config.pad_token_id = tokenizer.pad_token_id
merged.config.eos_token_id = tokenizer.eos_token_id
proof = save_and_prove(merged)
print(proof)

# %% [markdown]
# ## 4. What if the token rows get lost?
#
# Recipes of 2024 added chat tokens by resizing, and some saved adapters without the new rows.
# Here is the same loss by hand.
#
# **Predict.** Which check fails: KL, greedy answers, end token, or all?

# %%
import json
import shutil

from safetensors.torch import save_file

complete, ADAPTER = ADAPTER, Path("outputs/06/without_rows")
shutil.copytree(complete, ADAPTER, dirs_exist_ok=True)
kept = {name: t for name, t in tensors.items() if name not in token_rows}
save_file(kept, ADAPTER / "adapter_model.safetensors", metadata={"format": "pt"})
try:
    merge_into(load_nf4().dequantize())
except KeyError as error:
    print("PEFT refuses: there is no", error)
else:
    raise AssertionError("PEFT should have missed the token rows")

# %%
settings = json.loads((ADAPTER / "adapter_config.json").read_text())
settings["trainable_token_indices"] = None  # as if they had never been trained
(ADAPTER / "adapter_config.json").write_text(json.dumps(settings))
without = publishing.prove_equal(
    trained, merge_into(load_nf4().dequantize()), tokenizer, probes
)
ADAPTER = complete
print(without)

# %% [markdown]
# All of them: without its rows the model has no end token it could choose, and the KL is far beyond the limit.
#
# ## 5. Evaluate the model that you publish
#
# The proof says *equal enough*. The numbers on the card should still be those of the merged model.

# %%
scores["merged"] = evaluation.score_pairs(
    merged, tokenizer, held_out, profile.max_length
)
reference = scores.pop("trained")
print("trained        ", evaluation.estimate(reference.preferred))
for name in ("merged", "original base", "NF4 itself"):
    change = evaluation.compare_paired(reference.preferred, scores[name].preferred)
    print(f"{name:15s} {evaluation.estimate(scores[name].preferred)}  change {change}")

# %% [markdown]
# Preference accuracy does not see any of it: it changes on a few pairs at most, even where more than a tenth of the greedy answers changed.
# The merge into the original base is not *worse* on this measure, it is *another model* than the one on trial.
# So a release needs both: the proof that it is the same, and a measurement of how good it is.
#
# ## 6. A card that cannot boast
#
# The card is made from one JSON file of measured values; nobody types a number into it.
# First the name: Meta's licence asks that a distributed derivative's name begins with "Llama 3".

# %%
for name in ("OrpoLlama-3-8B", "Llama-3-8B-ORPO"):
    try:
        print("allowed:", publishing.check_name(name, "meta-llama/Meta-Llama-3-8B"))
    except ValueError as error:
        print("refused:", error)

# %%
from collections import Counter
from dataclasses import asdict

is_hub = profiles.is_hub_id(profile.base_model)
base_name = profile.base_model if is_hub else f"folder {Path(source).name}"
llama3 = publishing.is_llama3(base_name)
results = {
    "name": "your-name/" + ("Llama-3-ORPO-short" if llama3 else "orpo-lab-short"),
    "base_model": base_name,
    "license": "llama3" if llama3 else "apache-2.0",
    "data": {"description": f"Preference pairs from {profile.data}, by source.",
             "sources": dict(Counter(pair["source"] for pair in train))},
    "settings": {key: getattr(config, key) for key in (
        "beta", "learning_rate", "max_steps", "max_length", "seed")}
    | {"lora_rank": adapter.r, "lora_alpha": adapter.lora_alpha, "base weights": "NF4"},
    "evaluation": [
        {"model": name, "metric": "preference accuracy", **asdict(accuracy), "seeds": 1}
        for name, s in (("trained", reference), ("merged", scores["merged"]))
        for accuracy in [evaluation.estimate(s.preferred)]
    ],
    "proof": asdict(proof),
    "run": records.describe_run("notebook 06", START),
    "limits": "A short run for teaching: see the intervals before using it.",
}  # fmt: skip
publishing.write_card(results, FOLDER)
print((FOLDER / "README.md").read_text()[:1800])

# %% [markdown]
# ## 7. Upload, dry by default
#
# `SEND = True` and a token in the environment variable `HF_TOKEN` would create a *private* repository and send these files.

# %%
SEND = False
print(publishing.upload(FOLDER, send=SEND))

# %% [markdown]
# A failed proof cannot be sent, not even by hand.

# %%
publishing.write_card(results | {"proof": asdict(without)}, FOLDER)
try:
    publishing.upload(FOLDER, send=SEND)
except ValueError as error:
    print("refused:", error)
else:
    raise AssertionError("a failed proof must not be published")
publishing.write_card(results, FOLDER)

# %% [markdown]
# Not in this form yet: merging 8B within 16 GB of memory, GGUF, a demo Space, and an upload tested against a stand-in hub.
#
# ## Recap

# %%
everything = proofs | {"published folder": proof, "adapter without token rows": without}
pd.DataFrame(
    {"method": name, "metric": "KL (nats a token)", "value": f"{p.kl:.1e}",
     "n answers": p.n, "tokens": p.answer_tokens, "seeds": 1, "profile": profile.name,
     "verdict": "passed" if p.passed else "refused"}
    for name, p in everything.items()
).set_index("method")  # fmt: skip

# %%
into_base = proofs["original base"]
print(
    f"Finding: merged into the dequantised base, the model moves by a KL of "
    f"{proof.kl:.0e} nats a token and a new process repeats "
    f"{proof.reloaded_agreement:.0%} of its answers "
    f"(n = {proof.n}); into the original base it is {into_base.kl:.0e} and "
    f"{into_base.greedy_agreement:.0%} of the answers stay"
)

# %% [markdown]
# ## Exercises
#
# **6.1 · 10 min · ●○○** Merge one layer by hand: `merged_weight(weight, lora_a, lora_b, alpha)`,
# with shapes (out, in), (r, in) and (out, r).

# %%
merged_weight = ...
checks.merged_weight(merged_weight)

# %%
checks.solution("6.1")

# %% [markdown]
# **6.2 · 10 min · ●●○** Write `mean_kl(trained_logits, merged_logits)`: nats, mean over tokens; both are (tokens, vocabulary).

# %%
mean_kl = ...
checks.mean_kl(mean_kl)

# %%
checks.solution("6.2")

# %% [markdown]
# ## References
#
# - Hu et al. (2021), *LoRA*, arXiv:2106.09685; Dettmers et al. (2023), *QLoRA*, arXiv:2305.14314.
# - PEFT's issue #2321 and #1043, TRL's issue #1324: conflicting advice on merging into a quantised base.
# - Meta Llama 3 Community License (18 April 2024), section 1.b: name, notice, copy of the agreement.
