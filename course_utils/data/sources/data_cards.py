"""Data cards: pages for people whose front matter is also the rule that code runs.

Knows: what a card must say and how it says it. Does not know: any row.

The front matter is the hub's dataset metadata (licence, `dataset_info` with the
columns) plus one block of the course's own, `course:`. Two kinds of card describe no
source: `kind: mix` the published mix, `kind: world` the lab's small world.
"""

import difflib
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from course_utils.setup import places

_REQUIRED = ("source", "prompt", "chosen", "rejected")
_OPTIONAL = (
    "repo",
    "revision",
    "rows",
    "versions",
    "keep",
    "published",
    "citation",
    "warning",
)
_PROMPTS = ({"messages"}, {"user"}, {"user", "system"})


@dataclass(frozen=True)
class Card:
    """What the card of one source says that code needs.

    source: its name in the mix. title: the page's heading. license: as the hub spells
        it.
    repo, revision: where the hub has it; None and "main" where the card names neither.
    versions: versions of the mix that it belongs to; () means all.
    columns: {column: datasets feature} as the hub's metadata give them, {} if unknown.
    rows: of the real source, None if unknown.
    keep: a pandas expression over the columns; a row stays where it is true. "" keeps
        all.
    prompt: {"messages": column} or {"user": column, "system": column (optional)}.
    chosen, rejected: columns, each a string or a list of messages whose last is the
        answer.
    published: {where a number stands: pairs of this source}, for the published mix.
    citation, warning: text, "" where there is none.
    """

    path: Path
    source: str
    title: str
    license: str
    prompt: dict
    chosen: str
    rejected: str
    keep: str = ""
    repo: str | None = None
    revision: str = "main"
    versions: tuple = ()
    rows: int | None = None
    columns: dict = field(default_factory=dict)
    published: dict = field(default_factory=dict)
    citation: str = ""
    warning: str = ""

    @property
    def mapped(self):
        """The columns that the prompt and the two answers are read from."""
        return [*self.prompt.values(), self.chosen, self.rejected]

    def kept(self, version):
        """Pairs of this source in a version of the published mix, None if not known."""
        for told in ("data", "card"):
            if f"{version} {told}" in self.published:
                return self.published[f"{version} {told}"]
        return None


def read_front_matter(path):
    """(metadata, body) of a Markdown file: its YAML block as a dict, and what follows.

    Raises: ValueError that names the file and what is wrong with the block.
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
    if not isinstance(metadata, dict) or not isinstance(metadata.get("course"), dict):
        raise ValueError(f"{path}: the front matter has no `course:` block.")
    return metadata, body


def read_card(path):
    """The card of a source in this Markdown file.

    Raises: ValueError that names the file and what is wrong with its front matter.
    """
    path = Path(path)
    metadata, body = read_front_matter(path)
    rule = metadata["course"]
    missing = [key for key in _REQUIRED if key not in rule]
    if missing:
        raise ValueError(f"{path}: `course:` lacks {', '.join(missing)}.")
    for key in rule:
        if key not in _REQUIRED + _OPTIONAL:
            near = difflib.get_close_matches(key, _REQUIRED + _OPTIONAL, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "."
            raise ValueError(f"{path}: `course:` has an unknown key `{key}`{hint}")
    if not isinstance(rule["prompt"], dict) or set(rule["prompt"]) not in _PROMPTS:
        raise ValueError(
            f"{path}: `prompt` must give `messages`, or `user` and, where there is "
            "one, `system`."
        )
    title = next((ln[2:] for ln in body.splitlines() if ln.startswith("# ")), None)
    if title is None or "license" not in metadata:
        lacking = "`# title` below the front matter" if title is None else "`license:`"
        raise ValueError(f"{path} has no {lacking}.")
    columns = _columns(path, metadata)
    card = Card(
        path=path,
        title=title,
        license=metadata["license"],
        columns=columns,
        versions=tuple(rule.get("versions", ())),
        **{key: value for key, value in rule.items() if key != "versions"},
    )
    unknown = [column for column in card.mapped if columns and column not in columns]
    if unknown:
        raise ValueError(
            f"{path}: `course:` reads {', '.join(unknown)}, which `dataset_info` does "
            f"not list. It lists {', '.join(columns)}."
        )
    return card


def _columns(path, metadata):
    """{column: feature} out of the hub's own `dataset_info`, {} without it."""
    if "dataset_info" not in metadata:
        return {}
    infos = DatasetInfosDict.from_dataset_card_data(DatasetCardData(**metadata))
    features = [info.features for info in infos.values() if info.features]
    if not features:
        raise ValueError(
            f"{path}: `dataset_info` holds no `features` as the hub writes them: a "
            "list of columns, each with `name` and `dtype` or `list`."
        )
    return dict(features[0])


def cards(folder=None, version="v1.0"):
    """All cards of a mix's sources: {source: Card}, in the order of the files.

    folder: by default the course's own. version: of the mix; cards that name their
    versions count only in these.
    Raises: FileNotFoundError if the folder holds no card of a source; ValueError if two
    cards describe one source in this version, or no card knows the version.
    """
    folder = Path(folder) if folder else places.data_cards()
    found, versions = {}, set()
    for path in sorted(folder.glob("*.md")):
        if read_front_matter(path)[0]["course"].get("kind"):
            continue
        card = read_card(path)
        versions |= set(card.versions)
        if card.versions and version not in card.versions:
            continue
        if card.source in found:
            raise ValueError(
                f"{path.name} and {found[card.source].path.name} both describe "
                f"{card.source!r}."
            )
        found[card.source] = card
    if versions and version not in versions:
        raise ValueError(
            f"No card in {folder} belongs to version {version!r} of the mix. "
            f"Known: {', '.join(sorted(versions))}."
        )
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no data card of a source (a Markdown file)."
        )
    return found


def card_of(kind, folder=None):
    """The metadata of the card that describes no source: a dict, `course:` included.

    kind: "mix" or "world". Raises: FileNotFoundError if the folder has none.
    """
    folder = Path(folder) if folder else places.data_cards()
    for path in sorted(folder.glob("*.md")):
        metadata, _ = read_front_matter(path)
        if metadata["course"].get("kind") == kind:
            return metadata
    raise FileNotFoundError(f"{folder} holds no card with `kind: {kind}`.")
