"""Library messages that tell a learner nothing, named one by one and hidden."""

import logging
import os
import warnings

_WARNINGS = (
    # The course switches progress bars off, so it does not miss the widgets for them.
    "IProgress not found",
    # transformers renames the option; TRL 1.16 still sets it under the old name.
    r".*gradient_checkpointing\w*` is deprecated",
    # Notebook 03 steps with a paged optimizer on the CPU, and says what that measures.
    "Paged optimizers are not supported on CPU",
    # True, and the reason why the course has an ORPO trainer of its own.
    "You are importing from 'trl.experimental'",
)
_LOGGERS = {
    # Says that the optional package `kernels` is missing. It would call the hub.
    "bitsandbytes": logging.CRITICAL,
    # Says that the model's config took over the tokenizer's special tokens, as we set.
    "transformers": logging.ERROR,
}


def hide_library_chatter() -> None:
    """Hide the messages named above. Call it before importing transformers or TRL."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, level in _LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    # Its bars count rows; in a page that is read later they are noise.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # transformers sets its own logger's level from this when it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
