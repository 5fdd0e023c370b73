"""`python -m course_utils.training`, alone or under `accelerate launch`."""

import contextlib
import os
import shlex
import sys

from course_utils.setup import profiles, quiet
from course_utils.setup.printing import print_safely
from course_utils.training import lost, options


def main(arguments=None):
    """Returns: the process's exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = options.parse(arguments)
    if asked.config_path:
        print(options.config_path(asked.config_path))
        return 0
    asked.command = shlex.join(["python -m course_utils.training", *arguments])
    rank, several = os.environ.get("RANK", "0"), int(os.environ.get("WORLD_SIZE", "1"))
    with contextlib.ExitStack() as stack:
        if rank != "0":  # the main process speaks for all
            silent = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(silent))
        if several == 1:
            return _train(asked, rank)
        message = (
            f"process {rank}: ended, because another process did. Start the same "
            f"command with --resume: it goes on from the last whole checkpoint in "
            f"{asked.output}."
        )
        lost.end_in_words_when_told(message)
        try:
            return _train(asked, rank)
        except RuntimeError as error:
            if not lost.is_broken_connection(error):
                raise
            print(message, file=sys.stderr, flush=True)
            # An orderly end would wait for the process that is gone.
            os._exit(1)


def _train(asked, rank):
    try:
        profile, reason = options.choose_profile(asked)
        print(f"profile {profile.name}: {reason}", flush=True)
        # Variables that the libraries read when they are imported.
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        quiet.hide_library_chatter()
        if not profile.needs_hub:
            profiles.stay_offline()
        from accelerate import PartialState

        from course_utils.training import resilience
        from course_utils.training.run import run

        try:
            run(asked, profile)
            PartialState().destroy_process_group()  # if there are several processes
        except (resilience.NotFinite, resilience.OutOfMemory) as error:
            # Not every process may have met it, so this one speaks for itself.
            print(f"process {rank}: {error}", file=sys.stderr, flush=True)
            return 1
    except (ValueError, OSError) as error:
        if rank == "0":  # all of them met it
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    print_safely()
    sys.exit(main())
