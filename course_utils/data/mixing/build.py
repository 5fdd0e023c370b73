"""One mix out of all sources, with every row accounted for.

Here are the order of the steps, what stays and why the rest does not, and the split;
how a step finds what it drops stands in `duplicates` and `contamination`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from course_utils.data import sources, world
from course_utils.data.mixing import contamination, duplicates
from course_utils.data.sources.mapping import pair_hash
from course_utils.data.texts import questions
from course_utils.setup.profiles import HUB, WORLD

ASKED = "asked in the tests"
LONG = "longer than max_length"
WEIGHT = "weight of the source"
CAP = "cap of the source"


@dataclass(frozen=True)
class Mix:
    """What a mix holds and how it came about.

    train, evaluation: Datasets with the columns of `sources.PAIR`.
    report: one dict per source, {"source", "rows", "kept", and a count per reason to
        drop}; kept and dropped sum to the rows.
    settings: what `build` was given, and the cards' version. cards: {source: Card}.
    notes: where a real source is not what its card says.
    """

    train: Dataset
    evaluation: Dataset
    report: list[dict]
    settings: dict = field(default_factory=dict)
    cards: dict[str, sources.Card] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build(
    data: str | Path = WORLD,
    seed: int = 11,
    cards: dict[str, sources.Card] | None = None,
    evaluation_pairs: int = 420,
    *,
    version: str = "v1.0",
    without: Iterable[str] = (),
    near_duplicates: float | bool | None = None,
    benchmarks: dict | None = None,
    length: Callable | None = None,
    max_length: int | None = None,
    weights: dict[str, float] | None = None,
    caps: dict[str, int] | None = None,
) -> Mix:
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
    the mix by the hash of their prompt, every prompt once. Two prompts are the same if
    `texts.normalise` makes them so.
    Raises: ValueError if a name is no source's, a setting makes no sense, or the mix is
    too small to set the evaluation pairs aside.
    """
    cards = sources.cards(version=version) if cards is None else cards
    if near_duplicates is None:
        near_duplicates = sources.card_of("mix")["course"]["near_duplicates"]
    settings = {
        "data": data if data in (WORLD, HUB) else "local files",
        "version": version,
        "seed": seed,
        "evaluation_pairs": evaluation_pairs,
        "without": without if isinstance(without, str) else sorted(without),
        "near_duplicates": near_duplicates,
        "benchmarks": sorted(benchmarks or {}),
        "max_length": max_length,
        "weights": dict(weights or {}),
        "caps": dict(caps or {}),
    }
    _check_settings(settings, cards, length)
    cards = {name: card for name, card in cards.items() if name not in without}
    tests = _world_tests(evaluation_pairs) if data == WORLD else []

    searches = list(_searches(settings, benchmarks, tests, length))
    pairs, ledger, notes = _read_sources(cards, data, seed, version)
    for find in searches:
        pairs = _drop(pairs, find(pairs), ledger)
    train = pairs.shuffle(seed=seed)
    if data == WORLD:
        evaluation = _with_provenance(tests[:evaluation_pairs])
        kept = Counter(train["source"])
    else:
        train, evaluation = _split(train, evaluation_pairs, seed, ledger)
        kept = Counter(train["source"]) + Counter(evaluation["source"])
    report = [
        {"source": name, "rows": counts.pop("rows"), "kept": kept[name], **+counts}
        for name, counts in ledger.items()
    ]
    return Mix(train, evaluation, report, settings, cards, notes)


def _check_settings(settings, cards, length):
    """ValueError that says which setting makes no sense."""
    for setting in ("without", "weights", "caps"):
        names = settings[setting]
        if isinstance(names, str):
            raise ValueError(f'{setting} is a list of sources: ("{names}",)')
        unknown = [name for name in names if name not in cards]
        if unknown:
            raise ValueError(
                f"{setting} names {', '.join(unknown)}, which no card describes. "
                f"Known: {', '.join(cards)}."
            )
    for name, weight in settings["weights"].items():
        if not (isinstance(weight, int | float) and 0 < weight <= 1):
            raise ValueError(
                f"weights: {name} has {weight!r}; a weight is the share of its pairs "
                "that stays, above 0 and up to 1. To leave a source out name it in "
                "`without`; pairs are never repeated."
            )
    for name, cap in settings["caps"].items():
        if not _is_count(cap) or cap == 0:
            raise ValueError(f"caps: {name} has {cap!r}; a cap is a number of pairs.")
    if not _is_count(settings["evaluation_pairs"]):
        raise ValueError(
            f"evaluation_pairs is {settings['evaluation_pairs']!r}; it is a number of "
            "pairs."
        )
    if (length is None) != (settings["max_length"] is None):
        raise ValueError("length and max_length go together: give both or neither.")


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_sources(cards, data, seed, version):
    """(pairs, ledger, notes): the sources' pairs in one Dataset, and what was dropped.

    ledger: {source: Counter of "rows" and of the reasons to drop one}.
    """
    parts, ledger, notes = [], {}, []
    for name, card in cards.items():
        rows = sources.load_rows(card, data, seed)
        pairs, dropped = sources.to_pairs(card, rows)
        ledger[name] = Counter(dropped, rows=len(rows))
        if data == HUB:
            notes += _surprises(card, version, len(rows), len(pairs))
        parts.append(pairs)
    parts = [part for part in parts if len(part)]
    if not parts:
        raise ValueError("The rules of the cards keep no pair at all.")
    return concatenate_datasets(parts), ledger, notes


