"""The page of a mix, written from what `build` counted.

It is a dataset card in the hub's format; every number in it is in the mix.
"""

import re
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from course_utils.data import sources
from course_utils.data.mixing.build import Mix
from course_utils.setup import folders
from course_utils.setup.printing import markdown_table, one_line
from course_utils.setup.profiles import WORLD

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))


def card(mix: Mix, name: str) -> str:
    """The mix as a dataset card: a str of Markdown with the hub's front matter.

    mix: as `build` returns it. name: the card's title. Every number in it is counted.
    """
    total = len(mix.train) + len(mix.evaluation)
    front = {
        "license": _license(mix),
        "language": ["en"],
        "pretty_name": name,
        "size_categories": [
            next((size for below, size in SIZES if total < below), "100K<n<1M")
        ],
        "task_categories": ["text-generation"],
        "tags": ["preference", "dpo", "orpo"]
        + ["not-for-all-audiences"] * bool(_warned(mix)),
    }
    sections = [
        f"# {name}",
        f"{len(mix.train):,} preference pairs to train on and {len(mix.evaluation):,} "
        f"to evaluate with, from {len(mix.cards)} sources.",
        *_warnings(mix),
        "## Where the rows went",
        _table(_counts(mix)),
        "Every row of a source is kept or counted under the first reason to drop it.",
        *[f"- {one_line(note)}" for note in mix.notes],
        "## Sources",
        _table(_sources(mix)),
        "## How it was made",
        "\n".join(f"- {key}: {_shown(value)}" for key, value in mix.settings.items()),
        "Each pair names its `source`, its `row` there, counted from 0, and the `hash` "
        "of its messages.",
        "## Citation",
        *_citations(mix),
    ]
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(sections) + "\n"


def write_card(mix: Mix, folder: str | Path, name: str) -> Path:
    """Write `card(mix, name)` to README.md in a folder, completely or not at all."""
    page = Path(folder) / "README.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    folders.write_text(page, card(mix, name))
    return page


def _is_world(mix):
    """The small world's rows are this course's own, whatever columns they come in."""
    return mix.settings["data"] == WORLD


def _license(mix):
    """One licence where all sources share it, else the hub's word for a mixture."""
    if _is_world(mix):
        return sources.card_of(WORLD)["license"]
    found = {card.license for card in mix.cards.values()}
    return found.pop() if len(found) == 1 else "other"


def _warned(mix):
    return [c for c in mix.cards.values() if c.warning and not _is_world(mix)]


def _warnings(mix):
    lines = [f"- **{card.source}**: {one_line(card.warning)}" for card in _warned(mix)]
    return ["## Content warning", "\n".join(lines)] if lines else []


def _citations(mix):
    if _is_world(mix):
        return ["Made by this course from the small world; nothing to cite."]
    lines = [
        f"- {c.source}: {one_line(c.citation) or 'not given'}"
        for c in mix.cards.values()
    ]
    return ["\n".join(lines)]


def _counts(mix):
    frame = pd.DataFrame(mix.report).set_index("source").fillna(0).astype(int)
    frame.loc["all"] = frame.sum()
    return frame.map("{:,}".format)


def _sources(mix):
    train, test = Counter(mix.train["source"]), Counter(mix.evaluation["source"])
    world = "the small world, like {}" if _is_world(mix) else ""
    rows = []
    for card in mix.cards.values():
        where = f"{card.repo} ({card.revision})" if card.repo else "local files"
        rows.append(
            {
                "source": card.source,
                "rows from": world.format(card.repo) if world else where,
                "licence": _license(mix) if world else card.license,
                "rule": _code(card.keep) if card.keep else "all rows",
                "train": f"{train[card.source]:,}",
                "test": f"{test[card.source]:,}",
            }
        )
    return pd.DataFrame(rows).set_index("source")


def _shown(value):
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value is False else one_line(value)


def _code(text):
    """A text as Markdown's code, between more backticks than it holds in a row."""
    text = one_line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " * bool(longest)
    return f"{fence}{space}{text}{space}{fence}"


def _table(frame):
    """A DataFrame as a Markdown table, its index as the first column."""
    return markdown_table([frame.index.name, *frame.columns], frame.itertuples())
