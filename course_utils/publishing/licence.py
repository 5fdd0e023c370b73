"""What the licence of Llama asks of whoever publishes a model made from it.

Knows: the terms of the Meta Llama 3 Community License (18 April 2024), 1.b, and where
agreements of its kind state theirs. Does not know: any agreement's text; a copy is
taken from the base model, and what it asks for is read from that copy.

This is help in following the agreement, and no legal advice.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.utils import validate_repo_id

from course_utils.publishing.explain import ask
from course_utils.setup.profiles import is_hub_id

LICENCE, NOTICE, POLICY = "LICENSE", "NOTICE", "USE_POLICY.md"


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


LLAMA_3 = Terms(
    agreement="Meta Llama 3 Community License",
    mark="Llama 3",
    banner="Built with Meta Llama 3",
    notice="Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.",
)
# Where an agreement states them, whichever quotation marks it uses.
_STATED = {
    "mark": r'include "([^"]+)" at the beginning of any such AI model name',
    "banner": r'prominently display "([^"]+)"',
    "notice": r'"Notice" text file distributed as a part of such copies: "([^"]+)"',
}
_TITLE = re.compile(r"LLAMA [\d.]+ COMMUNITY LICENSE AGREEMENT")


def is_llama3(base_model):
    """Does this hub id or folder name a Llama 3 (or 3.x) model?"""
    return bool(re.search(r"llama[-_ ]?3", base_model, re.IGNORECASE))


def read_terms(text):
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


def terms_for(base_model, text=None):
    """The Terms for a derivative of this base, or None if it is no Llama 3.

    text: of the agreement, if it is at hand; Llama 3.1 and later have agreements of
    their own, and without the text None is returned for them too.
    """
    if text is not None and _TITLE.search(text):
        return read_terms(text)
    plain = re.search(r"llama[-_ ]?3(?![.\d])", base_model, re.IGNORECASE)
    return LLAMA_3 if plain else None


def check_name(name, base_model, terms=None):
    """Refuse a name that a derivative of Llama 3 may not have, or that the hub rejects.

    name: "owner/model" or "model". base_model: hub id of what it was trained from.
    terms: if the agreement was read; else Llama 3's are applied to 3.1 and later too,
    a name which their agreements also allow.
    Returns: name. Raises: ValueError saying what the licence asks for.
    Source: Meta Llama 3 Community License, 1.b.i.
    """
    validate_repo_id(name)
    model = name.rsplit("/", 1)[-1]
    if terms is None and is_llama3(base_model):
        terms = LLAMA_3
    if terms and not _begins_with(model, terms.mark):
        raise ValueError(
            f"{model!r} is made from {base_model}, whose licence asks that the name of "
            f'a distributed derivative begins with "{terms.mark}", as Llama-3-8B-ORPO '
            "does."
        )
    return name


def _begins_with(model, mark):
    # The hub allows no space in a name; Llama-31B is no Llama 3, and Llamas no Llama.
    words = re.escape(mark).replace(r"\ ", "[-_]?")
    return re.match(words + (r"(?!\d)" if mark[-1].isdigit() else "(?![a-z])"), model)


def agreement_of(base):
    """The base model's files that state its terms: {LICENSE or USE_POLICY.md: path}.

    base: the base model's folder, or its hub id, from which they are then downloaded.
    Raises: FileNotFoundError if there is no LICENSE; for a hub id also as explain.ask.
    """
    base = str(base)
    found = _hub_files(base) if is_hub_id(base) else _local_files(base)
    if LICENCE not in found:
        raise FileNotFoundError(
            f"{base} holds no {LICENCE}, and whoever passes on a derivative of Llama "
            "3 passes on a copy of its agreement. Put that file into the folder that "
            "is to be published: it lies in the repository in which Meta publishes "
            "the base model."
        )
    return found


def _name_for(file):
    """LICENSE, USE_POLICY.md or None, for a file of a base model."""
    stem = file.split(".")[0].upper()
    return {"LICENSE": LICENCE, "LICENCE": LICENCE, "USE_POLICY": POLICY}.get(stem)


def _local_files(base):
    found = {}
    for path in sorted(Path(base).iterdir()):
        if path.is_file() and (name := _name_for(path.name)):
            found.setdefault(name, path)
    return found


def _hub_files(base):
    wanted = {}
    for file in sorted(ask(lambda: HfApi().list_repo_files(base), base)):
        if name := _name_for(file):
            wanted.setdefault(name, file)
    return {
        name: ask(lambda file=file: hf_hub_download(base, file), base)
        for name, file in wanted.items()
    }


def require_terms(folder, results):
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
    if not results["license"].startswith(("llama", "other")):
        raise ValueError(
            f"The results say {results['license']!r}, but {base_model} is under the "
            f"{terms.agreement}, and so is what is made from it: say llama3."
        )
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
