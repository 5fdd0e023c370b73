"""Printing on a console that lacks a character, such as β on code page 1252."""

import sys


def print_safely() -> None:
    """Let stdout and stderr write \\u03b2 for a β that their encoding does not have.

    Every command calls it first: without it, one such character ends a run. The
    encoding stays the console's own.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook replaced the stream
            stream.reconfigure(errors="backslashreplace")
