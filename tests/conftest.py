"""What holds for every test: no network, no account, no progress bars.

Set here because the libraries read it when they are first imported.
"""

import os
import signal
import warnings

import pytest

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "WANDB_MODE": "offline",
}.items():
    os.environ.setdefault(name, value)

# A shell starts what runs behind it (`make test &`) deaf to Ctrl-C, and so would be the
# processes that the tests start to press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from hub import hub  # noqa: E402 - a fixture: a stand-in for the model hub

__all__ = ["hub"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Each test begins with the same mapping as os.environ, and a change is named.

    `datasets` puts a copy in its place when it maps with several processes.
    """
    before = os.environ
    done = yield
    if os.environ is not before:
        warnings.warn(f"{item.nodeid} replaced os.environ", stacklevel=1)
        os.environ = before  # noqa: B003 - the mapping, not its content
    return done
