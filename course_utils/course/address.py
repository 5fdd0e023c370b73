"""The repository's address: set once, renewed wherever it is shown.

It stands in pyproject.toml. Badges, the set-up cells, the README's map and CITATION.cff
are made from it; nothing is executed for that.
"""

import re
import subprocess
from pathlib import Path

from course_utils.course import notebooks, pages
from course_utils.setup import places

HOST = "https://github.com/"
_PARTS = re.compile(
    r"(?:https?://(?:[^@/]*@)?|ssh://git@|git@)github\.com[/:]"
    r"([\w.-]+)/([\w.-]+?)(?:\.git)?/?"
)
_REVISION = re.compile(r"[\w][\w./-]*")


def normalised(address: str) -> str:
    """https://github.com/OWNER/NAME from any form in which git writes an address.

    A password or token in the address is left out. Raises: ValueError if the host is
    another one: Colab opens notebooks from github.com only.
    """
    found = _PARTS.fullmatch(address.strip())
    if not found:
        # The address may hold a password, so it is not printed.
        raise ValueError(
            "The address must be of a repository on github.com, such as "
            f"{HOST}OWNER/NAME or git@github.com:OWNER/NAME.git."
        )
    return f"{HOST}{found[1]}/{found[2]}"


def of_remote(root: Path) -> str:
    """The address of the clone's own remote `origin`.

    Raises: ValueError if git knows none, or if it is not on github.com.
    """
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise ValueError(
            f"git knows no remote `origin` in {root}: name the address, as in "
            f"`python -m course_utils.course address {HOST}OWNER/NAME`."
        )
    return normalised(done.stdout)


def set_address(root: Path, address: str, revision: str | None = None) -> list[str]:
    """Write the address to pyproject.toml, and renew all that shows it.

    address: as `normalised` takes it. revision: tag, branch or commit that Colab is to
        install; by default `v` and the version. Returns: the files that changed.
    Raises: ValueError for an impossible address or revision; nothing is changed then.
    """
    address = normalised(address)
    if revision is not None and not _REVISION.fullmatch(revision):
        raise ValueError(f"{revision!r} is not the name of a tag, branch or commit.")
    changed = []
    project = root / "pyproject.toml"
    text = project.read_text(encoding="utf-8")
    new = re.sub(r'(?m)^(Repository = ")[^"]*(")', rf"\g<1>{address}\g<2>", text)
    new = re.sub(r"\n\[tool\.orpo-course\]\n(?:[^\[\n][^\n]*\n)*", "", new)
    if revision is not None:
        new = new.rstrip("\n") + f'\n\n[tool.orpo-course]\nrevision = "{revision}"\n'
    _write(project, text, new, changed)
    return changed + renew(root)


def renew(root: Path) -> list[str]:
    """Write badges, set-up cells, README and CITATION.cff anew from pyproject.toml.

    Outputs and records of the notebooks stay as they are. Returns: what changed.
    """
    changed = []
    for path in notebooks.notebook_files(root):
        notebook = notebooks.read(path)
        new = notebooks.refilled(notebook, path.stem)
        if new != notebook:
            notebooks.write(new, path)
            changed.append(f"notebooks/{path.name}")
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = pages.updated_readme(text, notebooks.notebook_files(root))
    _write(readme, text, new, changed)
    citation = root / "CITATION.cff"
    if citation.exists():
        text = citation.read_text(encoding="utf-8")
        line = rf'\g<1>"{places.repository()}"'
        _write(
            citation, text, re.sub(r"(?m)^(repository-code: ).*", line, text), changed
        )
    return changed


def _write(path, old, new, changed):
    if new != old:
        notebooks.write_text(path, new)
        changed.append(path.name)
