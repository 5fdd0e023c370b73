"""Base models: which attention and precision they run in, loading them, counting them.

Every load of the course goes through `load_config`, `load_tokenizer` and `load_model`:
they read safetensors only, and never run Python that lies in a checkpoint. The
notebooks spell BitsAndBytesConfig and from_pretrained out where they teach them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import GatedRepoError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import has_file, is_flash_attn_2_available

from course_utils.models import shards
from course_utils.setup.hardware import attention_implementation
from course_utils.setup.profiles import Profile, is_hub_id, require_checkpoint

# Every projection of a Llama layer: attention's four, and the MLP's three.
LINEAR_LAYERS = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
]


def compute_dtype(profile: Profile) -> torch.dtype:
    """The dtype to compute in; `profiles.choose` made sure that the GPU has it."""
    return getattr(torch, profile.dtype)


def probe_attention() -> tuple[str, str]:
    """attention_implementation for this machine."""
    cuda = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if cuda else None
    return attention_implementation(capability, is_flash_attn_2_available())


def nf4_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 weights with double quantisation, computing in `dtype`: QLoRA's choice."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def require_no_code(source: str | Path) -> None:
    """Raise ValueError if a local checkpoint asks to run Python of its own.

    For a hub id, transformers itself refuses when it is given trust_remote_code=False.
    """
    folder = Path(source)
    for file in sorted(folder.glob("*config.json")) if folder.is_dir() else ():
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON: {error}.") from error
        asked = [k for k in ("auto_map", "custom_pipelines") if settings.get(k)]
        if asked:
            raise ValueError(
                f"{folder} asks to run Python of its own: {file.name} has "
                f"{asked[0]!r}. The course never runs code from a checkpoint. Remove "
                "that entry if the architecture is one that transformers knows."
            )


def load_config(source: str | Path) -> PreTrainedConfig:
    """The configuration of a folder or hub id. Raises: as `load_tokenizer`."""
    require_no_code(source)
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise shards.IncompleteCheckpoint(f"{source} holds no config.json.")
    return AutoConfig.from_pretrained(source, trust_remote_code=False)


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id.

    Raises: as `require_no_code`; OSError if there is none; ValueError if it is broken.
    """
    require_no_code(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        # tokenizers raises no class of its own.
        if type(error) not in (Exception, json.JSONDecodeError):
            raise
        raise ValueError(f"The tokenizer in {source} is broken: {error}.") from error


def load_model(source: str | Path, **settings: Any) -> PreTrainedModel:
    """The causal language model of a folder or hub id.

    settings: as for from_pretrained, such as dtype.
    Raises: as `require_no_code`; shards.IncompleteCheckpoint, which is an OSError, for
    weights that are missing or pickled.
    """
    require_no_code(source)
    require_safetensors(source)
    return AutoModelForCausalLM.from_pretrained(
        source,
        use_safetensors=True,
        trust_remote_code=False,  # unset, transformers would ask at the keyboard
        **settings,
    )


def load_base(profile: Profile) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The profile's base model and its tokenizer, ready for adapters.

    Returns: (model, tokenizer). The model lies on the GPU if there is one, with NF4
        weights if the profile says so. The tokenizer is the base's own, without a chat
        format.
    Raises: FileNotFoundError if a local folder or its weights are missing; OSError if
        neither the model nor its ungated copy can be had from the hub, or has pickled
        weights only. Both say what to do. ValueError if the checkpoint wants to run
        code of its own.

    Prints one line if the ungated copy was taken.
    """
    source, note = resolve_model(profile)
    if note:
        print(note)
    dtype = compute_dtype(profile)
    model = load_model(
        source,
        dtype=dtype,
        quantization_config=nf4_config(dtype) if profile.nf4 else None,
        attn_implementation=probe_attention()[0],
        # Of several processes each has a GPU of its own; alone, it is the first.
        device_map={"": torch.cuda.current_device()}
        if torch.cuda.is_available()
        else None,
    )
    return model, load_tokenizer(source)


def require_safetensors(source: str | Path) -> None:
    """OSError, with what to do, for a folder or hub id without safetensors weights.

    Left to itself transformers would ask a service to convert somebody's repository.
    """
    if not is_hub_id(str(source)):
        if Path(source).is_dir():
            shards.weight_files(source)
    elif not any(has_file(source, name) for name in (shards.SINGLE, shards.INDEX)):
        raise OSError(
            f"{source} has no safetensors weights on the hub, and the course reads no "
            "other kind (pickled ones can run code). Take another repository, or point "
            "COURSE_BASE_MODEL to a local copy saved with save_pretrained."
        )


def require_adapter(folder: str | Path) -> None:
    """Raise FileNotFoundError if a folder holds no adapter in safetensors.

    PEFT would fall back to adapter_model.bin, a pickle.
    """
    folder = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            pickled = (folder / "adapter_model.bin").is_file()
            why = " (adapter_model.bin is a pickle, which can run code)" * pickled
            raise FileNotFoundError(
                f"{folder} holds no {name}{why}. Save the adapter with save_pretrained."
            )


def resolve_model(profile: Profile) -> tuple[str, str]:
    """Where the profile's weights can be read from: (folder or hub id, note or "").

    Reads configurations only. Raises: as load_base.
    """
    if not is_hub_id(profile.base_model):
        require_checkpoint(profile.base_model)
        require_no_code(profile.base_model)
        return profile.base_model, ""
    failures = {}
    for source in filter(None, (profile.base_model, profile.ungated_copy)):
        try:
            AutoConfig.from_pretrained(source, trust_remote_code=False)
        except OSError as error:
            failures[source] = error
            continue
        return source, _fallback_note(source, failures)
    reasons = "; ".join(f"{s}: {_in_words(error)}" for s, error in failures.items())
    raise OSError(
        f"The base model of profile {profile.name!r} cannot be read from the hub. "
        f"{reasons}. Accept the licence on the model's page and log in with `hf auth "
        "login`, or set COURSE_BASE_MODEL to a local folder with the checkpoint, or "
        "set COURSE_PROFILE=cpu."
    ) from failures[profile.base_model]


def _fallback_note(source, failures):
    if not failures:
        return ""
    first, error = next(iter(failures.items()))
    return (
        f"{first}: {_in_words(error)}. Using {source}, an ungated copy of the weights."
    )


def _in_words(error):
    """What went wrong; transformers hides the cause behind an OSError of many lines."""
    cause = error
    while cause is not None:
        if isinstance(cause, GatedRepoError):
            return "gated, and this account has not been granted access"
        cause = cause.__cause__ or cause.__context__
    return str(error).strip().splitlines()[0]


def keep_trained_in_fp32(model: torch.nn.Module) -> list[str]:
    """Give every trained parameter of `model` a float32 copy of itself, in place.

    Returns: names of the parameters that were in 16 bit before.

    TRL 1.16's ORPOTrainer keeps LoRA's matrices in float32, but with bf16=True and a
    4-bit base it casts what lies below embed_tokens and lm_head to bfloat16, the
    trained rows of `trainable_token_indices` with it: steps smaller than about 1/256
    of a weight are then lost to rounding. Call this between building the trainer and
    training.
    """
    cast = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (
            torch.bfloat16,
            torch.float16,
        ):
            parameter.data = parameter.data.float()
            cast.append(name)
    return cast


class ParameterCounts(NamedTuple):
    """How many weights a model has, how many are trained, and how many lie in 4 bit."""

    total: int
    trainable: int
    in_4bit: int


def parameter_counts(model: torch.nn.Module) -> ParameterCounts:
    """ParameterCounts of a model, tied weights counted once.

    A 4-bit weight counts as one, although bitsandbytes stores two in a byte.
    """
    total = trainable = in_4bit = 0
    for parameter in model.parameters():
        quantised = getattr(parameter, "quant_state", None)
        count = quantised.shape.numel() if quantised is not None else parameter.numel()
        total += count
        in_4bit += count if quantised is not None else 0
        trainable += count if parameter.requires_grad else 0
    return ParameterCounts(total, trainable, in_4bit)
