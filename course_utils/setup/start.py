"""What every notebook does first, in one call."""

import os
from pathlib import Path

from course_utils.setup import hardware, places, profiles, quiet, threads


def begin(offline: bool = False) -> profiles.Choice:
    """Prepare this kernel, and choose the profile. Call it before importing torch.

    Chooses the number of threads, the profile, hides messages that tell a learner
    nothing, and keeps the libraries off the network where the hub is not needed.
    Outputs go to Google Drive where Colab has mounted it.
    offline: True for a notebook that never needs the hub.
    Returns: (profile, reason). Raises: as profiles.choose.
    """
    threads.use_free_cores()
    choice = profiles.choose()
    if offline or not choice.profile.needs_hub:
        hardware.stay_offline()
        # What is left to show is a red bar per load of a model that takes a second.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    quiet.hide_library_chatter()
    kept = places.keep_outputs_on_drive(Path.cwd())
    return choice._replace(reason="; ".join(filter(None, [choice.reason, kept])))
