"""When a process is to end: what it says, also from inside of a library.

Of several processes one may be lost; then torchrun ends the others by a signal.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

_BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def end_in_words_on_sigterm(message: str) -> None:
    """On SIGTERM print `message` and end at once, with status 143.

    A handler in Python would wait for the main thread, which may itself be waiting for
    the lost process inside NCCL, for ever. The byte that the signal writes to a pipe
    wakes a thread that does not.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def wait():
        while signal.SIGTERM not in os.read(reading, 16):
            pass
        os.write(2, f"{message}\n".encode())
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def end_in_words_on_ctrl_c(message: str, status: int) -> Iterator[None]:
    """Meanwhile, Ctrl-C prints `message` and ends the process at once.

    For imports: numpy makes a RecursionError of the KeyboardInterrupt.
    """

    def end(*_):
        os.write(2, f"{message}\n".encode())
        os._exit(status)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # somebody else decides
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def is_broken_connection(error: RuntimeError) -> bool:
    """Does this RuntimeError mean that another process is gone?"""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(
        words in str(error) for words in _BROKEN
    )
