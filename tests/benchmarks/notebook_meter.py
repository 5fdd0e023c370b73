"""Inside a notebook's kernel: cap its GPU memory, and read its peaks at the end.

Knows: torch's allocator. Does not know: the notebook, who runs it (`run_notebooks`).
"""

import json

import torch

MARK = "PEAKS "
_seen = {"peak_gib": 0.0, "reserved_gib": 0.0}
_reset = torch.cuda.reset_peak_memory_stats


def start(fraction):
    """Let this process have at most `fraction` of the card; without a GPU, nothing.

    A notebook may reset torch's peaks for a measurement of its own; they are kept.
    """
    if not torch.cuda.is_available():
        return
    torch.cuda.set_per_process_memory_fraction(fraction)

    def keep_and_reset(*args, **kwargs):
        _note()
        _reset(*args, **kwargs)

    torch.cuda.reset_peak_memory_stats = keep_and_reset
    torch.cuda.memory.reset_peak_memory_stats = keep_and_reset


def _note():
    now = {
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }
    _seen.update({name: max(_seen[name], value) for name, value in now.items()})


def report():
    """Print the peaks since `start`, in a line that `peaks_in` finds."""
    cuda = torch.cuda.is_available()
    if cuda:
        _note()
    found = {name: round(value, 2) if cuda else None for name, value in _seen.items()}
    print(MARK + json.dumps(found))


def peaks_in(text):
    """What `report` printed, as a dict. Raises: ValueError if it did not."""
    for line in text.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK))
    raise ValueError("The kernel did not report its peaks.")
