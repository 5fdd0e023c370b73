"""What the licence of Llama asks of whoever publishes a model made from it.

The terms of Llama 3, 3.1, 3.2 and 3.3 stand here: the banner, the notice, the beginning
of the name. No agreement's text does: a copy is taken from the base model, and what it
asks for is read from that copy.

This is help in following the agreement, and no legal advice.
Source: the Community License Agreements of Llama 3 (18 April 2024), 3.1, 3.2 and 3.3,
sections 1.b.i and 1.b.iii.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.utils import validate_repo_id

from course_utils.publishing.explain import ask
from course_utils.setup.profiles import is_hub_id

LICENCE, NOTICE, POLICY = "LICENSE", "NOTICE", "USE_POLICY.md"
# A base's files by their names' beginning.
_KINDS = {"LICENSE": LICENCE, "LICENCE": LICENCE, "USE_POLICY": POLICY}


@dataclass(frozen=True)
class Terms:
    """What an agreement asks for.

    agreement: its name. mark: with what a derivative's name begins. banner: what to
    display. notice: the sentence for the file NOTICE.
    """

    agreement: str
    mark: str
    banner: str
    notice: str

    @property
    def hub_id(self) -> str:
        """The licence's id on the hub, such as "llama3.2"."""
        version = re.search(r"Llama ([\d.]+)", self.agreement)
        return f"llama{version[1]}" if version else "other"


def _later(version: str) -> Terms:
    agreement = f"Llama {version} Community License"
    return Terms(
        agreement=agreement,
        mark="Llama",
        banner="Built with Llama",
        notice=f"Llama {version} is licensed under the {agreement}, Copyright © Meta "
        "Platforms, Inc. All Rights Reserved.",
    )


LLAMA_3 = Terms(
    agreement="Meta Llama 3 Community License",
    mark="Llama 3",
    banner="Built with Meta Llama 3",
    notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.",
)
KNOWN = {"3": LLAMA_3} | {version: _later(version) for version in ("3.1", "3.2", "3.3")}
# Where an agreement states them, whichever quotation marks it uses.
_STATED = {
    "mark": r'include "([^"]+)" at the beginning of any such AI model name',
    "banner": r'prominently display "([^"]+)"',
    "notice": r'"Notice" text file distributed as a part of such copies: "([^"]+)"',
}
_TITLE = re.compile(r"LLAMA [\d.]+ COMMUNITY LICENSE AGREEMENT")
# Letters that look like those of "llama" once upper case and accents are gone: Latin,
# Cyrillic and Greek ones, and the digit and signs that pass for an l.
_L, _A, _M = "[l1iı|ӏіιǀʟᏞꓡ]", "[a4@аɑαλᴀᎪꓮ⍺]", "[mмμϻᴍᎷꓟ]"
_GAP = r"[\W_]*"
_NAME = re.compile(
    rf"{_L}{_L}{_A}{_M}{_A}{_GAP}(?:guard|version|ver|gen|v)?{_GAP}"
    # Not a size: llama-3b, llama-30b, llama-3.5b.
    r"(?:3(?!\d|[.]?\d*b)(?:[._-]?(\d)(?![\db]))?|3([123])(?![\dbk])|iii|three)"
)


def llama_version(base_model: str) -> str | None:
    """Which Llama of generation 3 a hub id or a folder names: "3", "3.1", …, or None.

    Upper and lower case, accents, characters without width and look-alikes of the
    letters in "llama" make no difference.
    """
    plain = unicodedata.normalize("NFKD", base_model).casefold()
    plain = unicodedata.normalize("NFKD", plain)
    plain = "".join(
        str(unicodedata.digit(character, character))
        for character in plain
        if unicodedata.category(character) not in ("Cf", "Mn", "Me", "Cc")
        and character not in "\u115f\u1160"  # Hangul fillers, which print nothing
    )
    found = _NAME.search(plain)
    if not found:
        return None
    minor = found[1] or found[2]
    # "Llama-3-8B" says how large it is, "Llama-3.2" and "Llama-3-1-8B" which.
    dotted = minor and plain[found.end() - 2] in "._"
    return f"3.{minor}" if minor and (dotted or minor in "123") else "3"


def is_llama3(base_model: str) -> bool:
    """Does this hub id or folder name a Llama 3 (or 3.x) model?"""
    return llama_version(base_model) is not None


def read_terms(text: str) -> Terms:
    """The Terms that the text of a Llama agreement states.

    Raises: ValueError if it is no such text, or does not state them all.
    """
    flat = re.sub(r"[“”]", '"', re.sub(r"\s+", " ", text))
    found = {name: re.search(pattern, flat) for name, pattern in _STATED.items()}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise ValueError(
            f"This text does not state the {', '.join(missing)} that a Llama agreement "
            "asks for. Take the file LICENSE from the base model's repository."
        )
    stated = {name: match[1] for name, match in found.items()}
    title = re.search(r"under the (.+?),", stated["notice"])
    return Terms(title[1] if title else "Llama Community License", **stated)


