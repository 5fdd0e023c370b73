"""One source of preference data: its card, its rows, its pairs.

Knows: the data cards (`data_cards/*.md`), whose front matter is both hub metadata and the
rule that this code runs; where rows come from (the small world, a local folder, the hub).
Does not know: tokens, other sources.

A pair is {"prompt": [messages], "chosen": [message], "rejected": [message], "source": str}.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml
from datasets import Dataset, load_dataset

from . import places, world


@dataclass(frozen=True)
class Card:
    """What a data card says that code needs.

    rows, kept: the real source's rows, and how many of them the published mix holds.
    keep: a pandas expression over the columns; a row stays where it is true. "" keeps all.
    prompt: {"messages": column} or {"user": column, "system": column (optional)}.
    chosen, rejected: columns, each a string or a list of messages whose last is the answer.
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


_REQUIRED = ("source", "repo", "rows", "kept", "keep", "prompt", "chosen", "rejected")


def read_card(path):
    """The card in this Markdown file. Raises: ValueError naming the file and what it lacks."""
    text = Path(path).read_text(encoding="utf-8")
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        raise ValueError(f"{path} has no front matter: it must begin with a `---` block.")
    front, body = text[4:].split("\n---\n", 1)
    metadata = yaml.safe_load(front)
    rule = metadata.get("course")
    if not isinstance(rule, dict):
        raise ValueError(f"{path}: the front matter has no `course:` block.")
    missing = [key for key in _REQUIRED if key not in rule]
    if missing:
        raise ValueError(f"{path}: `course:` lacks {', '.join(missing)}.")
    if set(rule["prompt"]) not in ({"messages"}, {"user"}, {"user", "system"}):
        raise ValueError(f"{path}: `prompt` must give `messages`, or `user` and `system`.")
    title = next(line[2:] for line in body.splitlines() if line.startswith("# "))
    fields = {key: rule[key] for key in _REQUIRED}
    return Card(path=Path(path), license=metadata["license"], title=title, **fields)


def cards(folder=None):
    """All cards of the mix's sources: {source: Card}, in the order of the file names."""
    folder = Path(folder) if folder else places.data_cards()
    found = [read_card(path) for path in sorted(folder.glob("*.md"))]
    return {card.source: card for card in found}


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
        return list(row[card.prompt["messages"]][:-1])
    messages = []
    if row.get(card.prompt.get("system", ""), ""):
        messages.append({"role": "system", "content": row[card.prompt["system"]]})
    return [*messages, {"role": "user", "content": row[card.prompt["user"]]}]


def _answer(value):
    text = value if isinstance(value, str) else (value[-1]["content"] if value else None)
    return [{"role": "assistant", "content": text}]


def to_pairs(card, rows):
    """Apply the card to its rows.

    Returns: (pairs, dropped): a Dataset of pairs, and a Counter {reason: rows}. The pairs
    and the dropped rows sum to the rows. Reasons, in this order: "an answer is missing",
    "both answers are the same", "rule".
    Raises: ValueError naming the card and the column that the rows lack.
    """
    used = [*card.prompt.values(), card.chosen, card.rejected]
    lacking = [column for column in used if column not in rows.column_names]
    if lacking:
        raise ValueError(
            f"{card.path.name}: the rows have no column {', '.join(lacking)}; they have "
            f"{', '.join(rows.column_names)}. Was it renamed upstream? Mend the card."
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
    """list of bool: where the card's expression holds. A missing value never satisfies it."""
    if not card.keep:
        return [True] * len(rows)
    simple = [
        name
        for name, feature in rows.features.items()
        if getattr(feature, "dtype", None) not in (None, "list", "struct")
    ]
    frame = rows.select_columns(simple).to_pandas()
    try:
        mask = frame.eval(card.keep)
    except Exception as error:
        raise ValueError(
            f"{card.path.name}: the rule `{card.keep}` fails on these rows: {error}. "
            f"Columns it can use: {', '.join(simple)}."
        ) from error
    return [bool(value) for value in mask.fillna(False)]
