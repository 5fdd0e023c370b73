"""The exercises, hunts and quizzes, which a notebook reaches through `checks`.

One module per topic holds the exercises' checks, `hunts` the hunts, `quizzes` the
questions. `mechanism` says how to add an exercise or a hunt. No module here knows the
notebooks: tests compare their cards, stubs and recipes with what is registered.
"""
