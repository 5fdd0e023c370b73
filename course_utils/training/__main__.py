"""`python -m course_utils.training`, alone or under `accelerate launch`."""

import contextlib
import os
import shlex
import sys
import traceback
from pathlib import Path

import course_utils
from course_utils.setup import profiles, quiet
from course_utils.setup.printing import print_safely
from course_utils.training import lost, options

STOPPED = 130  # the status of a command that Ctrl-C ended


def main(arguments: list[str] | None = None) -> int:
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
        lost.end_in_words_on_sigterm(message)
        try:
            status = _train(asked, rank)
        except RuntimeError as error:
            if not lost.is_broken_connection(error):
                raise
            _say(message)
            status = 1
        if status:
            sys.stdout.flush()
            # An orderly end would wait for processes that are gone or stopped.
            os._exit(status)
        return status


def _train(asked, rank):
    """The exit status; what went wrong stands in one line on stderr."""
    main_process = rank == "0"
    try:
        try:
            stopped = "Stopped before anything began." if main_process else ""
            with lost.end_in_words_on_ctrl_c(stopped, STOPPED):
                profile, reason = options.choose_profile(asked)
                print(f"profile {profile.name}: {reason}", flush=True)
                # Variables that the libraries read when they are imported.
                os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
                quiet.hide_library_chatter()
                if not profile.needs_hub:
                    profiles.stay_offline()
                from course_utils.training import run
            with run.prepared(asked, profile) as job:
                return _run(run, job, asked, rank)
        except (ValueError, OSError) as error:
            if main_process:  # all of them met it
                _say(" ".join(str(error).split()))
            return 2 if isinstance(error, options.UsageError) else 1
    except KeyboardInterrupt:
        if main_process:
            _say(f"Stopped. {_kept(asked)}")
        return STOPPED


def _run(run, job, asked, rank):
    """The exit status of the training itself. run: the module, imported late."""
    from accelerate import PartialState

    from course_utils.training import resilience

    failures = resilience.NotFinite, resilience.OutOfMemory, resilience.DiskFull
    # Not every process may have met it, so this one speaks for itself.
    try:
        run.train(job)
        PartialState().destroy_process_group()  # if there are several processes
        return 0
    except failures as error:
        _say(f"process {rank}: {error}")
    except OSError as error:
        _say(f"process {rank}: {error}. {_kept(asked)}")
    except ValueError as error:
        if _is_our_own(error):
            _say(f"process {rank}: {error}")
        else:
            traceback.print_exc()
    return 1


def _is_our_own(error):
    """Did the course raise this, with words for the reader? Otherwise it is a bug."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(course_utils.__file__).parent in Path(last.filename).parents


def _kept(asked):
    """What a run that was stopped leaves, and how to go on."""
    found = [p for p in asked.output.glob("checkpoint-*") if p.name[11:].isdecimal()]
    if not found:
        return f"No checkpoint had been saved yet in {asked.output}."
    last = max(found, key=lambda path: int(path.name[11:]))
    return f"Kept: {last}. The same command with --resume goes on from there."


def _say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    print_safely()
    sys.exit(main())
