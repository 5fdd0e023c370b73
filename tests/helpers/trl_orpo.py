"""TRL 1.16's ORPO as a reference, where it is installed.

Tests that need it are skipped elsewhere; tests/golden holds its numbers for ever.
"""

import pytest

REASON = "TRL's ORPO is not installed here (tests/golden has its recorded numbers)"


def trl_orpo():
    """The module trl.experimental.orpo; skips the test where there is none."""
    return pytest.importorskip(
        "trl.experimental.orpo", reason=REASON, exc_type=ModuleNotFoundError
    )
