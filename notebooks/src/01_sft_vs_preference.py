# %% [markdown]
# # 01 · What does SFT do to the answers you did not want?
#
# {{badge}}
#
# **You will learn**
# to derive ORPO's loss, and to say why it needs odds and no reference model,
# to compute it by hand and prove it equal to a trainer's,
# and to read the log-probabilities of chosen and rejected answers in SFT, DPO and ORPO runs.
#
# **Time and hardware**: {{recorded}}.
# The experiment uses the lab's small model in every profile, so it needs no GPU.
#
# **You need** logarithms, softmax, and the idea of a gradient.
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

# This notebook needs nothing from the hub.
profile, reason = start.begin(offline=True)
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

from course_utils import chat, evaluation, lab, orpo, plots, recorded
from course_utils.data import mixing
from course_utils.exercises import checks

SEED = 0
print(f"profile {profile.name}: {reason}. Model here: the lab's, seed {SEED}")

# %% [markdown]
# ## 1. The loss in four steps
#
# ### Step 1: what SFT leaves out
#
# A model gives an answer of $m$ tokens the probability $\prod_t p(y_t \mid x, y_{<t})$.
# That number shrinks with every token, so we take the *mean* [log-probability](00_start_here.ipynb#logprob) per token,
# $\log P = \frac{1}{m}\sum_t \log p(y_t \mid x, y_{<t})$, and call its exponential $P$.
# SFT's loss is the [NLL](00_start_here.ipynb#nll), $-\log P_w$ of the chosen answer ($w$ as in *winner*).
# The rejected answer ($l$ as in *loser*) does not occur in it.
#
# **Predict.** One small step of SFT on a chosen answer: what happens to the log-prob of the rejected answer to the same prompt?

# %%
mix = mixing.build()
base, tokenizer = lab.load_base()
initial = {name: weight.clone() for name, weight in base.state_dict().items()}


def log_prob(pair, side):
    """Mean log-prob per token of one answer, (1,)."""
    row = chat.tokenize_pair(tokenizer, pair, 256)
    ids = torch.tensor([getattr(row, f"{side}_input_ids")])
    labels = torch.tensor([getattr(row, f"{side}_labels")])
    return orpo.mean_logps(base(ids).logits, labels)


def one_step(pair, loss):
    """How far one small step moves the log-probs: (chosen, rejected)."""
    base.load_state_dict(initial)
    base.zero_grad()
    before = log_prob(pair, "chosen"), log_prob(pair, "rejected")
    loss(*before).sum().backward()
    with torch.no_grad():
        for weight in base.parameters():
            weight -= 0.02 * weight.grad
        after = log_prob(pair, "chosen"), log_prob(pair, "rejected")
    return [(new - old).item() for new, old in zip(after, before, strict=True)]


# %%
pairs = [mix.train[i] for i in range(24)]
moves = np.array([one_step(pair, lambda chosen, _: -chosen) for pair in pairs])
chosen_moved, rejected_moved = (evaluation.estimate(side) for side in moves.T)
print(f"one step of SFT, mean over {len(pairs)} pairs, nats per token:")
print(f"chosen {chosen_moved.value:+.3f}, rejected {rejected_moved.value:+.3f}")
print(f"the rejected answer rose in {(moves[:, 1] > 0).mean():.0%} of the pairs")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# It rises too, because the two answers share most of their words and their voice.
# SFT cannot keep the rejected answer back, because nothing in its loss mentions it.
#
# </details>
#
# ### Step 2: compare, and know when to stop
#
# So add a term that compares: it should be small where the chosen answer is clearly ahead.
# The plain difference $\log P_l - \log P_w$ has no end: it rewards pushing $P_l$ down for ever.
# $-\log\sigma(\text{lead})$ has one: when the lead is large, its gradient goes to 0.

# %%
lead = torch.tensor([-2.0, 0.0, 2.0, 6.0], requires_grad=True)
term = -torch.nn.functional.logsigmoid(lead)
(gradient,) = torch.autograd.grad(term.sum(), lead)
for x, g in zip(lead.tolist(), gradient.tolist(), strict=True):
    print(f"lead {x:+.0f}: plain difference pulls with -1.000, this term with {g:+.3f}")

