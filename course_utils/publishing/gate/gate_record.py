"""What the release gate found, as a file that lies with the model it holds for.

The record is `release_gate.json` in the model's folder:

    {"passed": bool,
     "failures": [what forbids publishing, in words],
     "checks": [{"name", "passed", "measured", "limit"}, ...],
     "measured": {"n", "distance": {"kl", ...} or null, "noise": {"kl", ...}},
     "files": {file of the model: {"bytes", "sha256"}},
     "run": {"command", "machine", "date", "minutes", "versions"}}

It says nothing about files that it does not list, and it holds only as long as the
listed ones are unchanged: `require_passed` compares the hashes.
"""

import fnmatch
import hashlib
import json
from pathlib import Path

from course_utils.setup import folders

GATE_FILE = "release_gate.json"
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def model_files(folder: str | Path) -> list[str]:
    """The names of the files that a program reads to run the model, sorted."""
    return sorted(
        path.name
        for path in Path(folder).iterdir()
        if path.is_file() and any(fnmatch.fnmatch(path.name, p) for p in MODEL_FILES)
    )


def fingerprint(folder: str | Path) -> dict[str, dict]:
    """{file of the model: {"bytes", "sha256"}}, read in pieces: 16 GB need no RAM."""
    found = {}
    for name in model_files(folder):
        with open(Path(folder) / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = (Path(folder) / name).stat().st_size
        found[name] = {"bytes": size, "sha256": digest}
    return found


def write_record(
    folder: str | Path, checks: list[dict], measured: dict, run: dict
) -> dict:
    """Write the gate's record for the model in `folder` as it is now.

    checks: list of {"name", "passed", "measured", "limit", "failure"}; failure is what
    forbids publishing, in words, where passed is False. Returns: the record.
    """
    record = {
        "passed": all(check["passed"] for check in checks),
        "failures": [c["failure"] for c in checks if not c["passed"]],
        "checks": [
            {key: check[key] for key in ("name", "passed", "measured", "limit")}
            for check in checks
        ],
        "measured": measured,
        "files": fingerprint(folder),
        "run": run,
    }
    folders.write_json(Path(folder) / GATE_FILE, record, allow_nan=False)
    folders.add_own(folder, [GATE_FILE])
    return record


def read_record(folder: str | Path) -> dict:
    """The record in `folder`, whatever it says.

    Raises: FileNotFoundError if there is none; ValueError if it is not a record.
    """
    path = Path(folder) / GATE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {GATE_FILE}: nobody has proved that it holds the model "
            "that was trained. Run course_utils.publishing.gate.release_gate on it."
        )
    record = json.loads(path.read_text(encoding="utf-8"))
    missing = {"passed", "failures", "checks", "measured", "files", "run"} - set(record)
    if missing:
        raise ValueError(f"{path} is no gate's record: it lacks {sorted(missing)}.")
    return record


def require_passed(folder: str | Path) -> dict:
    """The record in `folder`, if it passed and still holds for every file there.

    Raises: as read_record; ValueError with the gate's words if it refused, or naming
    the files that were changed, added or removed since.
    """
    record = read_record(folder)
    if record["passed"] is not True or record["failures"]:
        words = "; ".join(record["failures"]) or "it does not say why"
        raise ValueError(f"The release gate refused {folder}: {words}.")
    now, then = fingerprint(folder), record["files"]
    changed = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
    if changed or not then:
        raise ValueError(
            f"The release gate's record in {folder} holds for other files: "
            f"{', '.join(changed) or 'none'} changed since. Run the gate again."
        )
    return record
