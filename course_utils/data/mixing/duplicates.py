"""Pairs that come twice: the same, or nearly the same words.

The earlier of two equal pairs stays, whichever is the better one.

Near repeats are found among texts of a pair's questions and its chosen answer, cut into
runs of five words. How alike two texts are is the Jaccard similarity of their runs,
estimated with 128 permutations (standard error at most 0.045).
"""

from collections import Counter

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value
from datasketch import MinHash, MinHashLSH

from course_utils.data import texts
from course_utils.data.sources.mapping import pair_hash

REPEAT = "the same pair again"
NEAR = "nearly the same pair again"
PERMUTATIONS = 128
RUN = 5  # words
_BLANK = MinHash(num_perm=PERMUTATIONS, scheme="affine32")


def repeats(pairs: Dataset) -> list[str]:
    """One per pair: `REPEAT` where an earlier one has the same messages, normalised."""
    answers = []
    for batch in pairs.select_columns(["chosen"]).iter(1_000):
        answers += [
            hash(tuple(m["content"] for m in _normalised(messages)))
            for messages in batch["chosen"]
        ]
    # Only pairs that share their chosen answer with another one are read whole.
    times, reasons, seen = Counter(answers), [""] * len(pairs), set()
    several = [number for number, key in enumerate(answers) if times[key] > 1]
    left = iter(several)
    sides = pairs.select_columns(["prompt", "chosen", "rejected"])
    for batch in sides.select(np.array(several, dtype=np.int64)).iter(1_000):
        for messages in zip(*batch.values(), strict=True):
            key, number = pair_hash(*map(_normalised, messages)), next(left)
            reasons[number] = REPEAT if key in seen else ""
            seen.add(key)
    return reasons


def _normalised(messages):
    return [m | {"content": texts.normalise(m["content"])} for m in messages]


def near_repeats(pairs: Dataset, threshold: float = 0.8) -> list[str]:
    """One per pair: `NEAR` where an earlier one that stays is nearly the same.

    threshold: Jaccard similarity from which two texts count as nearly the same.
    Raises: ValueError if it is not between 0 and 1.
    """
    values = signatures(pairs)
    index, reasons = _index(threshold), [""] * len(pairs)
    for number, sketch in _sketches(values, index):
        found = _alike(values, index.query(sketch), number, threshold)
        if len(found):
            reasons[number] = NEAR
        else:
            index.insert(number, sketch, check_duplication=False)
    return reasons


def overlap(pairs: Dataset, threshold: float = 0.8) -> pd.DataFrame:
    """How often a pair of one source is nearly the same as one of another.

    Returns: DataFrame, sources by sources: of the pairs of the row's source, the number
    that have such a pair in the column's source; on the diagonal, within the source.
    """
    values = signatures(pairs)
    index = _index(threshold)
    for number, sketch in _sketches(values, index):
        index.insert(number, sketch, check_duplication=False)
    origin = np.array(pairs["source"][:], dtype=object)
    names = list(dict.fromkeys(origin))
    counts = pd.DataFrame(0, index=names, columns=names)
    for number, sketch in _sketches(values, index):
        others = [n for n in index.query(sketch) if n != number]
        for name in set(origin[_alike(values, others, number, threshold)]):
            counts.loc[origin[number], name] += 1
    return counts


def signatures(pairs: Dataset) -> np.ndarray:
    """The MinHash of every pair: array (pairs, 128) of uint32."""
    mapped = pairs.select_columns(["prompt", "chosen"]).map(
        _sketch_batch,
        batched=True,
        remove_columns=["prompt", "chosen"],
        features=Features({"sketch": List(Value("uint32"), length=PERMUTATIONS)}),
        num_proc=texts.processes(pairs),
    )
    chunks = mapped.with_format("arrow").iter(10_000)
    flat = [chunk["sketch"].combine_chunks().flatten().to_numpy() for chunk in chunks]
    return np.concatenate(flat).reshape(len(pairs), PERMUTATIONS)


def _sketches(values, index):
    """(number, MinHash) of the pairs that share a band of the index with another one.

    No other pair can be found, or find one: so most need not go through the index.
    """
    shares = np.zeros(len(values), dtype=bool)
    for start, end in index.hashranges:
        bands = texts.fold(values[:, start:end].T.astype(np.uint64))
        _, places, times = np.unique(bands, return_inverse=True, return_counts=True)
        shares |= times[places] > 1
    for number in np.flatnonzero(shares):
        sketch = _BLANK.copy()
        sketch.hashvalues = values[number]
        yield int(number), sketch


def _sketch_batch(batch):
    sketches, (scales, shifts) = [], _BLANK.permutations
    for prompt, chosen in zip(batch["prompt"], batch["chosen"], strict=True):
        asked = [m["content"] for m in prompt if m["role"] == "user"]
        said = texts.words(" ".join((*asked, chosen[0]["content"])))
        runs = texts.run_hashes(said, min(max(1, len(said)), RUN))
        permuted = (runs >> 32).astype(np.uint32)[:, None] * scales + shifts
        sketches.append(permuted.min(axis=0, initial=2**32 - 1))
    return {"sketch": sketches}


def _index(threshold):
    if not 0 < threshold <= 1:
        raise ValueError(
            f"near_duplicates is a similarity above 0 and up to 1, not {threshold!r}; "
            "False switches the search off."
        )
    # Candidates are compared again below, so missing one is the mistake to avoid.
    return MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))


def _alike(values, candidates, number, threshold):
    """Those of the candidates, numbers of pairs, that reach the threshold: an array."""
    candidates = np.array(candidates, dtype=np.int64)
    similarity = (values[candidates] == values[number]).mean(axis=1)
    return candidates[similarity >= threshold]
