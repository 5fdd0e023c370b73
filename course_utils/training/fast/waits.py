"""What the CPU waits for without need: bitsandbytes' optimizers."""

import contextlib
from collections.abc import Iterator

import torch
from bitsandbytes.optim import optimizer

from course_utils.setup.patching import replaced
from course_utils.training.fast import flat_optimizer


@contextlib.contextmanager
def optimizer_runs_ahead() -> Iterator[None]:
    """Within the context, bitsandbytes' optimizers do not wait for the GPU.

    bitsandbytes 0.50 waits after each tensor that it updates: at 8B, r = 16, for 448 of
    them in turn, in which the GPU has next to nothing to do. An update needs no more
    than the order of work on the stream. Whoever reads the state on the CPU does need
    to `catch_up` first: paged memory is the CPU's as well, and a read does not wait.

    Nor do paged optimizers ask for their state before they use it: behind such a
    request each launch waits until the GPU has served it. State that the driver had to
    move out comes back page by page, where the update touches it.

    Parameters that lie side by side are updated by one kernel: see flat_optimizer.
    """
    try:
        with (
            flat_optimizer.steps_at_once(),
            replaced(optimizer, "sync_gpu", lambda tensor: None),
            replaced(
                optimizer.Optimizer8bit, "prefetch_state", lambda self, parameter: None
            ),
        ):
            yield
    finally:
        catch_up()


def catch_up() -> None:
    """Wait until the GPU has done all the work it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
