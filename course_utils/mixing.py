"""The preference mix: all sources together, counted, shuffled, split.

Knows: how to join sources and to account for every row. Does not know: where rows came
from, tokens.
"""

from dataclasses import dataclass

from datasets import Dataset, concatenate_datasets

from . import sources, world


@dataclass(frozen=True)
class Mix:
    """train, evaluation: Datasets of pairs. report: one dict a source, which sums."""

    train: Dataset
    evaluation: Dataset
    report: list


def build(data="world", seed=11, cards=None, evaluation_pairs=420):
    """The course's mix of all sources, shuffled with `seed`.

    data: see `sources.load_rows`. On the small world the evaluation pairs are its own
    held-out ones (other towns, other sums); elsewhere they are split off the mix.
    Returns: Mix. report rows: {"source", "rows", "kept", and a count per reason to drop}.
    Raises: ValueError if the mix is not larger than the evaluation set.
    """
    parts, report = [], []
    for card in (cards or sources.cards()).values():
        rows = sources.load_rows(card, data, seed)
        pairs, dropped = sources.to_pairs(card, rows)
        parts.append(pairs)
        report.append(
            {"source": card.source, "rows": len(rows), "kept": len(pairs), **dropped}
        )
    mix = concatenate_datasets(parts).shuffle(seed=seed)
    if data == "world":
        held_out = world.test_pairs(evaluation_pairs // len(parts))
        return Mix(mix, Dataset.from_list(held_out), report)
    if len(mix) <= evaluation_pairs:
        raise ValueError(
            f"The mix has {len(mix)} pairs, too few to set {evaluation_pairs} aside."
        )
    split = mix.train_test_split(test_size=evaluation_pairs, seed=seed)
    return Mix(split["train"], split["test"], report)
