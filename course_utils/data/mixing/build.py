"""One mix out of all sources, with every row accounted for.

Knows: the order of the steps, what stays and why the rest does not, the split. Does not
know: how a step finds what it drops (`duplicates`, `contamination`).
"""

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset, concatenate_datasets

from course_utils.data import sources, world
from course_utils.data.mixing import contamination, duplicates
from course_utils.data.mixing.texts import questions
from course_utils.data.sources.mapping import pair_hash

ASKED = "asked in the tests"
LONG = "longer than max_length"
WEIGHT = "weight of the source"
CAP = "cap of the source"


@dataclass(frozen=True)
class Mix:
    """What a mix holds and how it came about.

    train, evaluation: Datasets with the columns of `sources.PAIR`.
    report: one dict a source, {"source", "rows", "kept", and a count a reason to drop};
        kept and dropped sum to the rows.
    settings: what `build` was told, and the cards' version. cards: {source: Card}.
    notes: list of str, where a real source is not what its card says.
    """

    train: Dataset
    evaluation: Dataset
    report: list
    settings: dict = field(default_factory=dict)
    cards: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)


def build(
    data="world",
    seed=11,
    cards=None,
    evaluation_pairs=420,
    *,
    version="v1.0",
    without=(),
    near_duplicates=None,
    benchmarks=None,
    length=None,
    max_length=None,
    weights=None,
    caps=None,
):
    """The course's mix of all sources, cleaned, shuffled with `seed` and split.

    data: see `sources.load_rows`. cards: {source: Card}, by default all of `version`.
    version: "v1.0" is the mix as the article lists it, "v1.2" as it is published.
    without: names of sources to leave out, such as ("toxic",).
    near_duplicates: similarity from which a pair counts as a repeat of an earlier one,
        False for no such search; by default as the card of the mix says.
    benchmarks: {name: questions} whose questions may not be trained on, questions as in
        `mixing.benchmark_prompts`; None looks them up by name on the hub.
    length, max_length: a function from a list of pairs to their lengths in tokens, and
        what they may have; by default no pair is too long.
    weights: {source: share of its pairs that stay, above 0 and up to 1}.
    caps: {source: pairs it may have at most}, after the weights.

    On the small world the evaluation pairs are its own held-out ones (other towns,
    other sums), and no training pair asks what they ask; elsewhere they are split off
    the mix by the hash of their prompt, each with a prompt that occurs once.
    Returns: Mix. Raises: ValueError if a name is no source's, a weight or cap makes no
    sense, or the mix is too small to set the evaluation pairs aside.
    """
    cards = sources.cards(version=version) if cards is None else cards
    weights, caps = _checked(cards, without, weights, caps)
    cards = {name: card for name, card in cards.items() if name not in without}
    if near_duplicates is None:
        near_duplicates = sources.card_of("mix")["course"]["near_duplicates"]
    asked_by = {
        name: contamination.benchmark_prompts(name, source)
        for name, source in (benchmarks or {}).items()
    }
    tests = _world_tests(evaluation_pairs) if data == "world" else []
    asked = {questions(row["prompt"]) for row in tests}

    parts, ledger, notes = [], {}, []
    for name, card in cards.items():
        rows = sources.load_rows(card, data, seed)
        pairs, dropped = sources.to_pairs(card, rows)
        ledger[name] = Counter(dropped, rows=len(rows))
        if data == "hub":
            notes += _surprises(card, version, len(rows), len(pairs))
        parts.append(pairs)
    parts = [part for part in parts if len(part)]
    if not parts:
        raise ValueError("The rules of the cards keep no pair at all.")
    pairs = concatenate_datasets(parts)

    pairs = _drop(pairs, duplicates.repeats(pairs), ledger)
    if near_duplicates is not False:
        pairs = _drop(pairs, duplicates.near_repeats(pairs, near_duplicates), ledger)
    if asked_by:
        pairs = _drop(pairs, contamination.find_overlap(pairs, asked_by), ledger)
    if asked:
        known = [questions(prompt) in asked for prompt in pairs["prompt"]]
        pairs = _drop(pairs, [ASKED if yes else "" for yes in known], ledger)
    if length is not None:
        long = np.array(length(pairs)) > max_length
        pairs = _drop(pairs, [LONG if yes else "" for yes in long], ledger)
    pairs = _drop(pairs, _above(pairs, seed, weights, WEIGHT), ledger)
    pairs = _drop(pairs, _above(pairs, seed, caps, CAP), ledger)

    kept = Counter(pairs["source"])
    report = [
        {"source": name, "rows": counts.pop("rows"), "kept": kept[name], **counts}
        for name, counts in ledger.items()
    ]
    settings = {
        "data": data if data in ("world", "hub") else "local files",
        "version": version,
        "seed": seed,
        "evaluation_pairs": evaluation_pairs,
        "without": sorted(without),
        "near_duplicates": near_duplicates,
        "benchmarks": sorted(asked_by),
        "max_length": max_length,
        "weights": weights,
        "caps": caps,
    }
    mixed = pairs.shuffle(seed=seed)
    if data == "world":
        evaluation = _with_provenance(tests[:evaluation_pairs])
    else:
        mixed, evaluation = _split(mixed, evaluation_pairs, seed)
    return Mix(mixed, evaluation, report, settings, cards, notes)


