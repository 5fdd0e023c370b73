"""A lock on an output folder, which the system gives back when its owner dies."""

import contextlib
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

NAME = ".lock"
_FAR = 2**30  # where Windows locks a byte, so that the text before it can be read
_CANNOT = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class FolderInUse(OSError):
    """Another process writes into this folder."""


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold the lock on a folder, which is made if it is missing.

    Raises: FolderInUse at once, naming the process that holds it.

    The kernel holds the lock and not the file: after `kill -9` of its owner the next
    process gets it. A folder that was made for it and is still empty goes in the end.
    """
    folder = Path(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = _open_locked(path)
    try:
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
        file.flush()
        yield
    finally:
        # While the lock is held, so that nobody else's file is removed. Windows
        # removes no open file: there an unlocked one stays.
        with contextlib.suppress(PermissionError):
            path.unlink(missing_ok=True)
        file.close()
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _open_locked(path):
    """The lock's file, open and locked."""
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            text = file.read()
            file.close()
            raise FolderInUse(
                f"Another process{_owner(text)} is training into {path.parent}. Wait "
                "for its end, stop it, or name another folder."
            ) from None
        except OSError as error:
            if error.errno not in _CANNOT:
                file.close()
                raise
            print(
                f"The file system of {path.parent} has no locks: make sure that no "
                "other process trains into this folder."
            )
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # its owner removed it between opening and locking


def _lock(file):
    """Lock an open file, or raise BlockingIOError at once."""
    if os.name == "nt":
        import msvcrt

        file.seek(_FAR)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
        finally:
            file.seek(0)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _owner(text):
    try:
        owner = json.loads(text)
        return f" (pid {owner['pid']} on {owner['host']})"
    except (ValueError, TypeError, KeyError):  # it has not written its name yet
        return ""
