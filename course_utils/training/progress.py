"""One line that says how far a training is, while it runs and no longer."""

import sys
import time
from typing import Any

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

# Marks the output, so that `make notebooks` can take it away.
MARK = "course_progress"
SECONDS = 1.0  # between two updates: drawing must cost the training nothing


class LiveLine(TrainerCallback):
    """Shows steps and seconds left below the cell that trains, and empties it after.

    For any trainer of transformers or TRL; ours have it where `disable_tqdm` is set.
    Outside Jupyter it shows nothing, so that logs stay short.
    """

    def __init__(self) -> None:
        self._handle = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        self._handle, self._first = None, state.global_step
        self._began = self._shown = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        now = time.monotonic()
        if now - self._shown < SECONDS or not state.is_world_process_zero:
            return
        self._shown = now
        per_step = (now - self._began) / (state.global_step - self._first)
        left = per_step * (state.max_steps - state.global_step)
        self._show(f"step {state.global_step} of {state.max_steps}, {left:.0f} s left")

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        if self._handle is not None:
            self._show("")

    def _show(self, text):
        if not _in_jupyter():
            return
        from IPython.display import display

        data = {"text/plain": text} if text else {}
        options = {"raw": True, "metadata": {MARK: True}}
        if self._handle is None:
            self._handle = display(data, display_id=True, **options)
        else:
            self._handle.update(data, **options)


def _in_jupyter():
    """Is this a kernel? IPython in a terminal is none."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
