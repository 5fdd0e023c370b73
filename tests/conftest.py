"""What holds for every test: no network, no account, no progress bars.

Set here because the libraries read it when they are first imported.
"""

import os

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "WANDB_MODE": "offline",
}.items():
    os.environ.setdefault(name, value)

from hub import hub  # noqa: E402 - a fixture: a stand-in for the model hub

__all__ = ["hub"]
