"""What builds, executes and checks the notebooks: for maintainers.

No notebook imports from here. `python -m course_utils.course --help` lists the
commands.
"""
