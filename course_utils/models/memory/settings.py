"""The settings of a training run that decide how much memory it takes."""

from dataclasses import dataclass
from typing import Any

from transformers import Trainer

from course_utils.models import LINEAR_LAYERS
from course_utils.setup.profiles import Profile

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PRECISIONS = ("nf4", "bfloat16", "float16", "float32")
# Bytes of AdamW's two moments per trained weight; in 8 bit every 256 values add a
# float32 scale.
OPTIMIZERS = {
    "adamw_torch": 8,
    "adamw_torch_fused": 8,
    "paged_adamw_32bit": 8,
    "adamw_8bit": 2 + 2 * 4 / 256,
    "adamw_bnb_8bit": 2 + 2 * 4 / 256,
    "paged_adamw_8bit": 2 + 2 * 4 / 256,
}


@dataclass(frozen=True)
class Settings:
    """What the memory of a step depends on, besides the model's configuration.

    precision: of the base weights: "nf4" (double quantisation), or a dtype's name.
    compute: dtype's name in which products are computed. In 16 and 32 bit it is the
        precision itself.
    lora_rank, targets: of LoRA, kept in float32 as PEFT does. token_rows: how many rows
        of embeddings and of the head are trained.
    optim: a key of OPTIMIZERS. Paged moments lie in host memory when the GPU is full.
    batch: pairs per micro-batch; TRL runs chosen and rejected together, 2 x batch rows.
    accumulation: micro-batches a step; from the second on, gradients are there.
    length: tokens of the longest row. padded: has a batch rows of several lengths?
    checkpointing: are activations of a layer computed again in backward?
    trainer: "stock" (ORPOTrainer, ours or TRL's) or "fast" (PackedORPOTrainer).
    log_prob_kernel: stock: is it TRL's with its Triton kernel (CUDA)? False: ours.
    token_budget, head_tile, attention, embeddings_on_cpu: fast: as in
        fast.FastTrainingConfig, not "auto".
    """

    precision: str = "nf4"
    compute: str = "bfloat16"
    lora_rank: int = 16
    targets: tuple = tuple(LINEAR_LAYERS)
    token_rows: int = 0
    optim: str = "paged_adamw_8bit"
    batch: int = 2
    accumulation: int = 4
    length: int = 1024
    padded: bool = True
    checkpointing: bool = True
    trainer: str = "stock"
    log_prob_kernel: bool = True
    token_budget: int = 4096
    head_tile: int | None = 512
    attention: str = "varlen"
    embeddings_on_cpu: bool = False

    def __post_init__(self) -> None:
        known = {
            "precision": PRECISIONS,
            "compute": tuple(DTYPE_BYTES),
            "optim": tuple(OPTIMIZERS),
            "trainer": ("stock", "fast"),
            "attention": ("varlen", "flex", "sdpa"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of "
                    f"{', '.join(values)}."
                )
        if self.precision != "nf4" and self.compute != self.precision:
            raise ValueError(
                f"compute is {self.compute!r} with {self.precision} weights; only NF4 "
                "weights are computed in another dtype than their own."
            )
        for name in ("batch", "accumulation", "length", "token_budget", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}.")
        unknown = set(self.targets) - set(LINEAR_LAYERS)
        if unknown:
            raise ValueError(
                f"targets {', '.join(sorted(unknown))} are none of a Llama's "
                f"projections: {', '.join(LINEAR_LAYERS)}."
            )

    @property
    def tokens(self) -> int:
        """Tokens that go through the model at once, padding included."""
        if self.trainer == "stock":
            return 2 * self.batch * self.length
        everything = 2 * self.batch * self.accumulation * self.length
        return min(everything, max(self.token_budget, 2 * self.length))

    @property
    def compute_bytes(self) -> int:
        return DTYPE_BYTES[self.compute]

    @property
    def table_bytes(self) -> int:
        """Bytes of a number in the embeddings and the head.

        PEFT's preparation of a 4-bit model casts both to float32, and TRL 1.16 casts
        them back with bf16=True only.
        """
        if self.precision != "nf4":
            return DTYPE_BYTES[self.precision]
        return 2 if self.compute == "bfloat16" else 4

    @property
    def norm_bytes(self) -> int:
        """Bytes of a number in the norms' weights: float32 beside 4-bit layers."""
        return 4 if self.precision == "nf4" else DTYPE_BYTES[self.precision]

    @classmethod
    def of_profile(cls, profile: Profile, **changes: Any) -> "Settings":
        """Settings of a profiles.Profile. changes: fields that the profile lacks, or
        other values for those that it has."""
        known = {
            "precision": "nf4" if profile.nf4 else profile.dtype,
            "compute": profile.dtype,
            "lora_rank": profile.lora_rank,
            "optim": profile.optim,
            "batch": profile.per_device_batch_size,
            "accumulation": profile.gradient_accumulation_steps,
            "length": profile.max_length,
            "checkpointing": profile.gradient_checkpointing,
        }
        return cls(**(known | changes))

    @classmethod
    def of_trainer(cls, trainer: Trainer) -> "Settings":
        """Settings of an ORPOTrainer or PackedORPOTrainer with a LoRA adapter."""
        args, model = trainer.args, trainer.model
        lora = model.peft_config[model.active_adapter]
        rows = lora.trainable_token_indices or ()
        rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
        four_bit = getattr(model, "is_loaded_in_4bit", False)
        base = str(model.get_base_model().get_input_embeddings().weight.dtype)[6:]
        compute = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
        known = {
            "precision": "nf4" if four_bit else base,
            "compute": compute if four_bit else base,
            "lora_rank": lora.r,
            "targets": tuple(t for t in LINEAR_LAYERS if t in lora.target_modules),
            "token_rows": len(rows),
            "optim": getattr(args.optim, "value", args.optim),
            "batch": args.per_device_train_batch_size,
            "accumulation": args.gradient_accumulation_steps,
            "length": trainer.max_length,
            "checkpointing": args.gradient_checkpointing,
            "log_prob_kernel": args.device.type == "cuda"
            and type(trainer).__module__.startswith("trl."),
        }
        fast_config = getattr(trainer, "fast_config", None)
        if fast_config is not None:
            known |= {
                "trainer": "fast",
                "token_budget": fast_config.token_budget if fast_config.packing else 1,
                "head_tile": fast_config.head_tile,
                "attention": trainer.attention,
                "embeddings_on_cpu": trainer.embeddings_on_cpu,
            }
        return cls(**known)
