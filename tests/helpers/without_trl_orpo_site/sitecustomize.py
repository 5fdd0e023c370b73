"""Imported by every Python that starts with this folder on its path."""

import without_trl_orpo  # noqa: F401
