"""Data cards: pages for people whose front matter is also the rule that code runs.

The front matter is the hub's dataset metadata (licence, `dataset_info` with the
columns) plus one block of the course's own, `course:`. Two kinds of card describe no
source: `kind: mix` the published mix, `kind: world` the lab's small world.
"""

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from course_utils.data.sources.rules import Rule
from course_utils.setup import places

MIX, WORLD = "mix", "world"  # kinds of card that describe no source
_REQUIRED = ("source", "prompt", "chosen", "rejected")
_PROMPTS = ({"messages"}, {"user"}, {"user", "system"})
# A name or a path below the data folder: no part begins with a dot, none is empty.
_SOURCE = re.compile(r"\w[\w. -]*(/\w[\w. -]*)*")
_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def _is_text(value):
    return isinstance(value, str) and bool(value.strip())


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


# What every key of `course:` holds: a check, and the same in words.
_KEYS = {
    "source": (
        lambda v: isinstance(v, str) and bool(_SOURCE.fullmatch(v)),
        "a name of letters, digits, spaces, `_`, `-` and `.` (with `/`, a file in a "
        "folder below the data folder)",
    ),
    "prompt": (
        lambda v: (
            isinstance(v, dict)
            and set(v) in _PROMPTS
            and all(map(_is_text, v.values()))
        ),
        "columns: `messages`, or `user` and, where there is one, `system`",
    ),
    "chosen": (_is_text, "the name of a column"),
    "rejected": (_is_text, "the name of a column"),
    "repo": (
        lambda v: isinstance(v, str) and bool(_REPO.fullmatch(v)),
        "owner/name on the hub",
    ),
    "revision": (_is_text, "text: a branch, a tag or a commit (in quotes)"),
    "rows": (_is_count, "a number of rows"),
    "versions": (
        lambda v: isinstance(v, list) and all(map(_is_text, v)),
        "a list of texts, such as [v1.0]",
    ),
    "keep": (
        lambda v: isinstance(v, str),
        'a rule in quotes, such as "rating >= 4", or "" to keep every row',
    ),
    "published": (
        lambda v: (
            isinstance(v, dict)
            and all(map(_is_text, v))
            and all(map(_is_count, v.values()))
        ),
        "numbers of pairs by name, such as {v1.0 card: 2882}",
    ),
    "citation": (lambda v: isinstance(v, str), "text"),
    "warning": (lambda v: isinstance(v, str), "text"),
}


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, without a key that stands twice: the last would count."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((k for at, k in enumerate(keys) if k in keys[:at]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Card:
    """What the card of one source says that code needs.

    source: its name in the mix. title: the page's heading. license: as the hub spells
        it.
    repo, revision: where the hub has it; None and "main" where the card names neither.
    versions: versions of the mix that it belongs to; () means all.
    columns: {column: datasets feature} as the hub's metadata give them, {} if unknown.
    rows: of the real source, None if unknown.
    keep: a rule over the columns, see `rules.ALLOWED`; a row stays where it is true.
        "" keeps all.
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
    def mapped(self) -> list[str]:
        """The columns that the prompt and the two answers are read from."""
        return [*self.prompt.values(), self.chosen, self.rejected]

    @property
    def texts(self) -> list[str]:
        """Columns whose values are text, even where all of them look like numbers."""
        said = [name for name, kind in self.columns.items() if kind_of(kind) == "text"]
        return [*self.mapped, *said]

    def kept(self, version: str) -> int | None:
        """Pairs of this source in a version of the published mix, None if not known."""
        for place in ("data", "card"):
            if f"{version} {place}" in self.published:
                return self.published[f"{version} {place}"]
        return None


def read_front_matter(path: str | Path) -> tuple[dict, str]:
    """(metadata, body) of a Markdown file: its YAML block as a dict, and what follows.

    Raises: ValueError that names the file and what is wrong with the block.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not text.startswith("---\n") or "\n---\n" not in text[4:]:
        raise ValueError(
            f"{path} has no front matter: it must begin with a `---` block."
        )
    front, body = text[4:].split("\n---\n", 1)
    try:
        metadata = yaml.load(front, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: the front matter is not YAML: {error}") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("course"), dict):
        raise ValueError(f"{path}: the front matter has no `course:` block.")
    kind = metadata["course"].get("kind", MIX)
    if kind not in (MIX, WORLD):
        raise ValueError(f"{path}: `kind` must be {MIX} or {WORLD}, or be left out.")
    return metadata, body


def read_card(path: str | Path) -> Card:
    """The card of a source in this Markdown file.

    Raises: ValueError that names the file and the key that is wrong.
    """
    path = Path(path)
    metadata, body = read_front_matter(path)
    rule = metadata["course"]
    _check_keys(path, rule)
    title = next((ln[2:] for ln in body.split("\n") if ln.startswith("# ")), None)
    if title is None:
        raise ValueError(f"{path} has no `# title` below the front matter.")
    if "license" not in metadata:
        raise ValueError(f"{path} has no `license:`.")
    if not _is_text(metadata["license"]):
        raise ValueError(
            f"{path}: `license` is {_shown(metadata['license'])}; it must be one "
            "licence, as the hub spells it (apache-2.0)."
        )
    columns = _columns(path, metadata)
    card = Card(
        path=path,
        title=title,
        license=metadata["license"],
        columns=columns,
        **rule | {"versions": tuple(rule.get("versions", ()))},
    )
    unknown = [column for column in card.mapped if columns and column not in columns]
    if unknown:
        raise ValueError(
            f"{path}: `course:` reads {', '.join(unknown)}, which `dataset_info` does "
            f"not list. It lists {', '.join(columns)}."
        )
    return card


def _check_keys(path, rule):
    """Raise ValueError for a key that lacks, is unknown or holds another thing."""
    missing = [key for key in _REQUIRED if key not in rule]
    if missing:
        raise ValueError(f"{path}: `course:` lacks {', '.join(missing)}.")
    for key, value in rule.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else "."
            raise ValueError(f"{path}: `course:` has an unknown key `{key}`{hint}")
        right, words = _KEYS[key]
        if not right(value):
            raise ValueError(f"{path}: `{key}` is {_shown(value)}; it must be {words}.")
    if rule["chosen"] == rule["rejected"]:
        raise ValueError(f"{path}: `chosen` and `rejected` name the same column.")
    if rule.get("keep"):
        read_rule(path, rule["keep"])


def read_rule(path: Path, keep: str) -> Rule:
    """The rule of a card, or a ValueError that names the card's file."""
    try:
        return Rule(keep)
    except ValueError as error:
        raise ValueError(f"{path.name}: the rule `{keep}` {error}.") from None


def _shown(value):
    """A value of a card for a message: short ones as they are, others by their type."""
    if value is None:
        return "empty"
    if isinstance(value, str | int | float):
        return repr(value)[:80]
    return {dict: "a mapping", list: "a list"}.get(type(value), type(value).__name__)


def kind_of(feature: object) -> str:
    """What a column holds, in a word: int64 and float64 ratings are both numbers.

    feature: of `datasets`.
    """
    inner = getattr(feature, "feature", None)
    if inner is None and isinstance(feature, list):
        inner = feature[0]
    if inner is not None:
        names = set(inner) if isinstance(inner, dict) else set()
        return "messages" if {"role", "content"} <= names else "lists"
    dtype = getattr(feature, "dtype", "struct")
    if dtype in ("string", "large_string"):
        return "text"
    if dtype == "bool":
        return "yes or no"
    if dtype == "null":
        return "nothing"
    return "numbers" if dtype.startswith(("int", "uint", "float")) else dtype


def _columns(path, metadata):
    """{column: feature} out of the hub's own `dataset_info`, {} without it."""
    if "dataset_info" not in metadata:
        return {}
    listed = DatasetCardData(dataset_info=metadata["dataset_info"])
    try:
        infos = DatasetInfosDict.from_dataset_card_data(listed)
        features = [info.features for info in infos.values() if info.features]
    except (TypeError, ValueError, KeyError, AttributeError):
        features = []
    if not features:
        raise ValueError(
            f"{path}: `dataset_info` holds no `features` as the hub writes them: a "
            "list of columns, each with `name` and `dtype` or `list`."
        )
    return dict(features[0])


def cards(folder: str | Path | None = None, version: str = "v1.0") -> dict[str, Card]:
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


def card_of(kind: str) -> dict:
    """The metadata of the card that describes no source: a dict, `course:` included.

    kind: "mix" or "world". Raises: FileNotFoundError if there is none.
    """
    folder = places.data_cards()
    for path in sorted(folder.glob("*.md")):
        metadata, _ = read_front_matter(path)
        if metadata["course"].get("kind") == kind:
            return metadata
    raise FileNotFoundError(f"{folder} holds no card with `kind: {kind}`.")
