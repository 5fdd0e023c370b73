"""Folders that are written whole or not at all.

Knows: the temporary folder beside the target, renaming, free disk space.
Does not know: what is written.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

GIB = 2**30


@contextlib.contextmanager
def written_whole(target, needs_bytes=0, replace=False):
    """A folder to write into, that becomes `target` when the block ends well.

    target: a folder that is not there yet, or empty; with replace=True its content is
        given up for the new one, at the end and not before.
    needs_bytes: what will be written; compared with the free disk space beforehand.
    Yields: Path of a temporary folder beside the target.
    Raises: FileExistsError if the target holds something; OSError if the disk is too
        full. After an error in the block nothing is left but the target as it was.
    """
    target = Path(target)
    if not replace and target.exists() and not (target.is_dir() and _empty(target)):
        raise FileExistsError(
            f"{target} is there already. Name another folder, or remove this one."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, needs_bytes)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        partial.chmod(0o755)  # mkdtemp's folder is for its owner only
        yield partial
        _swap(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _swap(new, target):
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


def _empty(folder):
    return next(folder.iterdir(), None) is None


def require_space(folder, needs_bytes):
    """Raise OSError, with both numbers, if `folder`'s disk cannot take needs_bytes."""
    free = shutil.disk_usage(folder).free
    if free < needs_bytes:
        raise OSError(
            f"This writes {needs_bytes / GIB:.1f} GiB, and the disk of {folder} has "
            f"{free / GIB:.1f} GiB free. Free some space or name a folder on another "
            "disk; nothing was written."
        )
