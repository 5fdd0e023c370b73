"""One command sets the repository's address wherever it is shown, in seconds."""

import os
import shutil
import subprocess
import tomllib

import pytest

from course_utils.course import address, commands, notebooks, pages
from course_utils.setup import places

ROOT = places.checkout()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with two of the notebooks, whose package lies there as well."""
    (tmp_path / "notebooks").mkdir()
    for path in notebooks.notebook_files(ROOT)[:2]:
        shutil.copy(path, tmp_path / "notebooks")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    readme = f"# Title\n\n{pages.README_BEGIN}\nold\n{pages.README_END}\n"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "course_utils")
    return tmp_path


@pytest.mark.parametrize(
    "written",
    [
        "https://github.com/me/my-course",
        "https://github.com/me/my-course.git",
        "https://github.com/me/my-course/",
        "git@github.com:me/my-course.git",
        "ssh://git@github.com/me/my-course.git\n",
        "https://user:secret@github.com/me/my-course.git",
    ],
)
def test_every_form_of_an_address_becomes_one(written):
    assert address.normalised(written) == "https://github.com/me/my-course"


@pytest.mark.parametrize(
    "written",
    ["", "me/my-course", "https://user:pw@example.org/a/b", "https://github.com/me"],
)
def test_an_address_that_colab_cannot_open_is_refused_without_its_password(written):
    with pytest.raises(ValueError, match="on github.com") as refused:
        address.normalised(written)
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize("revision", [None, "main", "0123abc"])
def test_badges_cells_and_readme_follow_and_outputs_stay(clone, revision):
    before = notebooks.read(clone / "notebooks" / "01_sft_vs_preference.ipynb")
    changed = address.set_address(clone, "git@github.com:me/fork.git", revision)
    assert {"pyproject.toml", "README.md"} < set(changed)
    after = notebooks.read(clone / "notebooks" / "01_sft_vs_preference.ipynb")
    version = tomllib.loads((clone / "pyproject.toml").read_text(encoding="utf-8"))
    expected = revision or f"v{version['project']['version']}"
    assert places.revision() == expected
    texts = "\n".join(cell.source for cell in after.cells)
    assert "github/me/fork/blob/" in texts and "OWNER" not in texts
    assert notebooks.code_sha256(after) == notebooks.code_sha256(before)
    outputs = [[cell.get("outputs") for cell in n.cells] for n in (before, after)]
    assert outputs[0] == outputs[1]
    assert "me/fork" in (clone / "README.md").read_text(encoding="utf-8")
    # Nothing is left to do.
    assert address.set_address(clone, "git@github.com:me/fork.git", revision) == []


def test_the_command_takes_the_clone_s_own_remote(clone, monkeypatch, capsys):
    monkeypatch.setattr(places, "checkout", lambda: clone)
    assert commands.main(["address"]) == 1
    assert "git knows no remote `origin`" in capsys.readouterr().out
    git = ["git", "-C", str(clone)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    remote = "https://token@github.com/you/yours.git"
    subprocess.run([*git, "remote", "add", "origin", remote], check=True)
    assert commands.main(["address", "--revision", "main"]) == 0
    said = capsys.readouterr().out
    assert "https://github.com/you/yours @ main" in said and "token" not in said


@pytest.mark.parametrize("revision", ["", "a b", "--upload-pack=x", "x\ny"])
def test_an_impossible_revision_changes_nothing(clone, revision):
    before = (clone / "pyproject.toml").read_bytes()
    with pytest.raises(ValueError, match="tag, branch or commit"):
        address.set_address(clone, "https://github.com/me/fork", revision)
    assert (clone / "pyproject.toml").read_bytes() == before


@pytest.mark.skipif(
    "GITHUB_REPOSITORY" not in os.environ, reason="only the public host sets it"
)
def test_on_the_public_host_the_address_is_the_repository_s_own():
    expected = f"https://github.com/{os.environ['GITHUB_REPOSITORY']}"
    assert places.repository() == expected, (
        "badges and set-up cells lead elsewhere: run `python -m course_utils.course "
        "address` in a clone of this repository, and commit what it changes"
    )
