"""A folder from which the course installs without a network.

It holds the wheels for this kind of machine and this Python, the course itself as a
clone, the built pages where there are any, and `install.py`.
"""

import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from course_utils.setup import folders

INSTALL = '''\
"""Installs the course from this folder, without a network: python install.py"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILT_FOR = (0, 0)


def main():
    if sys.version_info[:2] != BUILT_FOR:
        wanted = ".".join(map(str, BUILT_FOR))
        sys.exit(f"The wheels are for Python {wanted}: run it as python{wanted}.")
    course, venv = HERE / "course", HERE / "course" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wheels = sorted((HERE / "wheels").glob("*.whl"))
    if wheels:
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-index", "--no-deps", *wheels], check=True)
    # The course stays where it is, so that its notebooks and commands find each other.
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
    Path(packages.strip(), "orpo_course.pth").write_text(f"{course}\\n", "utf-8")
    print(f"Installed. Begin with: cd {course}")
    print(f"{python} -m course_utils.course lab")


if __name__ == "__main__":
    main()
'''


def make(
    root: Path, folder: Path, extras: str = "[tests]", options: Sequence[str] = ()
) -> int:
    """Write the bundle. Needs a network, once.

    root: the clone. folder: a folder that is not there yet, or empty.
    extras: of the package, in pip's form. options: more of pip's options.
    Returns: its size in bytes.
    Raises: FileExistsError if the folder holds something; ValueError if it lies in the
        clone; subprocess.CalledProcessError if pip cannot collect a wheel. Nothing is
        left behind then.
    """
    folder = folder.resolve()
    if folder == root.resolve() or root.resolve() in folder.parents:
        raise ValueError(f"{folder} lies in the clone, which is copied: name another.")
    with folders.written_whole(folder) as partial:
        wheels = partial / "wheels"
        pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check"]
        pip += ["--constraint", str(root / "constraints.txt"), *options]
        pip += ["--wheel-dir", str(wheels), f"{root}{extras}"]
        subprocess.run(pip, check=True)
        for wheel in wheels.glob("orpo_course-*.whl"):
            wheel.unlink()  # the clone itself is used
        copy_tracked(root, partial / "course")
        pages = root / "build" / "html"
        if pages.is_dir():
            shutil.copytree(pages, partial / "pages")
        version = tuple(map(int, platform.python_version_tuple()[:2]))
        text = INSTALL.replace("(0, 0)", repr(version))
        (partial / "install.py").write_text(text, encoding="utf-8", newline="\n")
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def copy_tracked(root: Path, target: Path) -> None:
    """Copy what git tracks, as it is in the working folder."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], check=True, capture_output=True
    ).stdout.decode("utf-8")
    for name in filter(None, listed.split("\0")):
        source = root / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
