# %% [markdown]
# # 08 · What do I copy for my own model?
#
# {{badge}}
#
# **You will learn**
# to run ORPO from raw pairs to a published model with one page of plain Hugging Face code,
# to name the reason for every setting,
# and to change the settings that your own model, data and card need.
#
# **Time and hardware**: {{recorded}}.
# On a GPU it trains Llama 3 8B; without one, the course's small model.
#
# **You need** notebooks 02 to 06, or the will to look up a reason there.
# The code cells use no part of the course's package, so you can take them with you.
#
# TRL calls its ORPO experimental: a later release may lack it. Then import `ORPOConfig` and `ORPOTrainer` from `course_utils.training`, which give the same results.

# %% tags=["colab"]
import sys

if "google.colab" in sys.modules:
    # %pip install -q trl==1.16.0 peft bitsandbytes

# %%
import logging
import warnings

logging.disable(logging.WARNING)  # this page is for reading: delete these three lines
warnings.filterwarnings("ignore")  # to see what the libraries say
import pandas as pd
import torch
import transformers as hf
from datasets import load_dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

hf.logging.set_verbosity_error()
GPU = torch.cuda.is_available()
print(f"training on {torch.cuda.get_device_name() if GPU else 'the CPU'}, seed 42")

# %% [markdown]
# ## 1. What, from where, to where
#
# Only this cell is about your machine.
# In a clone of the course without a GPU it takes the small model and its pairs; they also serve as a rehearsal on a GPU, with `COURSE_DATA=world`.

# %%
import os
from pathlib import Path

REPO = ""  # "your-name/Llama-3-8B-ORPO" publishes; empty keeps it on this disk
OUT = Path("outputs/08")
clone = [p for p in Path.cwd().resolve().parents if (p / "course_utils").is_dir()]
small = bool(clone) and (not GPU or os.environ.get("COURSE_DATA") == "world")
lab = str(clone[0] / "course_utils/lab/base_model") if clone else ""
BASE = lab if small and not GPU else "NousResearch/Meta-Llama-3-8B"
BASE = os.environ.get("COURSE_BASE_MODEL", BASE)
PAIRS = {"path": "mlabonne/orpo-dpo-mix-40k"}  # what load_dataset takes
if small:
    PAIRS = {"path": "json", "data_files": str(clone[0] / "notebooks/pairs.jsonl")}
TRAIN, TEST = (500, 100) if small else (2000, 800)  # 04, section 2: ten say nothing
LEARNING_RATE = 3e-3 if not GPU else 8e-5  # 04, section 7: ten times the full rate
MAX_LENGTH = 256 if small else 1024  # 03, section 6: memory grows with it
DTYPE = torch.bfloat16 if GPU else torch.float32  # 03, section 9: T4 needs float16
PLACE = {"": 0 if GPU else "cpu"}

# %% [markdown]
# ## 2. The recipe
#
# From `load_dataset` to `push_to_hub` these are 80 lines of code, without imports, comments and prints. (A test counts them.)
#
# ### Pairs

# %%
rows = load_dataset(**PAIRS, split="train").shuffle(seed=0)  # mixes come sorted (02)
rows = rows.filter(lambda row: row["source"] != "toxic-dpo-v0.2")  # 02, section 1


def to_pair(row):  # messages, not strings: else the prompt counts twice (04, 4.1)
    answers = {side: row[side][-1:] for side in ("chosen", "rejected")}
    # The column `prompt` holds the first turn only (02, section 2).
    return {"prompt": row["chosen"][:-1], **answers}


pairs = rows.map(to_pair, remove_columns=rows.column_names)
# A question in both train and test is a leak (02, section 7), so each stays once,
# whatever its spaces and capitals (02, hunt 2.5).
asked = pd.Series(map(str, pairs["prompt"])).str.lower().str.split().str.join(" ")
pairs = pairs.select((~asked.duplicated()).to_numpy().nonzero()[0])

# %% [markdown]
# ### Tokens

# %%
tokenizer = AutoTokenizer.from_pretrained(BASE)
tokenizer.chat_template = (  # Llama 3's own format; a base model ships none
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
tokenizer.eos_token = "<|eot_id|>"  # ends a turn; the base's ends a text (04, 4.6)
tokenizer.pad_token = "<|reserved_special_token_0|>"  # pad = eos hides the end (04, 7)
control = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
control = tokenizer.convert_tokens_to_ids(control)


# %%
def is_usable(row):
    sides = [row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]
    ids = tokenizer.apply_chat_template(sides, return_dict=True)["input_ids"]
    # Equal answers teach nothing (02, section 5); a prompt that fills max_length gives
    # NaN (04, 4.5).
    return row["chosen"] != row["rejected"] and max(map(len, ids)) < MAX_LENGTH


pairs = pairs.filter(is_usable)
test = pairs.select(range(TEST))
train = pairs.select(range(TEST, min(TEST + TRAIN, len(pairs))))
print(f"{len(train)} pairs to train, {len(test)} to test")


# %% [markdown]
# ### Model and adapter

# %%
def load_nf4():  # 03, sections 3 and 4: 8B in about 6 GiB
    four_bit = hf.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPE,
    )
    return AutoModelForCausalLM.from_pretrained(
        BASE, quantization_config=four_bit, dtype=DTYPE, device_map=PLACE
    )


