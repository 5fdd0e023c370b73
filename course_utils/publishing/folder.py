"""The folder that is published: what is written into it, and whether it may go."""

import json
from pathlib import Path

from course_utils.publishing import licence
from course_utils.publishing.gate import GATE_FILE, read_record, require_passed
from course_utils.publishing.gate.gate_record import model_files
from course_utils.publishing.model_card import CURVES, card, draw_curves
from course_utils.setup import folders, secrets

RESULTS, CARD = "results.json", "README.md"
_HEADER = 100_000_000  # bytes that a safetensors header may have at most
# Beside the model's own files. Whatever else lies in the folder (checkpoints, logs,
# a .env) stays here.
LICENCES = (licence.LICENCE, licence.NOTICE, licence.POLICY)
OURS = (CARD, RESULTS, GATE_FILE, CURVES, *LICENCES)


def write_card(
    results: dict, folder: str | Path, base: str | Path | None = None
) -> None:
    """Write the card, its results, its curves and the licence's files into a folder.

    results: as for `card`. base: the base model's folder or hub id, to take Llama's
    agreement from, if the folder does not hold it yet.
    The release gate's record is shown if the folder holds one. Raises: as `card` and
    `licence.agreement_of`; FileExistsError if a file of these names is there that the
    course did not write. Then nothing is written.
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
    if files.get(licence.LICENCE) == folder / licence.LICENCE:
        del texts[licence.LICENCE]  # it is there already, whoever put it there
    names = [*texts, *([CURVES] if results.get("curves") else [])]
    folders.require_own(folder, names)
    if results.get("curves"):
        draw_curves(results["curves"], folder / CURVES)
    for name, text in texts.items():
        folders.write_text(folder / name, text)
    folders.add_own(folder, names, writer="model card")


def ready(folder: str | Path) -> tuple[dict, dict[str, int], tuple[str, ...]]:
    """What a folder would send, if everything allows it.

    Returns: (results, {file: bytes} to send, names that stay behind).
    Raises: FileNotFoundError if a part is missing; ValueError if the release gate
    refused or holds for other files, if the card is not the one of these results, if
    the licence asks for more, if a file or its name holds what looks like an access
    key, or if it is a link that leads out of the folder.
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
    names = folders.files_in(folder)
    wanted = {*model_files(folder), *OURS}
    if not results.get("curves"):
        wanted.discard(CURVES)  # of an earlier card
    elif CURVES not in names:
        raise FileNotFoundError(f"{folder} holds no {CURVES}: call write_card again.")
    sent = {n: (folder / n).stat().st_size for n in names if n in wanted}
    for name in sent:
        _require_inside(folder, name)
        _require_no_token(folder / name)
    left = (secrets.redacted(name) for name in names if name not in sent)
    return results, sent, tuple(left)


def _require_inside(folder: Path, name: str) -> None:
    """Refuse a link to what lies elsewhere: its content would be sent unseen."""
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{name} in {folder} is a link that leads out of the folder, so nothing is "
            "sent. Put the file itself there."
        )


def _require_no_token(path: str | Path) -> None:
    """Refuse a file that holds what looks like an access key, or whose name does.

    All files are read as text; of safetensors the header is, which holds metadata.
    """
    path = Path(path)
    found = secrets.in_bytes(path.name.encode("utf-8", "replace"))
    found += secrets.in_bytes(_readable(path))
    if found:
        raise ValueError(
            f"{secrets.redacted(str(path))} holds what looks like an access token "
            f"({', '.join(dict.fromkeys(found))}), so nothing is sent. Remove it from "
            "the file and revoke it where it was made."
        )


def _readable(path: Path) -> bytes:
    with open(path, "rb") as file:
        if path.suffix == ".safetensors":
            length = int.from_bytes(file.read(8), "little")
            if length <= min(_HEADER, path.stat().st_size):
                return file.read(length)
            file.seek(0)  # no safetensors file, whatever its name says
        return file.read()
