"""Does it fit, and if not, what to change: settings tried one by one."""

from dataclasses import dataclass, replace

import torch
from transformers import PretrainedConfig, Trainer

from course_utils.models.memory.settings import Settings
from course_utils.models.memory.step import predict

# What torch.cuda.get_device_properties shows, in GiB; less than the label says.
CARDS_GIB = {"T4": 14.7, "L4": 22.2, "A100": 39.4}
WITHOUT_BF16 = ("T4",)
# For CUDA's context, kernels' own workspaces and the allocator's fragments. It is an
# allowance, not a measured value.
ALLOWANCE_GIB = 1.0


@dataclass(frozen=True)
class Change:
    """One change of settings. values: {field of Settings: new value}. saves_gib: of the
    predicted peak. enough: is that as much as was asked for? cost: what it costs."""

    what: str
    values: dict
    saves_gib: float
    enough: bool
    cost: str

    def __str__(self) -> str:
        verdict = "enough" if self.enough else "not enough alone"
        return f"{self.what}: saves {self.saves_gib:.1f} GiB, {verdict}; {self.cost}"


@dataclass(frozen=True)
class Fit:
    """Answer of `fits`. needs_gib: predicted peak with the allowance. note: what the
    card could not do as asked. changes: most effective first, and last all that it
    takes together if none alone is enough; empty if it fits."""

    fits: bool
    card: str
    needs_gib: float
    has_gib: float
    note: str
    changes: list

    def __str__(self) -> str:
        size = f"{self.needs_gib:.1f} GiB predicted, {self.card} has {self.has_gib:.1f}"
        size += f" ({self.note})" if self.note else ""
        if self.fits:
            return f"fits: {size}"
        lines = [f"does not fit: {size}.", "What to change:"]
        lines += [f"  {change}" for change in self.changes]
        return "\n".join(lines if self.changes else [*lines, "  nothing is left"])


def fits(card: str | float, config: PretrainedConfig, settings: Settings) -> Fit:
    """Does a training with these settings fit a card?

    card: a key of CARDS_GIB, or GiB as a number.
    config, settings: as in `predict`. A card without bf16 gets float16 instead.
    Returns: Fit. Raises: ValueError for an unknown card.
    """
    if isinstance(card, str) and card not in CARDS_GIB:
        raise ValueError(
            f"No card {card!r} here: give {', '.join(CARDS_GIB)}, or GiB as a number."
        )
    name, has = (
        (f"the {card}", CARDS_GIB[card]) if isinstance(card, str) else ("it", card)
    )
    note = ""
    if card in WITHOUT_BF16 and settings.compute == "bfloat16":
        nf4 = settings.precision == "nf4"
        precision = "nf4" if nf4 else "float16"
        # Nor does FlexAttention train on such a card.
        settings = replace(
            settings, compute="float16", precision=precision, attention="sdpa"
        )
        note = "no bf16, so float16" + (
            ", where embeddings and head are float32 beside NF4" if nf4 else ""
        )
    needs = predict(config, settings).peak_gib + ALLOWANCE_GIB
    short = needs - has
    changes = what_would_save(config, settings, short) if short > 0 else []
    return Fit(short <= 0, name, needs, has, note, changes)


def what_would_save(
    config: PretrainedConfig, settings: Settings, short_by_gib: float = 0.0
) -> list[Change]:
    """What to change in settings that take too much memory.

    short_by_gib: how much less it has to be.
    Returns: list of Change that save anything, the one that saves most first. If no
        single one is enough, a last one combines them until it is, or until nothing
        more can be saved.
    """
    now = predict(config, settings).peak_gib
    changes = []
    for what, values, cost in _options(settings):
        saved = now - predict(config, replace(settings, **values)).peak_gib
        if saved > 0.005:
            changes.append(Change(what, values, saved, saved >= short_by_gib, cost))
    changes.sort(key=lambda change: -change.saves_gib)
    if changes and not any(change.enough for change in changes):
        changes.append(_together(config, settings, short_by_gib))
    return changes