# %%
adapter = LoraConfig(
    r=16,
    lora_alpha=32,  # 03, section 2
    # no dropout: TRL would switch it off (04, section 4.4)
    # 03, section 8: all linear layers, those of attention and of the MLP
    target_modules="q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split(),
    trainable_token_indices={"embed_tokens": control, "lm_head": control},  # 04, 4.3
    task_type="CAUSAL_LM",
)

# %% [markdown]
# ### Training

# %%
config = ORPOConfig(
    output_dir=str(OUT / "run"),
    learning_rate=LEARNING_RATE,
    beta=0.5 if small else 0.1,  # 04, sections 3 and 7
    max_length=MAX_LENGTH,
    num_train_epochs=2 if small else 1,
    warmup_steps=10,
    per_device_train_batch_size=2,  # 03, section 6: logits are the peak
    gradient_accumulation_steps=4,  # 8 pairs per step
    per_device_eval_batch_size=2,
    optim="paged_adamw_8bit" if GPU else "adamw_torch",  # 03, section 5
    bf16=GPU,
    use_cpu=not GPU,
    logging_nan_inf_filter=False,  # show NaN instead of 0.0 (04, 4.5)
    save_steps=50,  # resume with trainer.train(resume_from_checkpoint=True)
)

# %%
data = {"train_dataset": train, "eval_dataset": test}
trainer = ORPOTrainer(
    load_nf4(), config, **data, processing_class=tokenizer, peft_config=adapter
)
for weight in trainer.model.parameters():
    if weight.requires_grad:
        weight.data = weight.data.float()  # 03, section 9: bf16 loses small steps

# %%
trainer.train()
accuracy = trainer.evaluate()["eval_rewards/accuracies"]
half = 1.96 * (accuracy * (1 - accuracy) / len(test)) ** 0.5  # 05, section 3
print(f"preference accuracy {accuracy:.2f} ± {half:.2f}, n = {len(test)}")

# %% [markdown]
# ### Merge, save, publish
#
# The adapter was trained on the NF4 rounding of the base, so it is merged into exactly that (06, section 3).

# %%
trainer.save_model(str(OUT / "adapter"))
del trainer
torch.cuda.empty_cache()  # does nothing without a GPU
merged = PeftModel.from_pretrained(load_nf4().dequantize(), str(OUT / "adapter"))
merged = merged.merge_and_unload().to(torch.bfloat16)

# %%
ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
merged.generation_config.update(**ends)  # with the base's, answers would never stop
for part in (merged, tokenizer):  # weights, config, generation config; tokens, template
    part.save_pretrained(OUT / "merged")
    if REPO:  # with a token: `hf auth login`, or the variable HF_TOKEN
        part.push_to_hub(REPO, private=True)  # a name beginning with Llama-3 (06, 7)

# %% [markdown]
# ## 3. Is it what I trained?
#
# The shortest check: load the folder, as a stranger would, and ask. The model in memory goes first, so that one card holds the other.
#
# **Predict.** No end token is passed here. Will the answers end?

# %%
del merged
torch.cuda.empty_cache()
model = AutoModelForCausalLM.from_pretrained(
    OUT / "merged", dtype=DTYPE, device_map=PLACE
)
reader = AutoTokenizer.from_pretrained(OUT / "merged")
form = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}

# %%
for row in test.select(range(3)):
    prompt = reader.apply_chat_template(row["prompt"], **form).to(model.device)
    written = model.generate(**prompt, max_new_tokens=64, do_sample=False)[0]
    answer = written[prompt["input_ids"].shape[1] :]
    print("asked:   ", row["prompt"][-1]["content"])
    print("answered:", reader.decode(answer, skip_special_tokens=True))
    ended = answer[-1].item() == reader.eos_token_id
    print("ended" if ended else "did not end within 64 tokens")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# They end because the token rows were trained, and because `generation_config.json` names the right end token.
# Three answers are an anecdote: notebook 06's release gate compares the folder with the trained model, token by token, and notebook 05 says how good it is.
#
# </details>
#
# ## 4. Faster, with two other lines
#
# The course's own trainer gives the same loss in less time and memory (notebook 07 measures both). It takes the same configuration:
#
# ```python
# from course_utils.training.fast import PackedORPOTrainer  # instead of TRL's import
#
# trainer = PackedORPOTrainer(load_nf4(), config, …)  # instead of ORPOTrainer(…)
# ```
#
# ## Recap

# %%
row = {
    "model": Path(BASE).name,
    "preference accuracy": f"{accuracy:.2f} ± {half:.2f}",
    "n": len(test),
    "training pairs": len(train),
    "seeds": 1,
    "published": REPO or "no",
}
pd.DataFrame([row]).set_index("model")

# %%
print(
    f"Finding: one page of plain code trains on {len(train)} pairs to a preference "
    f"accuracy of {accuracy:.2f} ± {half:.2f} (n = {len(test)})"
)

# %% [markdown]
# On the small model this is a short run: 500 pairs, half of what notebook 04 trains on. There the base stands near a coin's 0.5, and the trained model near 0.9.
#
# What this page leaves out: curves on held-out pairs (04), paired comparisons (05), the release gate, the model card and the licence's terms (06).
#
# **Now you can** train, save and publish a model of your own.
# **Next you need** your own pairs: notebook 02, section 14, adds a source.
#
# ## References
#
# - Labonne (2024), *Fine-tune Llama 3 with ORPO*: the recipe that this page repairs.
# - Hong, Lee, Thorne (2024), *ORPO*, arXiv:2403.07691.
