"""How several processes share the pairs of an optimizer step.

ORPO's NLL is averaged over the tokens of a micro-batch, and micro-batches are then
averaged among each other. So the same pairs give the same loss on any number of
processes only if micro-batches keep their size; accumulation makes up for the rest.
"""

from typing import NamedTuple


class Shares(NamedTuple):
    """processes x accumulation micro-batches of micro_batch pairs make one step."""

    micro_batch: int
    accumulation: int
    processes: int

    @property
    def batch(self):
        """Pairs of an optimizer step, all processes together."""
        return self.micro_batch * self.accumulation * self.processes


def share(batch, micro_batch, processes, *, exactly=False):
    """The Shares of a step of `batch` pairs.

    micro_batch: pairs that a process takes at a time; fewer where `batch` is too small
        for that, the largest number that divides what a process has. exactly: do not
        take fewer.
    Raises: ValueError that names what to change, if it cannot be shared evenly.
    """
    for name, value in (("--batch-size", batch), ("--micro-batch", micro_batch)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if batch % processes:
        fitting = [n for n in range(1, batch + 1) if batch % n == 0]
        up = -(-batch // processes) * processes
        raise ValueError(
            f"{batch} pairs per step cannot be shared by {processes} processes. Set "
            f"--num_processes of accelerate to one of {', '.join(map(str, fitting))}, "
            f"or --batch-size to a multiple of {processes}, such as {up}."
        )
    own = batch // processes
    if own % micro_batch and exactly:
        raise ValueError(
            f"Each of {processes} processes has {own} of the {batch} pairs of a step, "
            f"and --micro-batch {micro_batch} does not divide that. Set it to a "
            f"divisor of {own}, or change --batch-size."
        )
    taken = max(n for n in range(1, min(micro_batch, own) + 1) if own % n == 0)
    return Shares(taken, own // taken, processes)
