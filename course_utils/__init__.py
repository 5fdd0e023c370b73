"""The small package behind the ORPO course: one module a concept.

Importing it does nothing: no device probe, no logging, no environment change.
"""
