"""The preference mix: all sources together, counted, shuffled, split.

Knows: how to join sources, keep what the tests ask out of training, and account for
every row. Does not know: where rows came from, tokens.
"""

from collections import Counter
from dataclasses import dataclass

from datasets import Dataset, concatenate_datasets

from . import sources, world

ASKED = "asked in the tests"


@dataclass(frozen=True)
class Mix:
    """train, evaluation: Datasets of pairs. report: one dict a source, which sums."""

    train: Dataset
    evaluation: Dataset
    report: list


def questions(prompt):
    """What the user says in a prompt, a tuple of str: a key that finds repeats.

    System prompts do not count: under another one it is still the same question.
    """
    return tuple(m["content"] for m in prompt if m["role"] == "user")


def build(data="world", seed=11, cards=None, evaluation_pairs=420):
    """The course's mix of all sources, shuffled with `seed`.

    data: see `sources.load_rows`. cards: {source: Card}, by default all. On the small
    world the evaluation pairs are its own held-out ones (other towns, other sums), and
    no training pair asks what they ask; elsewhere they are split off the mix, each with
    a prompt that occurs once.
    Returns: Mix. report rows: {"source", "rows", "kept", and a count per reason to
    drop}; kept and dropped sum to the rows.
    Raises: ValueError if the mix is too small to set the evaluation pairs aside.
    """
    tests = _world_tests(evaluation_pairs) if data == "world" else []
    asked = {questions(row["prompt"]) for row in tests}
    parts, report = [], []
    for card in (cards or sources.cards()).values():
        rows = sources.load_rows(card, data, seed)
        pairs, dropped = sources.to_pairs(card, rows)
        free = [
            i for i, row in enumerate(pairs) if questions(row["prompt"]) not in asked
        ]
        if len(free) < len(pairs):
            dropped[ASKED] = len(pairs) - len(free)
            pairs = pairs.select(free)
        parts.append(pairs)
        report.append(
            {"source": card.source, "rows": len(rows), "kept": len(pairs), **dropped}
        )
    parts = [part for part in parts if len(part)]
    if not parts:
        raise ValueError("The rules of the cards keep no pair at all.")
    mix = concatenate_datasets(parts).shuffle(seed=seed)
    if data == "world":
        return Mix(mix, Dataset.from_list(tests[:evaluation_pairs]), report)
    return Mix(*_split(mix, evaluation_pairs), report)


def _world_tests(count):
    """At least `count` test pairs; fewer asked change nothing about training."""
    default = world.test_pairs()
    if count <= len(default):
        return default
    return world.test_pairs(-(-count // len(world.SOURCES)))


def _split(mix, count):
    """(train, evaluation) without a common prompt, so that nothing is tested by heart.

    Only prompts that occur once are set aside: then every pair counts as one item.
    """
    keys = [questions(prompt) for prompt in mix["prompt"]]
    times = Counter(keys)
    alone = [i for i, key in enumerate(keys) if times[key] == 1]
    if len(alone) < count or len(mix) <= count:
        raise ValueError(
            f"The mix has {len(mix)} pairs, {len(alone)} of them with a prompt of "
            f"their own: too few to set {count} aside."
        )
    aside = set(alone[:count])
    rest = [i for i in range(len(mix)) if i not in aside]
    return mix.select(rest), mix.select(alone[:count])
