"""Runs `course_utils.course` as a command."""

import sys

from course_utils.course.commands import main

if __name__ == "__main__":
    # A finding may hold β or ×, which not every Windows console can print.
    sys.stdout.reconfigure(errors="replace")
    sys.exit(main())
