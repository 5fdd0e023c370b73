"""How many threads the libraries may use, chosen by the cores that are free now.

Two things make a training step slow on a busy machine. More threads than free cores is
one. The other costs far more: at the end of each parallel loop OpenMP's threads wait
for one another by spinning, so a thread that waits takes the core that its partner
needs. `python tests/benchmarks/bench_threads.py` measures both.
"""

import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

import psutil

SAMPLE_SECONDS = 0.2
VARIABLE = "OMP_NUM_THREADS"


class Threads(NamedTuple):
    """`number, reason = choose_threads()`"""

    number: int
    reason: str


def usable_cores() -> int:
    """How many CPU cores this process may use (a container may grant few of many)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_threads(
    environ: Mapping[str, str] | None = None,
    cores: int | None = None,
    busy: float | None = None,
) -> Threads:
    """The number of threads for numerical libraries, and why.

    environ: OMP_NUM_THREADS in it decides, if it is set.
    cores: usable cores; this machine's by default.
    busy: percent of all cores that other programs use; measured for 0.2 s by default.
    Raises: ValueError if OMP_NUM_THREADS is not a whole number of at least 1.
    """
    environ = os.environ if environ is None else environ
    wanted = environ.get(VARIABLE, "").strip()
    if wanted:
        # OpenMP also takes one number per level of nesting; the first is the outer one.
        first = wanted.partition(",")[0]
        if not first.isdecimal() or int(first) < 1:
            raise ValueError(
                f"{VARIABLE} is {wanted!r}; give a whole number of at least 1, "
                "or unset it to have one chosen."
            )
        return Threads(int(first), f"{VARIABLE} says so")
    cores = usable_cores() if cores is None else cores
    busy = psutil.cpu_percent(interval=SAMPLE_SECONDS) if busy is None else busy
    taken = min(cores, round(cores * busy / 100))
    number = max(1, cores - taken)
    return Threads(number, f"{taken} of {cores} cores are busy with other programs")


def use_free_cores(environ: MutableMapping[str, str] | None = None) -> Threads:
    """Set the number of threads, and let waiting threads sleep.

    Call it before torch is imported: OpenMP reads its settings once. Where torch is
    there already, only the number can change, and the reason says so.
    Returns: Threads, what was chosen and why.
    """
    environ = os.environ if environ is None else environ
    chosen = choose_threads(environ)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(chosen.number)
        if "OMP_WAIT_POLICY" not in environ:
            late = "torch was imported before, so waiting threads still spin"
            return Threads(chosen.number, f"{chosen.reason}; {late}")
        return chosen
    environ[VARIABLE] = str(chosen.number)
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environ.setdefault("KMP_BLOCKTIME", "0")  # the same for Intel's and LLVM's OpenMP
    return chosen