# %% [markdown]
# ### Step 3: an anchor
#
# A lead is a difference, and a difference does not notice when both answers sink.
# [DPO](00_start_here.ipynb#dpo) measures both answers from where a frozen copy of the model, the *reference*, has them:
# $-\log\sigma\left(\beta\,[(\log P_w - \log P_w^{\text{ref}}) - (\log P_l - \log P_l^{\text{ref}})]\right)$.
# (DPO sums log-probs over the tokens; the mean shows the same thing.)
# ORPO keeps the NLL in its loss.
#
# **Predict.** Both answers become less likely by 2 nats per token. Which of the two losses notices?

# %%
reference_lead = 0.0  # the frozen copy finds both answers equally likely
for chosen, rejected in ((-0.2, -0.5), (-2.2, -2.5)):
    c, r = torch.tensor([chosen]), torch.tensor([rejected])
    dpo = -torch.nn.functional.logsigmoid(c - r - reference_lead)
    full = orpo.orpo_loss(-c.mean(), c, r, beta=1.0)
    print(f"log P {chosen}, {rejected}: DPO {dpo.item():.3f}, ORPO {full.item():.3f}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# DPO's value is the same: its reference says where to *start* measuring, and a small learning rate keeps the model near it.
# In ORPO the NLL pays for every nat that the chosen answer loses.
# The NLL is the anchor, so ORPO needs no second model.
# That is also why ORPO can start from the base: the NLL is SFT, in the same stage.
#
# </details>
#
# ### Step 4: why odds?
#
# What should the lead be: a difference of log-probs, or something else?
# A log-prob can rise to 0 at most. When a model is good, both answers are close to that end, and their difference is small whatever it means.
# The **odds** $P / (1 - P)$ have no such end: how much likelier the answer's tokens are than everything else.
#
# **Predict.** At $P = 0.5$ the odds are 1. What are they at $P = 0.9$, and at $P = 0.99$?

# %%
P = torch.tensor([0.1, 0.5, 0.9, 0.99])
logps = P.log()
log_odds = logps - torch.log1p(-logps.exp())
for p, lp, lo in zip(P, logps, log_odds, strict=True):
    print(f"P {p:.2f}  log P {lp:+.3f}  odds {lo.exp():7.3f}  log-odds {lo:+.3f}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# From 0.9 to 0.99 the log-probability hardly moves, and the odds grow elevenfold. <!-- measured -->
# The log-odds keep telling apart answers that both look near certain.
#
# </details>
#
# The **odds ratio** compares the chosen answer with the rejected one,
# and ORPO's preference term is $-\log\sigma(\log \mathrm{OR})$.
#
# **Predict.** Chosen and rejected are equally likely. What is the term? Write it down.

# %%
equal = torch.tensor([-0.7])
term = orpo.odds_ratio_loss(equal, equal)
print(f"term at equal log-probs: {term.item():.6f}, log 2 = {np.log(2):.6f}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# $\log 2$: a coin toss, in nats.
# A run whose preference term stays at 0.693 has not learned to tell the answers apart.
#
# </details>
#
# ### Odds ratio or probability ratio? The paper's argument
#
# The paper's Figure 6 draws $P_w$ and $P_l$ at random and compares two ways to contrast them.

# %%
rng = np.random.default_rng(SEED)
x1, x2 = rng.uniform(size=(2, 50_000))
contrasts = {
    "probability ratio, β 0.2": 0.2 * (np.log(x1) - np.log(x2)),
    "probability ratio, β 1": np.log(x1) - np.log(x2),
    "odds ratio": np.log(x1 / (1 - x1)) - np.log(x2 / (1 - x2)),
}
fig, ax = plt.subplots(figsize=(6, 3), dpi=90)
for (name, values), style in zip(contrasts.items(), (":", "--", "-"), strict=True):
    ax.hist(
        values,
        bins=np.linspace(-8, 8, 161),
        density=True,
        histtype="step",
        linestyle=style,
        label=f"{name}: s.d. {values.std():.2f}",
    )
ax.legend(frameon=False, fontsize=8)
plots.tidy(
    ax,
    "The odds ratio spreads wider than the probability ratio (50,000 draws)",
    "contrast (nats)",
    "density",
)
plt.show()


# %% [markdown]
# *Figure: three histograms centred on 0; the probability ratio is a narrow peak at β 0.2 and wider at β 1, the odds ratio is widest.*
#
# The standard deviations agree with the exact ones, $\sqrt{2}\beta$ and $\pi\sqrt{2/3} \approx 2.57$.
# To reach the same margin, the narrow contrast has to push the rejected answer much further down.
# The paper's words for it: the probability ratio discriminates the disfavoured answers too extremely.

# %% [markdown]
# ## 2. The loss in thirty lines
#
# ORPO adds the preference term to ordinary supervised learning: $L = L_{\text{NLL}} + \beta \cdot L_{\text{OR}}$.
# The paper calls the weight $\lambda$, TRL calls it `beta`.

# %%
def log1mexp(x):
    """log(1 - exp(x)) for x < 0, with all its digits."""
    near_zero = x > -np.log(2)
    safe = torch.where(near_zero, -1.0, x)  # the unused branch must not give inf * 0
    near = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    return torch.where(near_zero, near, torch.log1p(-safe.exp()))


def token_logps(logits, labels):
    """Log-prob of every label. (B, T, V), (B, T) -> (B, T-1)"""
    logps = logits[:, :-1].log_softmax(-1)
    targets = labels[:, 1:].clamp(min=0)  # -100 marks tokens that are not scored
    return logps.gather(-1, targets[..., None])[..., 0]


def mean_over_labels(values, labels):
    scored = labels[:, 1:] != -100
    return (values * scored).sum(-1) / scored.sum(-1)


def my_orpo_loss(nll, chosen, rejected, beta):
    log_odds_ratio = chosen - log1mexp(chosen) - (rejected - log1mexp(rejected))
    return nll - beta * torch.nn.functional.logsigmoid(log_odds_ratio).mean()


# %% [markdown]
# Why `log1mexp` and not `log(1 - exp(x))`?
# A sure answer has a log-prob near 0, where float32 loses the difference from 1.

# %%
sure = torch.tensor([-1e-3, -1e-6, -1e-8])
print("naive ", torch.log(1 - sure.exp()).tolist())
print("stable", log1mexp(sure).tolist())

# %% [markdown]
# The naive version reaches $-\infty$, and its gradient is not a number.
#
# Now a real batch, made by the course's plain trainer from four pairs of its mix.
# That trainer stands on `transformers.Trainer` alone, and computes what TRL 1.16's computes: the tests hold it to a record of TRL's tokens, losses and fifty steps.
# (TRL's own ORPO is recorded here, not run: it is experimental, and may leave TRL in any release.)

# %%
from course_utils.training import ORPOConfig, ORPOTrainer

base, tokenizer = lab.load_base()  # afresh: section 1 moved its weights
common = dict(
    output_dir="outputs/01",
    max_length=256,
    report_to="none",
    disable_tqdm=True,
    bf16=False,
    gradient_checkpointing=False,
    use_cpu=True,
    seed=SEED,
    data_seed=SEED,
)
trainer = ORPOTrainer(
    base,
    ORPOConfig(
        beta=0.1, per_device_train_batch_size=4, remove_unused_columns=False, **common
    ),
    train_dataset=mix.train.select(range(4)),
    processing_class=tokenizer,
)
batch = next(iter(trainer.get_train_dataloader()))
print({name: tuple(value.shape) for name, value in batch.items() if "labels" in name})


# %% [markdown]
# **Predict.** Over which tokens does the trainer, like TRL, take the NLL: the answer's, or the prompt's too?

# %%
def my_loss_on(batch, beta, prompt_too):
    ids, labels = batch["chosen_input_ids"], batch["chosen_labels"]
    mask = batch["chosen_attention_mask"]
    logits = base(input_ids=ids, attention_mask=mask).logits
    nll_labels = ids.masked_fill(mask == 0, -100) if prompt_too else labels
    scored = nll_labels[:, 1:] != -100
    nll = -(token_logps(logits, nll_labels) * scored).sum() / scored.sum()
    chosen = mean_over_labels(token_logps(logits, labels), labels)
    ids, labels = batch["rejected_input_ids"], batch["rejected_labels"]
    logits = base(input_ids=ids, attention_mask=batch["rejected_attention_mask"]).logits
    rejected = mean_over_labels(token_logps(logits, labels), labels)
    return my_orpo_loss(nll, chosen, rejected, beta), chosen, rejected


with torch.no_grad():
    theirs, _ = trainer.get_batch_loss_metrics(base, batch)
    for prompt_too in (True, False):
        mine, chosen, rejected = my_loss_on(batch, 0.1, prompt_too)
        where = "prompt and answer" if prompt_too else "answer only"
        print(f"NLL over {where:17s}: mine {mine:.6f}, trainer {theirs:.6f}")

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# Over both: as in TRL the model learns to write the user's turn as well, on purpose, while the paper's formula takes the answer alone.
# `ORPOConfig(nll_scope="answer")` is the paper's.
# Everything else agrees; here is the proof, also for the package's own functions.
#
# </details>

# %%
with torch.no_grad():
    mine, chosen, rejected = my_loss_on(batch, 0.1, prompt_too=True)
torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
nll = (
    mine
    + 0.1
    * torch.nn.functional.logsigmoid(
        orpo.log_odds(chosen) - orpo.log_odds(rejected)
    ).mean()
)
package = orpo.orpo_loss(nll, chosen, rejected, beta=0.1)
torch.testing.assert_close(package, theirs, atol=1e-5, rtol=1e-5)
print(f"largest difference to the trainer: {abs(mine - theirs):.1e} nats")


# %% [markdown]
# ## 3. What the gradient does
#
# The paper writes the gradient of the preference term as a product.
# $\delta = 1 / (1 + \mathrm{OR})$ says how wrong the model still is;
# $h = \frac{\nabla \log P_w}{1-P_w} - \frac{\nabla \log P_l}{1-P_l}$ says where to go.
# With the minus sign of the loss, the gradient is $-\delta \cdot h$; the paper's equation 8 leaves that sign out.
#
# **Predict.** The factor $1/(1-P)$: is the push stronger for unlikely answers or for likely ones?

# %%
def gradient_on_chosen(p_chosen, p_rejected):
    """Prints δ, the factor 1/(1-P), and minus their product: the gradient."""
    chosen = torch.tensor(p_chosen).log().requires_grad_()
    rejected = torch.tensor(p_rejected).log()
    orpo.odds_ratio_loss(chosen, rejected).sum().backward()
    delta = orpo.gradient_delta(chosen, rejected).detach()
    factor = 1 / (1 - chosen.exp().detach())
    torch.testing.assert_close(chosen.grad, -delta * factor)
    for row in zip(p_chosen, p_rejected, delta, factor, chosen.grad, strict=True):
        print("P {:.2f}, {:.2f}: δ {:.3f}, 1/(1-P) {:5.2f}, grad {:+.3f}".format(*row))


gradient_on_chosen([0.10, 0.50, 0.90], [0.10, 0.50, 0.90])

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# All three pairs are level, so δ is one half in each.
# The factor grows with $P$, and so does the push: where the model is sure of *both* answers, it is pushed hardest.
# The paper says that the factor amplifies the gradient where the likelihood is *low*; the formula says the opposite.
# The gradient on the chosen log-prob is negative, so descent raises it.
#
# </details>
#
# **Predict.** Now the rejected answer stays at $P = 0.8$, and the chosen one improves from 0.1 to 0.99. Does the push grow with the factor, or fall with δ?

# %%
gradient_on_chosen([0.10, 0.50, 0.80, 0.90, 0.99], [0.80] * 5)

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# It stays between 1 and 5 although the factor becomes 100: δ falls nearly as fast as the factor grows.
# The product is $-1 / \left((1-P_w) + P_w \frac{1-P_l}{P_l}\right)$, so $P_l$ sets its limit: $P_l/(1-P_l)$, here 4.
# (At $P_l = 0.5$ the two cancel exactly, and every gradient is −1.)
# So the term *switches off* only in the log odds ratio; what is left of a push on one log-prob depends on both answers.
#
# </details>

# %%
log_or = torch.linspace(-6, 6, 200)
fig, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=90)
axes[0].plot(log_or, 1 / (1 + log_or.exp()), color="black")
plots.tidy(axes[0], "δ: the term switches itself off", "log odds ratio (nats)", "δ")
p = torch.linspace(0.01, 0.97, 200)
axes[1].plot(p, 1 / (1 - p), color="black")
plots.tidy(axes[1], "1/(1-P): the factor grows with P", "P", "factor in h")
plt.tight_layout()
plt.show()

# %% [markdown]
# *Figure: left, δ falls from 1 to 0 as the log odds ratio grows, one half at 0; right, the factor 1/(1-P) rises slowly, then steeply near P = 1. The gradient is the product of the two.*

# %% [markdown]
# ## 4. The experiment: SFT, DPO, ORPO
#
# The lab's base model has read as much gossip as truth and as many rude speakers as polite ones.
# In each training pair the chosen answer is the better one, but often still flawed.
# Whether an answer is *good* (true, polite, without rambling, ended) is checked by program.
#
# **Predict.** SFT sees only chosen answers. What happens to the log-prob of the *rejected* ones: falls, stays, rises?

# %%
STEPS = 100
held_out = list(mix.evaluation)[:105]  # 15 of each source; no town or sum of training
prompts = [pair["prompt"] for pair in held_out]
settings = dict(
    **common,
    per_device_train_batch_size=8,
    learning_rate=3e-4,
    warmup_steps=6,
    lr_scheduler_type="linear",
    max_steps=STEPS,
    save_strategy="no",
    logging_steps=20,
)
history, models = {}, {"base": base}


def fit(name, trainer):
    curve = evaluation.PreferenceCurve(tokenizer, held_out, every=25)
    trainer.add_callback(curve)
    trainer.remove_callback(transformers.PrinterCallback)
    seconds = trainer.train().metrics["train_runtime"]
    history[name], models[name] = curve.history, trainer.model
    last = curve.history[-1]
    print(
        f"{name}: chosen {last['chosen']:+.3f}, rejected {last['rejected']:+.3f}, "
        f"log odds ratio {last['margin']:+.2f}, "
        f"preference accuracy {last['accuracy']:.2f}, {seconds:.0f} s"
    )


# %%
from trl import SFTConfig, SFTTrainer

from course_utils.training.progress import LiveLine

chosen_only = mix.train.select_columns(["prompt", "chosen"])
model, _ = lab.load_base()
sft = SFTTrainer(
    model,
    SFTConfig(completion_only_loss=False, **settings),  # the NLL that ORPO has, alone
    train_dataset=chosen_only.rename_column("chosen", "completion"),
    processing_class=tokenizer,
    callbacks=[LiveLine()],
)
fit("SFT", sft)

# %% [markdown]
# DPO needs a model that can already follow the format, so it starts from SFT,
# and a frozen copy of that model as its reference.

# %%
from transformers import AutoModelForCausalLM
from trl import DPOConfig, DPOTrainer

sft.save_model("outputs/01/sft")
pairs = mix.train.select_columns(["prompt", "chosen", "rejected"])
dpo = DPOTrainer(
    AutoModelForCausalLM.from_pretrained("outputs/01/sft"),
    args=DPOConfig(
        beta=0.1, **settings | {"learning_rate": 1e-4, "max_steps": STEPS // 2}
    ),
    train_dataset=pairs,
    processing_class=tokenizer,
    callbacks=[LiveLine()],
)
fit("SFT, then DPO", dpo)

# %% [markdown]
# ORPO starts from the base, like SFT, with the same data in the same order.

# %%
model, _ = lab.load_base()
orpo_trainer = ORPOTrainer(
    model,
    ORPOConfig(beta=0.5, remove_unused_columns=False, **settings),
    train_dataset=pairs,
    processing_class=tokenizer,
)
fit("ORPO", orpo_trainer)

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3), dpi=80, sharey=True)
for ax, (name, points) in zip(axes, history.items(), strict=True):
    plots.preference_curves(ax, [points], f"{name} (1 seed, n = {len(held_out)})")
plt.tight_layout()
plt.show()

# %% [markdown]
# <details>
# <summary>What the output says (open it when you have written down your prediction)</summary>
#
# *Figure: held-out log-probs over the steps of this run. Under SFT both lines rise together; under DPO and ORPO the rejected line ends well below the chosen one.*
#
# SFT raises the rejected answers nearly as much as the chosen ones: it learns the voice that both share.
#
# </details>
#
# In the paper, SFT's picture is Figure 3 (with OPT-350M) and ORPO's is Figure 7.
#
# One run of one seed could be luck. The recorded runs are longer (250 steps), with three seeds and 420 prompts.

# %%
fig, axes = plt.subplots(1, 3, figsize=(10, 3), dpi=80, sharey=True)
for ax, name in zip(axes, ("SFT", "ORPO β 0.5", "ORPO β 2"), strict=True):
    curves = [run["curve"] for run in lab.recorded(name)]
    plots.preference_curves(ax, curves, f"{name} (3 seeds, n = 210)")
plt.tight_layout()
plt.show()
print(recorded.caption(recorded.load("lab_findings")))

# %% [markdown]
# *Figure: recorded log-probs over 250 steps, mean of three seeds with the range as a band. SFT lifts both; ORPO with β 0.5 holds the rejected back; with β 2 the chosen falls below SFT's level, and the rejected far below.*
#
# A larger β buys a wider gap and pays with the chosen answers, as in the paper's Figure 9.
# One thing of that figure does not appear here: at the paper's largest weight both log-probs fall,
# while our chosen answers never end below where the base began.

# %% [markdown]
# ## 5. Does it write better answers?
#
# Preference accuracy asks which of two given answers is likelier.
# What counts is what the model *writes*: one sampled answer per held-out prompt, at temperature 1.

# %%
good = {}
for name, model in models.items():
    written = evaluation.generate(model, tokenizer, prompts, temperature=1.0, seed=SEED)
    verdict = evaluation.verify_generations(prompts, written)
    good[name] = evaluation.estimate(verdict.good)
    true, polite, clear = (verdict.content, verdict.manners, verdict.ending)
    print(
        f"{name:14s} good {good[name]}, true {true.mean():.2f}, "
        f"polite {polite.mean():.2f}, to the point {clear.mean():.2f}"
    )

# %%
names = ["base", "SFT", "SFT, then DPO LR 0.0001"]
names += [f"ORPO β {beta}" for beta in ("0.1", "0.5", "1", "2")]
lab.summary(names)


# %% [markdown]
# The table holds the recorded runs: n is prompts, square brackets are 95 % intervals over prompts, round ones the range over seeds.
# No training pair asks a question of the test (notebook 02, section 7, shows how that is checked).
#
# Read the last two columns together.
# *Greedy*, SFT already looks nearly perfect, because the most likely answer is the good one.
# *Sampled*, two answers in three still carry a flaw that it copied from the chosen answers.
# The preference term removes those: it is not only politer but truer.

# %% [markdown]
# ## 6. What each method costs
#
# A forward hook counts the sequences that pass through any model in one training step of 8 pairs.

# %%
def forward_rows(trainer):
    """(sequences that pass a model in one step, models held in memory)"""
    counted = []

    def count(module, args, kwargs):
        counted.append(len(args[0] if args else kwargs["input_ids"]))

    models_held = [m for m in (trainer.model, getattr(trainer, "ref_model", None)) if m]
    hooks = [m.register_forward_pre_hook(count, with_kwargs=True) for m in models_held]
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.compute_loss(trainer.model, inputs)
    for hook in hooks:
        hook.remove()
    return sum(counted), len(models_held)


for name, trainer in (("SFT", sft), ("DPO", dpo), ("ORPO", orpo_trainer)):
    rows, held = forward_rows(trainer)
    print(f"{name:5s} sequences forward for 8 pairs: {rows:2d}, models held: {held}")

# %% [markdown]
# ORPO needs half of DPO's forward passes and no second model, as the paper says.
# The backward pass, which costs more, is the same for both.

# %% [markdown]
# ## Recap

# %%
import pandas as pd

rows = [
    {
        "method": name,
        "metric": "good, sampled",
        "value": str(value),
        "n": value.n,
        "seeds": 1,
        "steps": {"base": 0, "SFT, then DPO": 3 * STEPS // 2}.get(name, STEPS),
    }
    for name, value in good.items()
]
pd.DataFrame(rows).set_index("method")

# %%
ends = {name: points[-1] for name, points in history.items()}
gap = {name: end["chosen"] - end["rejected"] for name, end in ends.items()}
lift = ends["SFT"]["rejected"] - history["SFT"][0]["rejected"]
print(
    f"Finding: SFT lifts the rejected answers by {lift:.2f} nats per token and keeps "
    f"them {gap['SFT']:.2f} behind the chosen; ORPO ends {gap['ORPO']:.2f} apart"
)


# %% [markdown]
# What does not follow from this: that the same sizes hold at 8B.
# The lab shows direction; a 3.5-million-parameter model wants far higher learning rates, and its world is small.
#
# **Now you can** say why SFT is not enough, what each part of ORPO's loss does, and read its log-probs.
# **Next you need** pairs to train on: notebook 02 builds a mix and looks into it.

# %% [markdown]
# ## Exercises
#
# A check says in words what is not right yet. Stuck? `checks.hint("1.1")`, and once more for a stronger hint.
# The cell below each exercise folds both hints and a tested solution.
#
# **1.1 · 5 min · ●○○** Write the log-odds of a mean log-prob. It must survive log-probs of -1e-8.

# %%
def log_odds(logps: torch.Tensor) -> torch.Tensor:
    """Log-odds (B,) of answers with mean log-probs `logps` (B,), each below 0."""
    ...


checks.log_odds(log_odds)

# %%
checks.solution("1.1")


# %% [markdown]
# **1.2 · 10 min · ●●○** Write the labels that score the answer only.

# %%
def mask_prompt(input_ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
    """Labels (T,) of `input_ids` (T,), whose first `prompt_length` are the prompt."""
    ...


checks.mask_prompt(mask_prompt)

# %%
checks.solution("1.2")


# %% [markdown]
# **1.3 · 10 min · ●●○** Write the factor $\delta$ of section 3.

# %%
def delta(chosen_logps: torch.Tensor, rejected_logps: torch.Tensor) -> torch.Tensor:
    """Delta (B,) of pairs whose answers have these mean log-probs (B,)."""
    ...


checks.delta(delta)

# %%
checks.solution("1.3")

# %% [markdown]
# ## Five questions
#
# Put a letter for each `...`; the cell then says whether it is right, and why.
# Or unfold the answers, once you have your own.

# %%
answers = {1: ..., 2: ..., 3: ..., 4: ..., 5: ...}
checks.quiz("01", answers)

# %% [markdown]
# ## References
#
# - Hong, Lee, Thorne (2024), *ORPO: Monolithic Preference Optimization without Reference Model*, arXiv:2403.07691.
# - Rafailov et al. (2023), *Direct Preference Optimization*, arXiv:2305.18290.
# - Mächler (2012), *Accurately computing log(1 − exp(−|a|))*.