def _checked(cards, without, weights, caps):
    """(weights, caps) as dicts, or a ValueError that says which setting is wrong."""
    weights, caps = dict(weights or {}), dict(caps or {})
    for setting, names in (("without", without), ("weights", weights), ("caps", caps)):
        if isinstance(names, str):
            raise ValueError(f'{setting} is a list of sources: ("{names}",)')
        unknown = [name for name in names if name not in cards]
        if unknown:
            raise ValueError(
                f"{setting} names {', '.join(unknown)}, which no card describes. "
                f"Known: {', '.join(cards)}."
            )
    for name, weight in weights.items():
        if not 0 < weight <= 1:
            raise ValueError(
                f"weights: {name} has {weight!r}; a weight is the share of its pairs "
                "that stays, above 0 and up to 1. To leave a source out name it in "
                "`without`; pairs are never repeated."
            )
    for name, cap in caps.items():
        if not (isinstance(cap, int) and cap > 0):
            raise ValueError(f"caps: {name} has {cap!r}; a cap is a number of pairs.")
    return weights, caps


def _surprises(card, version, rows, kept):
    """Where the hub's rows are not as many as the card says: list of str."""
    told = []
    if card.rows is not None and rows != card.rows:
        told.append(
            f"{card.source}: {rows:,} rows, the card says {card.rows:,}. The source "
            "was changed upstream; its published counts no longer apply."
        )
    expected = card.kept(version)
    if expected is not None and kept != expected:
        told.append(
            f"{card.source}: its card keeps {kept:,} pairs; {expected:,} are "
            f"published for {version}."
        )
    return told


def _drop(pairs, reasons, ledger):
    """The pairs without a reason; the others are counted."""
    for source, reason in zip(pairs["source"], reasons, strict=True):
        if reason:
            ledger[source][reason] += 1
    stay = [number for number, reason in enumerate(reasons) if not reason]
    return pairs if len(stay) == len(pairs) else pairs.select(stay)


def _above(pairs, seed, limits, reason):
    """Which pairs are too many for their source's weight or cap: a list of reasons.

    The pairs that stay are those of the smallest hash of seed and content, so that the
    choice hangs neither on the order of the rows nor on other sources.
    """
    origin = np.array(pairs["source"], dtype=object)
    reasons = np.full(len(pairs), "", dtype=object)
    for source, limit in limits.items():
        own = np.flatnonzero(origin == source)
        stay = limit if reason == CAP else round(limit * len(own))
        hashes = [_order(seed, key) for key in pairs.select(own)["hash"]]
        reasons[own[np.argsort(hashes, kind="stable")[stay:]]] = reason
    return reasons.tolist()


def _order(seed, key):
    """A number that puts pairs or prompts into an order of the seed's own."""
    return int(hashlib.sha256(f"{seed} {key}".encode()).hexdigest()[:15], 16)


def _world_tests(count):
    """At least `count` test pairs; fewer asked change nothing about training."""
    default = world.test_pairs()
    if count <= len(default):
        return default
    return world.test_pairs(-(-count // len(world.SOURCES)))


def _with_provenance(tests):
    rows = [
        {
            **{key: pair[key] for key in ("prompt", "chosen", "rejected", "source")},
            "row": number,
            "hash": pair_hash(pair["prompt"], pair["chosen"], pair["rejected"]),
        }
        for number, pair in enumerate(tests)
    ]
    return Dataset.from_list(rows, features=sources.PAIR)


def _split(mix, count, seed):
    """(train, evaluation) without a common prompt, so that nothing is tested by heart.

    Only prompts that occur once are set aside: then every pair counts as one item. The
    prompt's hash decides, so a pair stays on its side when sources come or go.
    """
    keys = [questions(prompt) for prompt in mix["prompt"]]
    times = Counter(keys)
    alone = [i for i, key in enumerate(keys) if times[key] == 1]
    if len(alone) < count or len(mix) <= count:
        raise ValueError(
            f"The mix has {len(mix)} pairs, {len(alone)} of them with a prompt of "
            f"their own: too few to set {count} aside."
        )
    alone.sort(key=lambda i: _order(seed, keys[i]))
    aside = set(alone[:count])
    rest = [i for i in range(len(mix)) if i not in aside]
    return mix.select(rest), mix.select(alone[:count])
