"""The learner's own copies of the notebooks, in `work/`, which git ignores.

A learner's answers never touch the tracked notebooks: the test suite stays green, a
rebuild deletes nothing, and `git pull` finds no conflict.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from course_utils.course import notebooks

FOLDER = "work"
ORIGINS = ".origins.json"  # {notebook: hash of the tracked file it was copied from}


def prepare(root: Path, names: Sequence[str] = (), fresh: bool = False) -> list[str]:
    """Make the working copies that are missing.

    names: beginnings of notebooks' names; all by default. fresh: copy anew, and keep
    the old copy beside it as `NN_name.old-1.ipynb`.
    A copy that is there is never overwritten. Where the course has a newer version, it
    is put next to it as `NN_name.new.ipynb`; a copy without answers is renewed.
    Returns: one line per notebook for which something was done.
    """
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    origins = _read_origins(folder)
    said = []
    for source in notebooks.notebook_files(root):
        if names and not any(source.stem.startswith(name) for name in names):
            continue
        copy, now = folder / source.name, _hash(source)
        if copy.exists() and fresh:
            old = _free_name(copy)
            copy.rename(old)
            said.append(f"{source.stem}: your copy is kept as {FOLDER}/{old.name}")
        if not copy.exists():
            said.append(f"{source.stem}: copied to {FOLDER}/{copy.name}")
        elif origins.get(source.name) == now:
            continue  # of this version already, with or without answers
        elif not _has_answers(copy, origins.get(source.name)):
            said.append(f"{source.stem}: {FOLDER}/{copy.name} is of the new version")
        else:
            new = copy.with_suffix(".new.ipynb")
            shutil.copyfile(source, new)
            origins[source.name] = now
            said.append(
                f"{source.stem}: there is a new version; your copy stays as it is, the "
                f"new one is {FOLDER}/{new.name}"
            )
            continue
        shutil.copyfile(source, copy)
        origins[source.name] = now
    text = json.dumps(origins, indent=1, sort_keys=True) + "\n"
    notebooks.write_text(folder / ORIGINS, text)
    return said


def catch_up(root: Path, number: str) -> list[str]:
    """What somebody needs who joins at a notebook: copies, and what was found before.

    number: the notebook to begin with, such as "05". Copies of it and of those after
    it are made, as `prepare` does. No notebook reads what another one wrote, so no
    checkpoint has to be made up for. Returns: the lines to show; nothing is executed.
    """
    lines = []
    for path in notebooks.notebook_files(root):
        if path.stem[:2] < number:
            earlier = notebooks.read(path)
            found = notebooks.finding(earlier) or "read it with its outputs"
            lines.append(f"{notebooks.heading(earlier)} Found: {found}")
        else:
            lines += prepare(root, [path.stem])
    lines.append(f"Nothing of this has to be run: {number} starts on its own.")
    return [*lines, f"Open {FOLDER}/: python -m course_utils.course lab {number}"]


def keep_answers(root: Path, path: Path) -> Path | None:
    """Save a tracked notebook that somebody edited, before it is built anew.

    Returns: where its copy is, or None if its code is what its build wrote.
    """
    try:
        notebook = notebooks.read(path)
        written = notebook.metadata.get("course", {}).get("code_sha256")
        edited = written != notebooks.code_sha256(notebook)
    except ValueError:
        edited = True  # it cannot be read, and may hold somebody's work all the same
    if not edited:
        return None
    copy = _free_name(root / FOLDER / path.name)
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, copy)
    return copy


def _has_answers(copy, origin):
    """Was the copy changed since it was made? Without a record of that, it may be."""
    return origin is None or _hash(copy) != origin


def _free_name(copy):
    number = 1
    while (old := copy.with_suffix(f".old-{number}.ipynb")).exists():
        number += 1
    return old


def _read_origins(folder):
    file = folder / ORIGINS
    if not file.exists():
        return {}
    try:
        origins = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}  # then every copy counts as one with answers
    return origins if isinstance(origins, dict) else {}


def _hash(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
