"""The rows of a source: from the small world, from files of one's own, from the hub.

No way of loading runs code: files are JSON, CSV or Parquet, and a data set of the hub
that needs a script or pickles is refused.
"""

import os
from pathlib import Path

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError

from course_utils.data import world
from course_utils.data.sources.data_cards import Card
from course_utils.data.sources.files import READERS, read_file
from course_utils.setup.profiles import HUB, WORLD, is_hub_id

# Words that tell causes apart which have no type of their own.
_CUT = ("without sending complete message body", "Consistency check failed")
_RUNS_CODE = ("scripts are no longer supported", "pickle")
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


def load_rows(card: Card, data: str | Path = WORLD, seed: int = 11) -> Dataset:
    """The rows of a source as a `datasets.Dataset`, in the source's own columns.

    data: "world" for the lab's small world, "hub" for the real source, a folder that
    holds `<source>.jsonl`, `.json`, `.parquet` or `.csv`, or one such file.
    Raises: FileNotFoundError naming the folder and the files it should hold; ValueError
    if a file cannot be read as what its name says, if the card names no repository, or
    if its source lies outside the folder; SourceUnavailable where the hub does not
    deliver.
    """
    if data == WORLD:
        version = card.versions[0] if card.versions else "v1.0"
        rows = world.rows(card.source, seed=seed, version=version)
        return Dataset.from_list(rows)
    if data == HUB:
        if card.repo is None:
            raise ValueError(
                f"{card.path.name} names no `repo`, so the hub cannot have its rows. "
                f"Put {card.source}.jsonl into a folder and set COURSE_DATA to it."
            )
        return from_hub(card.repo, revision=card.revision)
    return read_file(_file_of(card, Path(data)), card.texts)


def _file_of(card, place):
    if place.is_file():
        return place
    names = [f"{card.source}.{suffix}" for suffix in READERS]
    for path in (place / name for name in names):
        # Backslashes separate folders on Windows only: a card is the same everywhere.
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(place))
        if not inside or "\\" in card.source:
            raise ValueError(
                f"{card.path.name}: `source` leads to {path}, outside the data folder "
                f"{place}. Name a file that lies in the folder itself."
            )
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{place} holds none of {', '.join(names)}. Put the source's rows there, or "
        "leave COURSE_DATA unset."
    )


def from_hub(
    repo: str, name: str | None = None, revision: str = "main", split: str = "train"
) -> Dataset:
    """A split of a data set on the hub. name: its configuration.

    Raises: SourceUnavailable that says what to do, where the hub does not deliver;
    ValueError if `repo` is not an owner/name of the hub.
    """
    if not is_hub_id(repo):
        raise ValueError(
            f"{repo!r} is not owner/name of a data set on the hub, or a folder of that "
            "name lies here and would be read in its place."
        )
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
            return f"it has no revision {revision!r}. Correct `revision` in its card."
        return (
            "the hub shows no such data set: it was renamed, removed or made private. "
            f"Look at {page}, and correct `repo` in its card."
        )
    if any(word in texts for word in _RUNS_CODE):
        return (
            "loading it would run code (a script or pickled files), and the course "
            "runs none. Take a copy in Parquet, JSON Lines or CSV."
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
