"""One source of preference data: its card, its rows, its pairs.

Knows: the data cards (`data_cards/*.md`), whose front matter is both hub metadata and
the rule that this code runs; where rows come from (the small world, a local folder, the
hub). Does not know: tokens, other sources.

A pair is {"prompt": [messages], "chosen": [message], "rejected": [message],
"source": str}.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import yaml
from datasets import Dataset, load_dataset

from . import places, world


@dataclass(frozen=True)
class Card:
    """What a data card says that code needs.

    rows, kept: the real source's rows, and how many of them the published mix holds.
    published: {where a number stands: pairs of this source}, for the published mix.
    keep: a pandas expression over the columns; a row stays where it is true. "" keeps
    all.
    prompt: {"messages": column} or {"user": column, "system": column (optional)}.
    chosen, rejected: columns, each a string or a list of messages whose last is the
    answer.
    """

    path: Path
    source: str
    repo: str
    license: str
    rows: int
    kept: int
    keep: str
    prompt: dict
    chosen: str
    rejected: str
    title: str
    published: dict


_REQUIRED = ("source", "repo", "rows", "kept", "keep", "prompt", "chosen", "rejected")


def read_card(path):
    """The card in this Markdown file.

    Raises: ValueError that names the file and what is wrong with its front matter.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        raise ValueError(
            f"{path} has no front matter: it must begin with a `---` block."
        )
    front, body = text[4:].split("\n---\n", 1)
    try:
        metadata = yaml.safe_load(front)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: the front matter is not YAML: {error}") from error
    rule = metadata.get("course") if isinstance(metadata, dict) else None
    if not isinstance(rule, dict):
        raise ValueError(f"{path}: the front matter has no `course:` block.")
    missing = [key for key in _REQUIRED if key not in rule]
    if missing:
        raise ValueError(f"{path}: `course:` lacks {', '.join(missing)}.")
    prompt = rule["prompt"]
    known = ({"messages"}, {"user"}, {"user", "system"})
    if not isinstance(prompt, dict) or set(prompt) not in known:
        raise ValueError(
            f"{path}: `prompt` must give `messages`, or `user` and, where there is "
            "one, `system`."
        )
    title = next((ln[2:] for ln in body.splitlines() if ln.startswith("# ")), None)
    if title is None or "license" not in metadata:
        lacking = "`# title` below the front matter" if title is None else "`license:`"
        raise ValueError(f"{path} has no {lacking}.")
    fields = {key: rule[key] for key in _REQUIRED}
    return Card(
        path=path,
        license=metadata["license"],
        title=title,
        published=rule.get("published", {}),
        **fields,
    )


def cards(folder=None):
    """All cards of the mix's sources: {source: Card}, in the order of the files.

    folder: by default the course's own. Raises: FileNotFoundError if it holds no card;
    ValueError if two cards describe one source.
    """
    folder = Path(folder) if folder else places.data_cards()
    found = {}
    for path in sorted(folder.glob("*.md")):
        card = read_card(path)
        if card.source in found:
            raise ValueError(
                f"{path.name} and {found[card.source].path.name} both describe "
                f"{card.source!r}."
            )
        found[card.source] = card
    if not found:
        raise FileNotFoundError(f"{folder} holds no data card (a Markdown file).")
    return found


def load_rows(card, data="world", seed=11):
    """The rows of a source as a `datasets.Dataset`, in the source's own columns.

    data: "world" for the lab's small world, "hub" for the real source, or a folder that
    holds `<source>.jsonl` or `<source>.parquet`.
    Raises: FileNotFoundError naming the folder and the files it should hold.
    """
    if data == "world":
        return Dataset.from_list(world.rows(card.source, seed=seed))
    if data == "hub":
        return load_dataset(card.repo, split="train")
    folder = Path(data)
    for suffix, builder in (("jsonl", "json"), ("parquet", "parquet")):
        path = folder / f"{card.source}.{suffix}"
        if path.is_file():
            return load_dataset(builder, data_files=str(path), split="train")
    raise FileNotFoundError(
        f"{folder} holds neither {card.source}.jsonl nor {card.source}.parquet. "
        "Put the source's rows there, or leave COURSE_DATA unset."
    )


def _prompt(card, row):
    if "messages" in card.prompt:
        # Sources order role and content differently, which no data set may mix.
        return [
            {"role": message["role"], "content": message["content"]}
            for message in row[card.prompt["messages"]][:-1]
        ]
    messages = []
    if row.get(card.prompt.get("system", ""), ""):
        messages.append({"role": "system", "content": row[card.prompt["system"]]})
    return [*messages, {"role": "user", "content": row[card.prompt["user"]]}]


def _answer(value):
    text = (
        value if isinstance(value, str) else (value[-1]["content"] if value else None)
    )
    return [{"role": "assistant", "content": text}]


def to_pairs(card, rows):
    """Apply the card to its rows.

    Returns: (pairs, dropped): a Dataset of pairs, and a Counter {reason: rows}. The
    pairs and the dropped rows sum to the rows. Reasons, in this order: "an answer is
    missing", "both answers are the same", "rule".
    Raises: ValueError naming the card and the column that the rows lack.
    """
    used = [*card.prompt.values(), card.chosen, card.rejected]
    lacking = [column for column in used if column not in rows.column_names]
    if lacking:
        raise ValueError(
            f"{card.path.name}: the rows have no column {', '.join(lacking)}; they "
            f"have {', '.join(rows.column_names)}. Was it renamed upstream? Mend the "
            "card."
        )
    follows_rule = _rule_mask(card, rows)
    pairs, dropped = [], Counter()
    for row, keep in zip(rows, follows_rule, strict=True):
        chosen, rejected = _answer(row[card.chosen]), _answer(row[card.rejected])
        if not (chosen[0]["content"] and rejected[0]["content"]):
            dropped["an answer is missing"] += 1
        elif chosen == rejected:
            dropped["both answers are the same"] += 1
        elif not keep:
            dropped["rule"] += 1
        else:
            pairs.append(
                {
                    "prompt": _prompt(card, row),
                    "chosen": chosen,
                    "rejected": rejected,
                    "source": card.source,
                }
            )
    return Dataset.from_list(pairs), dropped


def _rule_mask(card, rows):
    """list of bool: where the card's expression holds; never for a missing value."""
    if not card.keep:
        return [True] * len(rows)
    simple = [
        name
        for name, feature in rows.features.items()
        if getattr(feature, "dtype", None) not in (None, "list", "struct")
    ]
    # pandas' own types keep a missing value missing; `not None` would else be an error.
    frame = rows.select_columns(simple).to_pandas().convert_dtypes()
    try:
        mask = frame.eval(card.keep)
    except Exception as error:
        raise ValueError(
            f"{card.path.name}: the rule `{card.keep}` fails on these rows: {error}. "
            f"Columns it can use: {', '.join(simple)}."
        ) from error
    if not (isinstance(mask, pd.Series) and pd.api.types.is_bool_dtype(mask)):
        raise ValueError(
            f"{card.path.name}: the rule `{card.keep}` does not say yes or no of every "
            "row; write a comparison, such as `rating >= 5`."
        )
    return mask.fillna(False).astype(bool).tolist()
