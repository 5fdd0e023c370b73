"""Pairs that come twice: the same, or nearly the same words.

The earlier of two equal pairs stays, whichever is the better one.

Near repeats are found among texts of a pair's questions and its chosen answer, cut into
runs of five words. How alike two texts are is the Jaccard similarity of their runs,
estimated with 128 permutations (standard error at most 0.045).
"""

import zlib

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
_SKETCH = {"num_perm": PERMUTATIONS, "scheme": "affine32", "hashfunc": zlib.crc32}


def repeats(pairs: Dataset) -> list[str]:
    """One per pair: `REPEAT` where an earlier one has the same messages, normalised."""
    seen, reasons = set(), []
    for batch in pairs.select_columns(["prompt", "chosen", "rejected"]).iter(1_000):
        for sides in zip(*batch.values(), strict=True):
            key = pair_hash(*map(_normalised, sides))
            reasons.append(REPEAT if key in seen else "")
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
    index, reasons = _index(threshold), []
    for number, sketch in enumerate(_sketches(values)):
        found = _alike(values, index.query(sketch), number, threshold)
        reasons.append(NEAR if len(found) else "")
        if not len(found):
            index.insert(number, sketch, check_duplication=False)
    return reasons


def overlap(pairs: Dataset, threshold: float = 0.8) -> pd.DataFrame:
    """How often a pair of one source is nearly the same as one of another.

    Returns: DataFrame, sources by sources: of the pairs of the row's source, the number
    that have such a pair in the column's source; on the diagonal, within the source.
    """
    values = signatures(pairs)
    index = _index(threshold)
    for number, sketch in enumerate(_sketches(values)):
        index.insert(number, sketch, check_duplication=False)
    origin = np.array(pairs["source"], dtype=object)
    names = list(dict.fromkeys(origin))
    counts = pd.DataFrame(0, index=names, columns=names)
    for number, sketch in enumerate(_sketches(values)):
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


def _sketches(values):
    blank = MinHash(**_SKETCH)
    for row in values:
        sketch = blank.copy()
        sketch.hashvalues = row
        yield sketch


def _sketch_batch(batch):
    runs = []
    for prompt, chosen in zip(batch["prompt"], batch["chosen"], strict=True):
        text = " ".join((*texts.questions(prompt), chosen[0]["content"]))
        said = [word.encode() for word in texts.words(text)]
        starts = range(max(1, len(said) - RUN + 1))
        runs.append([b" ".join(said[at : at + RUN]) for at in starts])
    return {"sketch": [sketch.hashvalues for sketch in MinHash.bulk(runs, **_SKETCH)]}


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
