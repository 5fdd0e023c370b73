"""Training: ORPOConfig, ORPOTrainer, PackedORPOTrainer, and the command.

    from course_utils.training import ORPOConfig, ORPOTrainer, PackedORPOTrainer

    python -m course_utils.training --profile a100 --output runs/a100
    accelerate launch --config_file CONFIG \
        --num_processes 2 -m course_utils.training --profile a100 --output runs/a100

The trainers are imported when they are first asked for, so that the command can set the
libraries' variables before that. README.md compares them with others.
"""

import importlib

_HOMES = {
    "FastTrainingConfig": "course_utils.training.fast",
    "ORPOConfig": "course_utils.training.orpo_config",
    "ORPOTrainer": "course_utils.training.orpo_trainer",
    "PackedORPOTrainer": "course_utils.training.fast",
}

__all__ = ["FastTrainingConfig", "ORPOConfig", "ORPOTrainer", "PackedORPOTrainer"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
