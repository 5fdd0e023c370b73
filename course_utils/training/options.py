"""What `python -m course_utils.training` can be asked for."""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from course_utils.setup import profiles
from course_utils.training.fast.config import FastTrainingConfig

CONFIGS = ("ddp", "fsdp")


class UsageError(ValueError):
    """An option whose value makes no sense."""


def config_path(name: str) -> Path:
    """The path of a configuration for `accelerate launch --config_file`."""
    return Path(__file__).with_name(f"{name}.yaml")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; ends the process with status 2 if they make no sense."""
    count = _number(int, 1, 2**31 - 1, "a whole number of at least 1")
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.training",
        description="Train a LoRA adapter with ORPO, as notebook 04 does.",
        epilog="Several GPUs: accelerate launch --config_file $(python -m "
        "course_utils.training --config-path ddp) --num_processes 2 -m "
        "course_utils.training --profile a100 --output DIR",
    )
    add = parser.add_argument
    add("--profile", choices=list(profiles.all_profiles()), help="default: by hardware")
    add("--output", type=Path, help="folder for adapter, checkpoints and run.json")
    add("--resume", action="store_true", help="go on from the last whole checkpoint")
    add("--config-path", choices=CONFIGS, help="print accelerate's config, and end")
    add(
        "--trainer",
        choices=("fast", "plain", "stock"),
        default="fast",
        help="plain: ORPOTrainer, one pair after the other; stock: TRL's, if there",
    )

    data = parser.add_argument_group("pairs")
    add = data.add_argument
    add(
        "--pairs",
        type=count,
        help="at most so many (default: the profile's number, or all of the file)",
    )
    add(
        "--pairs-file",
        type=Path,
        help="JSON lines with prompt, chosen, rejected as messages, instead of the mix",
    )
    add("--steps", type=count, help="default: every pair once")
    add(
        "--batch-size",
        type=count,
        help="pairs per step, all processes together (default: the profile's)",
    )
    add(
        "--micro-batch",
        type=count,
        help="pairs that a process takes at a time; ORPO averages its NLL over their "
        "tokens (default: the profile's, or what is left of it for each process)",
    )

    model = parser.add_argument_group("model and optimizer")
    add = model.add_argument
    add("--sixteen-bit", action="store_true", help="base in 16 bit instead of NF4")
    add("--adapter", type=Path, help="start from this adapter instead of a fresh one")
    rate = _number(float, math.ulp(0), 1e6, "a finite number above 0")
    add("--learning-rate", type=rate, help="default: the profile's")
    weight = _number(float, 0, 1e6, "a finite number of at least 0")
    add("--beta", type=weight, help="default: the profile's")
    add("--optim", help="name of a transformers optimizer (default: the profile's)")
    seed = _number(int, 0, 2**32 - 1, f"a whole number from 0 to {2**32 - 1}")
    add("--seed", type=seed, default=0)
    add(
        "--lever",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of fast.FastTrainingConfig, such as token_budget=8192; may be "
        "given several times",
    )

    files = parser.add_argument_group("what is kept")
    add = files.add_argument
    steps = _number(int, 0, 2**31 - 1, "a whole number of at least 0")
    add("--save-steps", type=steps, default=50, help="0: no checkpoints")
    add("--logging-steps", type=count, default=5)
    add("--report-to", default="none", help="such as wandb")

    options = parser.parse_args(arguments)
    if options.config_path is None and options.output is None:
        parser.error("--output is missing: the folder for the adapter and checkpoints")
    if options.trainer != "fast" and options.lever:
        parser.error(f"--trainer {options.trainer} has no fast settings, no --lever")
    return options


def choose_profile(options: argparse.Namespace) -> profiles.Choice:
    """The profile for this machine, changed as the options say."""
    file = options.pairs_file
    if file and not file.is_file():
        raise FileNotFoundError(f"There is no file {file}.")
    profile, reason = profiles.choose(
        profile=options.profile, data=str(file) if file else None
    )
    if options.sixteen_bit:
        profile = replace(profile, nf4=False)
    return profiles.Choice(profile, reason)


def fast_config(options: argparse.Namespace) -> FastTrainingConfig:
    """The FastTrainingConfig that the --lever options ask for.

    Raises: UsageError that names the lever, and what it can be.
    """
    # It brings torch along, so not before the libraries' variables are set.
    from course_utils.training.fast.config import FastTrainingConfig

    known, asked = [field.name for field in fields(FastTrainingConfig)], {}
    for text in options.lever:
        name, _, value = text.partition("=")
        if name not in known or not value:
            raise UsageError(
                f"--lever {text}: give NAME=VALUE, NAME one of {', '.join(known)}."
            )
        try:
            asked[name] = json.loads(value)  # a number, true, false or null
        except ValueError:
            asked[name] = value
        try:
            FastTrainingConfig(**{name: asked[name]})
        except ValueError as error:
            raise UsageError(f"--lever {text}: {error}") from None
    return FastTrainingConfig(**asked)


def _number(convert: type, least: float, most: float, wanted: str) -> Callable:
    """A type for argparse: a number from `least` to `most`, or an error in words."""

    def read(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # so that NaN is refused too
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")
        return value

    return read
