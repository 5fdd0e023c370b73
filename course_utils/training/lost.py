"""When a process of several is lost: the others end, and say how to go on.

Knows: the signal by which torchrun ends the others, and how a broken connection reads.
Does not know: training.
"""

import os
import signal
import threading

_BROKEN = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def end_in_words_when_told(message):
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


def is_broken_connection(error):
    """Does this RuntimeError mean that another process is gone?"""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or any(
        words in str(error) for words in _BROKEN
    )