def terms_for(base_model: str, text: str | None = None) -> Terms | None:
    """The Terms for a derivative of this base, or None if it is no Llama 3.

    text: of the agreement, if it is at hand.
    Raises: ValueError for a Llama 3 whose terms are not known here, without the text.
    """
    if text is not None and _TITLE.search(text):
        return read_terms(text)
    version = llama_version(base_model)
    if version is not None and version not in KNOWN:
        raise ValueError(
            f"{base_model} names a Llama {version}, whose terms this course does not "
            "know: they are read from its agreement. Put the file LICENSE of the base "
            "model's repository into the folder."
        )
    return KNOWN.get(version)


def check_name(name: str, base_model: str, terms: Terms | None = None) -> str:
    """Refuse a name that a derivative of Llama 3 may not have, or that the hub rejects.

    name: "owner/model" or "model". base_model: hub id of what it was trained from.
    terms: if the agreement was read.
    Returns: name. Raises: ValueError saying what the licence asks for.
    Source: the agreements' section 1.b.i.
    """
    validate_repo_id(name)
    model = name.rsplit("/", 1)[-1]
    terms = terms or terms_for(base_model)
    if terms and not _begins_with(model, terms.mark):
        raise ValueError(
            f"{model!r} is made from {base_model}, whose licence asks that the name of "
            f'a distributed derivative begins with "{terms.mark}", as Llama-3-8B-ORPO '
            "does."
        )
    return name


def check_license(license: str, base_model: str, terms: Terms | None) -> str:
    """Refuse a licence's id that is not that of the base's agreement.

    Returns: license. Raises: ValueError naming the right one.
    """
    if terms and license not in (terms.hub_id, "other"):
        raise ValueError(
            f"The licence is given as {license!r}, but {base_model} is under the "
            f"{terms.agreement}, and so is what is made from it: say "
            f"{terms.hub_id}."
        )
    return license


def _begins_with(model: str, mark: str) -> re.Match | None:
    # The hub allows no space in a name; Llama-31B is no Llama 3, and Llamas no Llama.
    words = re.escape(mark).replace(r"\ ", "[-_]?")
    return re.match(words + (r"(?!\d)" if mark[-1].isdigit() else "(?![a-z])"), model)


def agreement_of(base: str | Path) -> dict[str, Path]:
    """The base model's files that state its terms: {LICENSE or USE_POLICY.md: path}.

    base: the base model's folder, or its hub id, from which they are then downloaded.
    Raises: FileNotFoundError if there is no LICENSE; for a hub id also as explain.ask.
    """
    base, found = str(base), {}
    on_hub = is_hub_id(base)
    names = [path.name for path in Path(base).glob("*") if path.is_file()]
    if on_hub:
        names = ask(lambda: HfApi().list_repo_files(base), base)
    for name in sorted(names):
        kind = _KINDS.get(name.split(".")[0].upper())
        if kind and kind not in found:
            found[kind] = Path(base, name)
            if on_hub:
                found[kind] = ask(partial(hf_hub_download, base, name), base)
    if LICENCE not in found:
        raise FileNotFoundError(
            f"{base} holds no {LICENCE}, and whoever passes on a derivative of Llama "
            "3 passes on a copy of its agreement. Put that file into the folder that "
            "is to be published: it lies in the repository in which Meta publishes "
            "the base model."
        )
    return found


def require_terms(folder: Path, results: dict) -> Terms | None:
    """Refuse a folder that the agreement does not allow to publish as it is.

    A model that is made from no Llama needs nothing. Returns: Terms or None.
    Raises: FileNotFoundError or ValueError, saying what to do.
    """
    folder, base_model = Path(folder), results["base_model"]
    path = folder / LICENCE
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    bound = (
        is_llama3(base_model)
        or results["license"].startswith("llama")
        or (text is not None and _TITLE.search(text))
    )
    if not bound:
        check_name(results["name"], base_model)
        return None
    if text is None:
        raise FileNotFoundError(
            f"{folder} holds no {LICENCE}: whoever passes on a derivative of Llama 3 "
            "passes on a copy of its agreement. Call write_card with base= the base "
            "model's folder or hub id, or put the file there by hand."
        )
    terms = read_terms(text)
    check_name(results["name"], base_model, terms)
    check_license(results["license"], base_model, terms)
    notice = folder / NOTICE
    if not notice.is_file() or terms.notice not in notice.read_text(encoding="utf-8"):
        raise ValueError(
            f"{notice} does not hold the sentence that the {terms.agreement} asks for. "
            "Call write_card again."
        )
    if terms.banner not in (folder / "README.md").read_text(encoding="utf-8"):
        raise ValueError(
            f'The card does not say "{terms.banner}", as the {terms.agreement} asks. '
            "Call write_card again."
        )
    return terms