def _searches(settings, benchmarks, tests, length):
    """What to look for in the pairs, in this order: functions from pairs to reasons."""
    yield duplicates.repeats
    threshold = settings["near_duplicates"]
    if threshold is not False:
        yield lambda pairs: duplicates.near_repeats(pairs, threshold)
    if benchmarks:
        asked_by = {
            name: contamination.benchmark_prompts(name, source)
            for name, source in benchmarks.items()
        }
        yield lambda pairs: contamination.find_overlap(pairs, asked_by)
    if tests:
        asked = {questions(row["prompt"]) for row in tests}
        yield lambda pairs: [
            ASKED if questions(prompt) in asked else "" for prompt in _prompts(pairs)
        ]
    if length is not None:
        yield lambda pairs: [
            LONG if tokens > settings["max_length"] else "" for tokens in length(pairs)
        ]
    seed = settings["seed"]
    yield lambda pairs: _above(pairs, seed, settings["weights"], WEIGHT)
    yield lambda pairs: _above(pairs, seed, settings["caps"], CAP)


def _surprises(card, version, rows, kept):
    """Where the hub's rows are not as many as the card says: list of str."""
    notes = []
    if card.rows is not None and rows != card.rows:
        notes.append(
            f"{card.source}: {rows:,} rows, the card says {card.rows:,}. The source "
            "was changed upstream; its published counts no longer apply."
        )
    expected = card.kept(version)
    if expected is not None and kept != expected:
        notes.append(
            f"{card.source}: its card keeps {kept:,} pairs; {expected:,} are "
            f"published for {version}."
        )
    return notes


def _drop(pairs, reasons, ledger):
    """The pairs without a reason; the others are counted."""
    for source, reason in zip(pairs["source"][:], reasons, strict=True):
        if reason:
            ledger[source][reason] += 1
    # An array, since datasets hashes a list number by number.
    stay = np.flatnonzero(np.array(reasons, dtype=object) == "")
    return pairs if len(stay) == len(pairs) else pairs.select(stay)


def _prompts(pairs):
    """The prompts one by one, read in batches: row by row takes ten times as long."""
    for batch in pairs.select_columns(["prompt"]).iter(1_000):
        yield from batch["prompt"]


def _above(pairs, seed, limits, reason):
    """Which pairs are too many for their source's weight or cap: a list of reasons.

    The pairs that stay are those of the smallest hash of seed and content, so that the
    choice depends neither on the order of the rows nor on other sources.
    """
    origin = np.array(pairs["source"][:], dtype=object)
    reasons = np.full(len(pairs), "", dtype=object)
    for source, limit in limits.items():
        own = np.flatnonzero(origin == source)
        stay = limit if reason == CAP else round(limit * len(own))
        hashes = [_order(seed, key) for key in pairs.select(own)["hash"][:]]
        reasons[own[np.argsort(hashes, kind="stable")[stay:]]] = reason
    return reasons.tolist()


def _order(seed, key):
    """A number that puts pairs or prompts into an order of the seed's own."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).hexdigest()
    return int(digest[:15], 16)


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


def _split(mix, count, seed, ledger):
    """(train, evaluation) without a common prompt: no test was seen in training.

    Prompts that occur once are set aside first. Of a prompt that occurs more often one
    pair is set aside and the others are dropped: so every pair counts as one item. The
    prompt's hash decides, so a pair stays on its side when sources come or go.
    """
    pairs_of = {}
    for number, prompt in enumerate(_prompts(mix)):
        pairs_of.setdefault(questions(prompt), []).append(number)
    if len(pairs_of) <= count:
        raise ValueError(
            f"The mix has {len(mix)} pairs with {len(pairs_of)} different prompts: too "
            f"few to set {count} aside."
        )
    prompts = sorted(pairs_of, key=lambda p: (len(pairs_of[p]) > 1, _order(seed, p)))
    hashes, tests, dropped = mix["hash"][:], [], [""] * len(mix)
    for prompt in prompts[:count]:
        test = min(pairs_of[prompt], key=lambda number: _order(seed, hashes[number]))
        tests.append(test)
        for number in pairs_of[prompt]:
            dropped[number] = ASKED
    evaluation = mix.select(tests)
    for source in evaluation["source"]:
        ledger[source][ASKED] -= 1  # the test itself is kept
    return _drop(mix, dropped, ledger), evaluation
