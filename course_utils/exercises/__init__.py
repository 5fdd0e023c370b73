"""The exercises: their checks and their tested solutions.

`from course_utils.exercises import checks` gives a notebook every check. One module per
topic holds the checks; `mechanism` says how an exercise is registered.
"""
