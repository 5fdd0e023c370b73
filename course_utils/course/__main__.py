"""Runs `course_utils.course` as a command."""

import sys

from course_utils.course.commands import main
from course_utils.setup.printing import print_safely

if __name__ == "__main__":
    print_safely()
    sys.exit(main())
