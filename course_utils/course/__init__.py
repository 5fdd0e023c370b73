"""What builds, executes and checks the notebooks: for maintainers.

No notebook imports from here. `python -m course_utils.course --help` lists the
commands.
"""

from course_utils.course.commands import main, run_course, run_key, run_tests

__all__ = ["main", "run_course", "run_key", "run_tests"]
