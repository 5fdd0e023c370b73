"""`make notebooks`: rebuild them from their text, execute them, renew the map."""

from collections.abc import Sequence
from pathlib import Path

from course_utils.course import (
    console,
    execution,
    notebook_lint,
    notebooks,
    pages,
    working_copies,
)
from course_utils.course.running import chosen, profile


def build_notebooks(
    root: Path, names: Sequence[str] = (), only_stale: bool = False
) -> int:
    """Rebuild notebooks from their text, execute them, and renew the README's map.

    only_stale: execute only where the code changed; text is renewed everywhere.
    Returns: 0, or 1 if a notebook broke (its committed form is then left as it was).
    """
    texts = chosen(notebooks.text_files(root), names)
    texts.sort(key=lambda text: text.stem.startswith("00"))  # it shows all minutes
    broke = [text.stem for text in texts if not _build_one(root, text, only_stale)]
    readme = root / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = pages.updated_readme(old, notebooks.notebook_files(root))
    if new != old:
        notebooks.write_text(readme, new)
        print("README.md: the map of notebooks was renewed")
    if broke:
        print(f"Not rebuilt, and left as committed: {', '.join(broke)}")
    return int(bool(broke))


def _read_or_none(path):
    """The notebook at `path`, or None if there is none that can be read."""
    try:
        return notebooks.read(path)
    except (FileNotFoundError, ValueError):
        return None


def _build_one(root, text_path, only_stale):
    """Rebuild one notebook, and say what is wrong with it. Returns: was it written?"""
    name = text_path.stem
    target = root / "notebooks" / f"{name}.ipynb"
    text = text_path.read_text(encoding="utf-8")
    template = notebooks.from_text(text, text_path.name)
    tidy = notebooks.to_text(template)
    if tidy != text:
        notebooks.write_text(text_path, tidy)
        print(f"{name}: blank lines of its text were put in jupytext's form")

    committed = _read_or_none(target)
    if only_stale and committed and notebooks.is_current(committed, template):
        executed, record = committed, notebooks.run_record(committed)
    else:
        executed = notebooks.filled(template, notebooks.fills(name, {}))
        progress = console.Progress(name)
        try:
            record = execution.execute(executed, target.parent, profile(), progress)
        except execution.NotebookBrokeError as error:
            progress.end(f"broke at {error}")
            wreck = root / "build" / "broken" / target.name
            notebooks.write(executed, wreck)
            print(f"{name}: look at {wreck.relative_to(root)}")
            return False
        progress.end()
    kept = target.exists() and working_copies.keep_answers(root, target)
    if kept:
        print(f"{name}: somebody edited it; that version is {kept.relative_to(root)}")
    finished = notebooks.finished(template, name, executed, record)
    leaks = list(notebook_lint.leaks(finished))
    if leaks:
        print(*(f"{name}: not written, {leak}" for leak in leaks), sep="\n")
        return False
    notebooks.write(finished, target)
    for problem in notebook_lint.problems(target):
        print(f"{name}: {problem}")
    return True
