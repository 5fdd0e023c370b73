"""How several processes share the pairs of an optimizer step.

ORPO's NLL is averaged over the tokens of a micro-batch, and micro-batches are then
averaged among each other. So the same pairs give the same loss on any number of
processes only if micro-batches keep their size; accumulation makes up for the rest.
Which process takes which of a step's micro-batches is free: `EvenSteps` gives all of
them about as many tokens, since the slowest decides when the step ends.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from torch.utils.data import BatchSampler


class Shares(NamedTuple):
    """processes x accumulation micro-batches of micro_batch pairs make one step."""

    micro_batch: int
    accumulation: int
    processes: int

    @property
    def batch(self) -> int:
        """Pairs of an optimizer step, all processes together."""
        return self.micro_batch * self.accumulation * self.processes


def share(
    batch: int, micro_batch: int, processes: int, *, exactly: bool = False
) -> Shares:
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


def even_order(tokens: Sequence[int], processes: int) -> list[int]:
    """An order of micro-batches in which every n-th of them has about as many tokens.

    tokens: of each micro-batch of a step. Returns: their numbers; the process `r` of
        `processes` takes those at r, r + processes, ..., equally many as the others.
    """
    room = len(tokens) // processes
    shares = [[] for _ in range(processes)]
    sums = [0] * processes
    for number in sorted(range(len(tokens)), key=lambda n: -tokens[n]):
        least = min(
            (r for r in range(processes) if len(shares[r]) < room), key=sums.__getitem__
        )
        shares[least].append(number)
        sums[least] += tokens[number]
    return [number for turn in zip(*shares, strict=True) for number in turn]


class EvenSteps:
    """Micro-batches of a sampler, put in order within each optimizer step.

    batches: the sampler that all processes share. tokens: of each pair of the dataset.
    The first step of an epoch stays as it is, since accelerate fills up the last one
    with its pairs; so does a last step that is not full.
    """

    def __init__(
        self,
        batches: BatchSampler,
        tokens: Sequence[int],
        processes: int,
        accumulation: int,
    ) -> None:
        self.batches, self.tokens = batches, tokens
        self.processes, self.accumulation = processes, accumulation
        self.batch_size, self.drop_last = batches.batch_size, batches.drop_last
        self.sampler = batches.sampler  # accelerate tells it the epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        of_step = self.processes * self.accumulation
        batches, first = iter(self.batches), True
        while step := list(islice(batches, of_step)):
            if not first and len(step) == of_step:
                tokens = [sum(self.tokens[n] for n in batch) for batch in step]
                step = [step[n] for n in even_order(tokens, self.processes)]
            first = False
            yield from step
