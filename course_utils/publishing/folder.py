"""The folder that is published: what is written into it, and whether it may go.

Knows: the card, the licence's files, the release gate's record, which files are sent.
Does not know: the hub.
"""

import json
import re
from pathlib import Path

from course_utils.publishing import licence
from course_utils.publishing.gate import GATE_FILE, read_record, require_passed
from course_utils.publishing.gate.gate_record import model_files
from course_utils.publishing.model_card import CURVES, card, draw_curves

RESULTS, CARD = "results.json", "README.md"
TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}")
# Beside the model's own files. Whatever else lies in the folder (checkpoints, logs,
# a .env) stays here.
LICENCES = (licence.LICENCE, licence.NOTICE, licence.POLICY)
OURS = (CARD, RESULTS, GATE_FILE, CURVES, *LICENCES)


def write_card(results, folder, base=None):
    """Write the card, its results, its curves and the licence's files into a folder.

    results: as for `card`. base: the base model's folder or hub id, to take Llama's
    agreement from, if the folder does not hold it yet.
    The release gate's record is shown if the folder holds one. Raises: as `card` and
    `licence.agreement_of`; then nothing is written.
    """
    folder = Path(folder)
    files = {}
    if (folder / licence.LICENCE).is_file():
        files[licence.LICENCE] = folder / licence.LICENCE
    elif base is not None:
        files = licence.agreement_of(base)
    texts = {name: Path(file).read_text("utf-8") for name, file in files.items()}
    terms = licence.terms_for(results.get("base_model", ""), texts.get(licence.LICENCE))
    if terms:
        texts[licence.NOTICE] = terms.notice + "\n"
    gate = read_record(folder) if (folder / GATE_FILE).is_file() else None
    texts[CARD] = str(card(results, gate, terms))
    texts[RESULTS] = (
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )
    if results.get("curves"):
        draw_curves(results["curves"], folder / CURVES)
    for name, text in texts.items():
        _write(folder / name, text)


def _write(path, text):
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def ready(folder):
    """What a folder would send, if everything allows it.

    Returns: (results, {file: bytes} to send, names that stay behind).
    Raises: FileNotFoundError if a part is missing; ValueError if the release gate
    refused or holds for other files, if the card is not the one of these results, if
    the licence asks for more, or if a file holds what looks like a token.
    """
    folder = Path(folder)
    for name in (CARD, RESULTS, "config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}. Save the merged model and its tokenizer "
                "there, and call write_card with the measured results."
            )
    gate = require_passed(folder)
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    terms = licence.require_terms(folder, results)
    if str(card(results, gate, terms)) != (folder / CARD).read_text(encoding="utf-8"):
        raise ValueError(
            f"{folder / CARD} is not the card of {RESULTS} and {GATE_FILE}: it was "
            "edited, or they are newer. Call write_card again; words of your own "
            "belong into the results' data description and limits."
        )
    present = sorted(p for p in folder.rglob("*") if p.is_file())
    names = [path.relative_to(folder).as_posix() for path in present]
    wanted = {*model_files(folder), *OURS}
    if not results.get("curves"):
        wanted.discard(CURVES)  # of an earlier card
    elif CURVES not in names:
        raise FileNotFoundError(f"{folder} holds no {CURVES}: call write_card again.")
    sent = {n: (folder / n).stat().st_size for n in names if n in wanted}
    for name in sent:
        _require_no_token(folder / name)
    return results, sent, tuple(name for name in names if name not in sent)


def _require_no_token(path):
    if path.suffix in (".safetensors", ".png"):
        return
    if TOKEN.search(path.read_text(encoding="utf-8", errors="replace")):
        raise ValueError(
            f"{path} holds what looks like an access token, so nothing is sent. Remove "
            "it from the file, and revoke the token on the hub's settings page."
        )
