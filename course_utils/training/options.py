"""What `python -m course_utils.training` can be asked for.

Knows: the command line. Does not know: what is done with it (`run`).
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from course_utils.setup import profiles

CONFIGS = ("ddp", "fsdp")


def config_path(name):
    """The path of a configuration for `accelerate launch --config_file`."""
    return Path(__file__).with_name(f"{name}.yaml")


def parse(arguments=None):
    """The options, an argparse.Namespace; ends the process if they make no sense."""
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
        type=_positive,
        help="at most so many (default: the profile's number, or all of the file)",
    )
    add(
        "--pairs-file",
        type=Path,
        help="JSON lines with prompt, chosen, rejected as messages, instead of the mix",
    )
    add("--steps", type=_positive, help="default: every pair once")
    add(
        "--batch-size",
        type=_positive,
        help="pairs a step, all processes together (default: the profile's)",
    )
    add(
        "--micro-batch",
        type=_positive,
        help="pairs that a process takes at a time; ORPO averages its NLL over their "
        "tokens (default: the profile's, or what is left of it for each process)",
    )

    model = parser.add_argument_group("model and optimizer")
    add = model.add_argument
    add("--sixteen-bit", action="store_true", help="base in 16 bit instead of NF4")
    add("--adapter", type=Path, help="start from this adapter instead of a fresh one")
    add("--learning-rate", type=float, help="default: the profile's")
    add("--beta", type=float, help="default: the profile's")
    add("--optim", help="name of a transformers optimizer (default: the profile's)")
    add("--seed", type=int, default=0)
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
    add("--save-steps", type=int, default=50, help="0: no checkpoints")
    add("--logging-steps", type=_positive, default=5)
    add("--report-to", default="none", help="such as wandb")

    options = parser.parse_args(arguments)
    if options.config_path is None and options.output is None:
        parser.error("--output is missing: the folder for the adapter and checkpoints")
    if options.save_steps < 0:
        parser.error("--save-steps must be 0 or more")
    if options.trainer != "fast" and options.lever:
        parser.error(f"--trainer {options.trainer} has no fast settings, no --lever")
    return options


def choose_profile(options):
    """profiles.Choice: the profile for this machine, changed as the options say."""
    environ = dict(os.environ)
    if options.profile:
        environ["COURSE_PROFILE"] = options.profile
    if options.pairs_file:
        if not options.pairs_file.is_file():
            raise FileNotFoundError(f"There is no file {options.pairs_file}.")
        environ["COURSE_DATA"] = str(options.pairs_file.parent)
    profile, reason = profiles.choose(environ)
    if options.profile:
        reason = reason.replace("COURSE_PROFILE", "--profile", 1)
    if options.pairs_file:
        profile = replace(profile, data=str(options.pairs_file))
        reason = reason.replace("COURSE_DATA", "--pairs-file", 1)
    if options.sixteen_bit:
        profile = replace(profile, nf4=False)
    return profiles.Choice(profile, reason)


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
