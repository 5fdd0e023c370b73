"""Where the course's own files lie."""

import tomllib
from importlib.metadata import metadata
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
DRIVE = Path("/content/drive/MyDrive")  # where Colab shows a mounted Google Drive


def in_checkout() -> bool:
    """Is this package used from a clone of the course (and not from a wheel)?"""
    return (PACKAGE.parent / "pyproject.toml").is_file()


def checkout() -> Path:
    """The folder of the cloned course.

    Raises: FileNotFoundError if the package was installed without the clone.
    """
    if not in_checkout():
        raise FileNotFoundError(
            f"This needs the course's own folder, and {PACKAGE.parent} is not it: "
            f"clone {repository()} and install from there with `pip install -e .`."
        )
    return PACKAGE.parent


def keep_outputs_on_drive(here: Path, drive: Path = DRIVE) -> str:
    """Let `outputs`, where notebooks write, lie on Google Drive, where it is mounted.

    here: the notebooks' folder. A folder `outputs` that is there already stays as it
    is. Returns: a sentence that says where outputs are kept, empty without a Drive.
    """
    if not drive.is_dir():
        return ""
    outputs, kept = here / "outputs", drive / "orpo-course" / "outputs"
    if outputs.is_symlink() and not outputs.exists():
        outputs.unlink()  # it leads to a Drive that is no longer there
    if not outputs.exists():
        kept.mkdir(parents=True, exist_ok=True)
        outputs.symlink_to(kept, target_is_directory=True)
    if outputs.resolve() != kept.resolve():
        return "outputs stay on this machine: the folder was there before the Drive"
    return "outputs are kept on Drive, in orpo-course/outputs"


def data_cards() -> Path:
    """The folder of the data cards, in a clone as well as in an installed wheel.

    A wheel carries the cards inside the package; in a clone they lie beside it, where
    readers find them. Raises: FileNotFoundError if they are in neither place.
    """
    candidates = [PACKAGE / "data_cards", PACKAGE.parent / "data_cards"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        "The data cards are missing: neither "
        + " nor ".join(map(str, candidates))
        + " is there. Install the package again, or restore the folder with git."
    )


def _pyproject():
    text = (checkout() / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def project() -> dict:
    """The `[project]` table of the clone's pyproject.toml."""
    return _pyproject()["project"]


def revision() -> str:
    """The tag, branch or commit that Colab installs: `v` and the version by default.

    `python -m course_utils.course address --revision NAME` sets another one.
    Raises: FileNotFoundError if the package was installed without the clone.
    """
    chosen = _pyproject().get("tool", {}).get("orpo-course", {}).get("revision")
    return chosen or f"v{project()['version']}"


def repository() -> str:
    """The address of the course's repository, without a slash at the end.

    It stands in pyproject.toml only. A clone reads it there, an installed wheel from
    the metadata that was made from it.
    """
    if in_checkout():
        return project()["urls"]["Repository"].rstrip("/")
    entries = metadata("orpo-course").get_all("Project-URL")
    urls = dict(entry.split(", ", 1) for entry in entries)
    return urls["Repository"].rstrip("/")
