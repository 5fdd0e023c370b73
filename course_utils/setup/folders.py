"""Output folders and files: complete or not written, and never over somebody's data.

A folder that the course wrote holds a small file, MARKER, with the name of its writer
and the files that belong to it. Only such a folder is replaced, by the same writer, and
only if it holds nothing else.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

GIB = 2**30
MARKER = ".orpo-course.json"
# What other programs leave in a folder without being asked; it holds nobody's work.
_LEFT_BEHIND = {
    "__pycache__",
    ".DS_Store",
    ".cache",
    ".gradio",
    ".ipynb_checkpoints",
    "Thumbs.db",
    "desktop.ini",
}
_HEAD = 2**16  # bytes of a file in which its writer's mark must stand
AnyPath = str | os.PathLike


@contextlib.contextmanager
def written_whole(
    target: AnyPath,
    needs_bytes: int = 0,
    writer: str | None = None,
    inputs: Iterable[AnyPath] = (),
) -> Iterator[Path]:
    """A folder to write into, that becomes `target` when the block ends well.

    target: a folder that is not there yet, or empty, or that the same writer made.
    needs_bytes: what will be written; compared with the free disk space beforehand.
    writer: what the folder is, such as "merged model"; None never replaces a folder.
    inputs: what the block reads; hub ids among them are passed over.
    Yields: Path of a temporary folder beside the target.
    Raises: ValueError if the target is, contains or lies in an input; FileExistsError
        if it is a file, or holds what the writer did not write; OSError if the disk is
        too full. After an error in the block the target is as it was.
    """
    target = _resolved(target)
    require_apart(target, inputs)
    _require_replaceable(target, writer)
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, needs_bytes)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        partial.chmod(0o755)  # mkdtemp's folder is for its owner only
        yield partial
        if writer:
            _mark(partial, writer, files_in(partial))
        _swap(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def written_file(
    target: AnyPath,
    mark: bytes,
    needs_bytes: int = 0,
    inputs: Iterable[AnyPath] = (),
) -> Iterator[Path]:
    """A file to write, that becomes `target` when the block ends well.

    mark: bytes that each file of this writer holds near its beginning; a file without
    them is somebody else's. The rest is as for `written_whole`.
    """
    require_own_file(target, mark, inputs)
    target = _resolved(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, needs_bytes)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}-", dir=target.parent
    ) as folder:
        partial = Path(folder) / target.name
        yield partial
        partial.replace(target)


def require_own_file(
    target: AnyPath, mark: bytes, inputs: Iterable[AnyPath] = ()
) -> None:
    """Raise as `written_file`, which looks no sooner than when all is computed."""
    target = _resolved(target)
    require_apart(target, inputs)
    if target.is_dir():
        raise IsADirectoryError(
            f"{target} is a folder, and a file is to be written there. Name a file."
        )
    if target.exists() and not _has_mark(target, mark):
        raise FileExistsError(
            f"{target} is there already, and this command did not write it. Name "
            "another file, or remove this one."
        )


def _has_mark(file: Path, mark: bytes) -> bool:
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        head = opened.read(_HEAD)
    return not head or mark in head


def require_apart(target: AnyPath, inputs: Iterable[AnyPath]) -> None:
    """Raise ValueError if `target` is, contains or lies in one of the inputs.

    Links, `..` and, where the file system ignores it, upper and lower case make no
    difference. Inputs that are not there, such as hub ids, are passed over.
    """
    target = _resolved(target)
    for each in inputs:
        if not os.path.exists(each):
            continue
        source = _resolved(each)
        if _within(target, source) or _within(source, target):
            raise ValueError(
                f"The output {target} and the input {source} lie in each other: "
                "writing would destroy what is read. Name another output."
            )


def _resolved(path: AnyPath) -> Path:
    return Path(os.path.realpath(path))


def _within(path: Path, folder: Path) -> bool:
    if not folder.exists():
        return False
    above = (path, *path.parents)
    return any(each.exists() and each.samefile(folder) for each in above)


def _require_replaceable(target: Path, writer: str | None) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(
            f"{target} is a file, and a folder is to be written there. Name another "
            "folder."
        )
    if _within(Path.cwd(), target):
        raise FileExistsError(
            f"{target} is the folder that this program runs in, or holds it. Name "
            "another folder."
        )
    marker, found = read_marker(target), files_in(target)
    own = marker["files"] if writer and marker.get("writer") == writer else []
    others = sorted(set(found) - set(own))
    if others or (not own and any(target.iterdir())):
        what = f"a {writer} of this course" if writer else "what is to be written"
        raise FileExistsError(
            f"{target} is there already, and {', '.join(others[:3]) or 'it'} is not "
            f"part of {what}. Name another folder, or remove this one."
        )


def files_in(folder: AnyPath) -> list[str]:
    """Names of the files in a folder and below, without the marker; links count.

    What file managers, Python and hub clients leave behind is left out.
    """
    folder, found = Path(folder), []
    for at, below, files in os.walk(folder):
        links = [name for name in below if Path(at, name).is_symlink()]
        below[:] = [name for name in below if name not in _LEFT_BEHIND]
        found += [
            Path(at, name).relative_to(folder).as_posix()
            for name in (*files, *links)
            if name not in _LEFT_BEHIND
        ]
    return sorted(name for name in found if name != MARKER)


def read_marker(folder: AnyPath) -> dict:
    """{"writer", "version", "files"} of a folder; {} if the course did not write it."""
    try:
        marker = json.loads((Path(folder) / MARKER).read_text(encoding="utf-8"))
        known = isinstance(marker["files"], list) and isinstance(marker["writer"], str)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return marker if known else {}


def require_own(folder: AnyPath, names: Iterable[str]) -> None:
    """Raise FileExistsError if a file of these names is there and is not the course's.

    For writers that add files to a folder, together with `add_own`.
    """
    folder = Path(folder)
    own = read_marker(folder).get("files", [])
    others = [n for n in names if os.path.lexists(folder / n) and n not in own]
    if others:
        raise FileExistsError(
            f"{folder} holds {', '.join(others)}, and this course did not write it. "
            "Move it away, or name another folder."
        )


def add_own(folder: AnyPath, names: Iterable[str], writer: str | None = None) -> None:
    """Note in the folder's marker that the course has written these files, too.

    writer: who makes the marker where there is none; None leaves such a folder alone.
    """
    marker = read_marker(folder)
    if marker or writer:
        files = {*marker.get("files", []), *names}
        _mark(Path(folder), marker.get("writer", writer), sorted(files))


def _mark(folder: Path, writer: str, files: list[str]) -> None:
    try:
        course = version("orpo-course")
    except PackageNotFoundError:
        course = "unknown"
    marker = {"writer": writer, "version": course, "files": files}
    write_json(folder / MARKER, marker)


def write_text(path: AnyPath, text: str) -> None:
    """Write a text file in UTF-8 with plain line ends, completely or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: AnyPath, content: Any, allow_nan: bool = True) -> None:
    """As `write_text`, with an object in JSON's form.

    Raises: ValueError for NaN or infinity, which other readers of JSON refuse, unless
        `allow_nan`.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=allow_nan)
    write_text(path, text + "\n")


def _swap(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    # A folder cannot be renamed over a full one, so the old one steps aside first.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    target.rename(aside / "old")
    try:
        new.rename(target)
    except OSError:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def require_space(folder: AnyPath, needs_bytes: int) -> None:
    """Raise OSError, with both numbers, if `folder`'s disk cannot take needs_bytes."""
    free = shutil.disk_usage(folder).free
    if free < needs_bytes:
        raise OSError(
            f"This writes {needs_bytes / GIB:.1f} GiB, and the disk of {folder} has "
            f"{free / GIB:.1f} GiB free. Free some space or name a folder on another "
            "disk; nothing was written."
        )