def _options(settings):
    """(what, new values, cost) of every single change that is left to make."""
    kept = "the same pairs per step"
    if settings.batch > 1:
        for batch in {settings.batch // 2, 1}:
            more = -(-settings.accumulation * settings.batch // batch)
            yield (
                f"per_device_train_batch_size={batch}, "
                f"gradient_accumulation_steps={more}",
                {"batch": batch, "accumulation": more},
                f"{kept}, slower; the NLL's batches are smaller",
            )
    for share in (0.75, 0.5):
        length = int(settings.length * share) // 64 * 64
        if length >= 256:
            yield f"max_length={length}", {"length": length}, "longer answers are cut"
    if not settings.checkpointing:
        yield (
            "gradient_checkpointing=True",
            {"checkpointing": True},
            "the same result, a forward pass more",
        )
    if settings.trainer == "stock":
        yield (
            "fast.PackedORPOTrainer instead of ORPOTrainer",
            {"trainer": "fast", "embeddings_on_cpu": True},
            "the same loss, and faster",
        )
    else:
        if settings.token_budget > 2 * settings.length:
            half = max(settings.token_budget // 2, 2 * settings.length)
            yield (
                f"token_budget={half}",
                {"token_budget": half},
                "the same loss, slower",
            )
        if settings.head_tile is None or settings.head_tile > 128:
            yield "head_tile=128", {"head_tile": 128}, "the same loss, a little slower"
    if not settings.optim.startswith("paged"):
        yield (
            'optim="paged_adamw_8bit"',
            {"optim": "paged_adamw_8bit"},
            "the moments in 8 bit, in host memory when the card is full",
        )
    if settings.lora_rank > 8:
        half = settings.lora_rank // 2
        yield f"LoRA rank {half}", {"lora_rank": half}, "fewer weights to learn with"
    if settings.precision in ("bfloat16", "float16"):
        yield (
            "NF4 weights (load_in_4bit)",
            {"precision": "nf4"},
            "weights are rounded to 4 bit, and unpacked at each product",
        )


def _together(config, settings, short_by_gib):
    """The Change that makes the most effective change again and again."""
    now = predict(config, settings).peak_gib
    values, names, saved = {}, [], 0.0
    while saved < short_by_gib:
        current = replace(settings, **values)
        tried = [
            (now - predict(config, replace(current, **new)).peak_gib, what, new)
            for what, new, _ in _options(current)
        ]
        best = max(tried, key=lambda option: option[0], default=(saved, "", {}))
        if best[0] <= saved + 0.005:
            break
        saved = best[0]
        names = [name for name in names if name.split("=")[0] != best[1].split("=")[0]]
        names.append(best[1])
        values |= best[2]
    return Change(
        " and ".join(names), values, saved, saved >= short_by_gib, "all of these costs"
    )


def spare_gib(
    trainer: Trainer, checkpointing: bool = True, token_budget: int | None = None
) -> float:
    """GiB of its GPU that a fast trainer leaves, or 0.0 if it has too few.

    checkpointing: does every layer compute again in backward, or none? token_budget:
        of its rows; None for what the trainer's fast_config says.
    Counts the part of the GPU that this process may use
    (torch.cuda.set_per_process_memory_fraction). Raises: ValueError if the trainer has
    no LoRA adapter, which is all that the formulas know.
    """
    if not hasattr(trainer.model, "peft_config"):
        raise ValueError(
            "activation_gib='auto' and token_budget='auto' ask a calculator that knows "
            "LoRA trainings only. Give them as numbers, or pass a peft_config."
        )
    device = trainer.args.device
    settings = replace(Settings.of_trainer(trainer), checkpointing=checkpointing)
    if token_budget is not None:
        settings = replace(settings, token_budget=token_budget)
    needs = predict(trainer.model.config, settings).peak_gib + ALLOWANCE_GIB
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    share = torch.cuda.get_per_process_memory_fraction(device)
    return max(0.0, total * share - needs)
