"""The clock of the speed benchmarks; Unsloth's process, which has other libraries than
the course, reads it as well.
"""

import time

import torch
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Times laps of `steps` optimizer steps each, after `warmup` steps.

    On a GPU by its own clock, so that nobody has to wait for it between laps.
    """

    def __init__(self, warmup, steps, laps=1):
        self.warmup, self.steps, self.laps = warmup, steps, laps
        self._marks = []  # (wall, process time) at the start and the end of each lap

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.warmup:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._mark()

    def on_step_end(self, args, state, control, **kwargs):
        done, rest = divmod(state.global_step - self.warmup, self.steps)
        if 1 <= done <= self.laps and rest == 0:
            self._mark()

    def _mark(self):
        wall = time.perf_counter()
        if torch.cuda.is_available():
            wall = torch.cuda.Event(enable_timing=True)
            wall.record()
        self._marks.append((wall, time.process_time()))

    def results(self):
        """A lap each: {"seconds", "cpu_seconds"}, the latter of this process."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [
            {"seconds": self._between(before, after), "cpu_seconds": cpu - cpu_before}
            for (before, cpu_before), (after, cpu) in zip(
                self._marks, self._marks[1:], strict=False
            )
        ]

    @staticmethod
    def _between(before, after):
        if torch.cuda.is_available():
            return before.elapsed_time(after) / 1000
        return after - before


def laps_of(items, warmup, steps, laps, each):
    """`items` of each lap, where every optimizer step has `each` of them."""
    size, start = steps * each, warmup * each
    return [items[start + i * size : start + (i + 1) * size] for i in range(laps)]
