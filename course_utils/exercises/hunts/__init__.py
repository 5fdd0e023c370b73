"""The hunts: recipes that run, look fine and are wrong.

`recipes` holds them as the notebooks print them (a test compares), `repairs` one right
repair of each. The other modules hold the checks, which judge what a recipe does: any
right repair passes. `material` gives a learner what a recipe works on.
"""
