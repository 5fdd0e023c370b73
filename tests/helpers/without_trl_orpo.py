"""Makes an environment in which TRL has no ORPO, as a coming release may not have it.

    PYTHONPATH=tests/helpers python -m pytest -p without_trl_orpo

As a pytest plugin it acts when it is imported, before any test module is. The processes
that tests start, notebooks' kernels among them, get it through PYTHONPATH:
`without_trl_orpo_site` holds a sitecustomize that imports this file.
"""

import importlib.abc
import os
import sys
from pathlib import Path

NAME = "trl.experimental.orpo"
SITE = Path(__file__).with_name("without_trl_orpo_site")


class Blocker(importlib.abc.MetaPathFinder):
    """Finds no module of that name, whatever others would find."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == NAME or fullname.startswith(f"{NAME}."):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def install():
    """For this process, and for those that it starts."""
    if not any(isinstance(finder, Blocker) for finder in sys.meta_path):
        sys.meta_path.insert(0, Blocker())
    paths = [str(SITE), str(SITE.parent), os.environ.get("PYTHONPATH", "")]
    if str(SITE) not in paths[-1].split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


install()
