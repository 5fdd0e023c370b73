"""The rows of a source: from the small world, from files of one's own, from the hub.

Knows: where rows come from, and what each way of failing asks the reader to do. Does
not know: what the rows say.
"""

from pathlib import Path

import pyarrow as pa
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from course_utils.data import world

_BUILDERS = {"jsonl": "json", "json": "json", "parquet": "parquet", "csv": "csv"}

# Words by which causes are told apart that have no type of their own.
_CUT = ("without sending complete message body", "Consistency check failed")
_UNREACHABLE = (
    "Couldn't reach",
    "Server disconnected",
    "Connection refused",
    "timed out",
    "Name or service not known",
    "Temporary failure in name resolution",
)


class SourceUnavailable(RuntimeError):
    """A source could not be had from the hub; the message says what to do."""


def load_rows(card, data="world", seed=11):
    """The rows of a source as a `datasets.Dataset`, in the source's own columns.

    data: "world" for the lab's small world, "hub" for the real source, a folder that
    holds `<source>.jsonl`, `.json`, `.parquet` or `.csv`, or one such file.
    Raises: FileNotFoundError naming the folder and the files it should hold; ValueError
    if a file cannot be read as what its name says, or if the card names no repository;
    SourceUnavailable where the hub does not deliver.
    """
    if data == "world":
        version = card.versions[0] if card.versions else "v1.0"
        rows = world.rows(card.source, seed=seed, version=version)
        return Dataset.from_list(rows)
    if data == "hub":
        if card.repo is None:
            raise ValueError(
                f"{card.path.name} names no `repo`, so the hub cannot have its rows. "
                f"Put {card.source}.jsonl into a folder and set COURSE_DATA to it."
            )
        return from_hub(card.repo, revision=card.revision)
    return _from_file(_file_of(card, Path(data)))


def _file_of(card, place):
    if place.is_file():
        return place
    for suffix in _BUILDERS:
        path = place / f"{card.source}.{suffix}"
        if path.is_file():
            return path
    names = [f"{card.source}.{suffix}" for suffix in _BUILDERS]
    raise FileNotFoundError(
        f"{place} holds none of {', '.join(names)}. Put the source's rows there, or "
        "leave COURSE_DATA unset."
    )


def _from_file(path):
    builder = _BUILDERS.get(path.suffix.lstrip("."))
    if builder is None:
        raise ValueError(f"{path}: rows are read from {', '.join(_BUILDERS)} only.")
    try:
        return load_dataset(builder, data_files=str(path), split="train")
    except (DatasetGenerationError, pa.ArrowInvalid) as error:
        # datasets' own message says only that it failed; its cause names the line.
        raise ValueError(
            f"{path} cannot be read as {path.suffix.lstrip('.')}: "
            f"{error.__cause__ or error}"
        ) from error


def from_hub(repo, name=None, revision="main", split="train"):
    """A split of a data set on the hub. name: its configuration.

    Raises: SourceUnavailable that says what to do, where the hub does not deliver.
    """
    try:
        return load_dataset(repo, name, revision=revision, split=split)
    except Exception as error:
        advice = _advice(repo, revision, error)
        if advice is None:
            raise
        raise SourceUnavailable(f"{repo}: {advice}") from error


def _advice(repo, revision, error):
    """What went wrong with a data set of the hub and what to do, or None if unclear.

    error: what `datasets` raised. Its own words can mislead: a hub that answers 429
    reads "Couldn't find any data file at" a local folder; its causes say why.
    """
    chain = list(_causes(error))
    responses = [getattr(cause, "response", None) for cause in chain]
    response = next((found for found in responses if found is not None), None)
    status = getattr(response, "status_code", None)
    texts = " ".join(str(e) for e in chain)
    page = f"https://huggingface.co/datasets/{repo}"
    again = "What is already here stays in the cache: run this cell again"
    if "gated dataset" in texts:
        return (
            f"it is gated. Log in at huggingface.co and accept its conditions on "
            f"{page}, then run `hf auth login` here (on Colab: a secret HF_TOKEN)."
        )
    if status == 429:
        wait = response.headers.get("retry-after")
        return (
            "the hub answers 429, too many requests. Wait "
            f"{wait + ' seconds' if wait else 'some minutes'}; who is logged in "
            f"(`hf auth login`) may ask more often. {again}."
        )
    if status is not None and status >= 500:
        return f"the hub answers {status}, so it is in trouble itself. {again} later."
    if isinstance(error, DatasetNotFoundError):
        if str(error).startswith("Revision"):
            return f"it has no revision {revision!r}. Mend `revision` in its card."
        return (
            "the hub shows no such data set: it was renamed, removed or made private. "
            f"Look at {page}, and mend `repo` in its card."
        )
    if any(word in texts for word in _CUT):
        return f"a file of it was cut off on its way. {again}."
    if any(word in texts for word in _UNREACHABLE):
        return (
            "the hub cannot be reached. Check the connection and run this cell again; "
            "without one set COURSE_PROFILE=cpu for the lab's small world, or "
            "COURSE_DATA to a folder that holds the sources."
        )
    return None


def _causes(error):
    """The error and what caused it, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
