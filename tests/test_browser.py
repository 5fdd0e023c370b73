"""What a learner sees in a browser: JupyterLab as `make lab` opens it, and pages."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import browser
import pytest

from course_utils.course import notebooks, pages
from course_utils.training import progress

ROOT = Path(__file__).parents[1]
CONTRAST = (Path(browser.__file__).parent / "contrast.js").read_text(encoding="utf-8")
pytestmark = pytest.mark.skipif(
    browser.find() is None, reason=f"needs one of {', '.join(browser.BROWSERS)}"
)
slow = pytest.mark.skipif(
    "COURSE_BROWSER_TESTS" not in os.environ,
    reason="takes minutes: set COURSE_BROWSER_TESTS=1",
)


# --- JupyterLab ---------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path):
    """`course lab` in a clone of its own. Yields the address, token included."""
    course = tmp_path / "course"
    for name in ("course_utils", "data_cards", "notebooks"):
        ignored = shutil.ignore_patterns("outputs", "__pycache__")
        shutil.copytree(ROOT / name, course / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", course)
    settings, runtime = tmp_path / "settings", tmp_path / "runtime"
    settings.mkdir()
    server = {
        "ServerApp": {"open_browser": False, "port": 0, "allow_root": True},
        "LabApp": {"expose_app_in_browser": True, "news_url": None},
    }
    (settings / "jupyter_server_config.json").write_text(
        json.dumps(server), encoding="utf-8"
    )
    silent = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")  # a learner sets neither
    environment = {k: v for k, v in os.environ.items() if k not in silent} | {
        "PYTHONPATH": str(course),
        "COURSE_PROFILE": "cpu",
        "JUPYTER_CONFIG_DIR": str(settings),
        "JUPYTER_RUNTIME_DIR": str(runtime),
    }
    command = [sys.executable, "-m", "course_utils.course", "lab"]
    with open(tmp_path / "lab.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, cwd=course, env=environment, stdout=log, stderr=log
        )
    try:
        (file,) = browser.wait_until(lambda: [*runtime.glob("jpserver-*.json")], 60)
        browser.wait_until(
            lambda: file.read_text(encoding="utf-8").rstrip().endswith("}"), 10
        )
        running = json.loads(file.read_text(encoding="utf-8"))
        yield f"{running['url']}lab?token={running['token']}"
        # The server ends its kernels; a signal would leave them behind.
        request = urllib.request.Request(
            f"{running['url']}api/shutdown",
            method="POST",
            headers={"Authorization": f"token {running['token']}"},
        )
        urllib.request.urlopen(request).close()
        process.wait(30)
    finally:
        process.kill()


CELLS = """
[...jupyterapp.shell.currentWidget.content.model.cells].map(cell => cell.toJSON())
    .filter(cell => cell.cell_type == "code" && cell.source.length)
"""
RUN_AS = """(async (ending, source) => {
    const notebook = jupyterapp.shell.currentWidget.content;
    const at = [...notebook.model.cells].findIndex(
        cell => cell.sharedModel.getSource().trimEnd().endsWith(ending));
    notebook.activeCellIndex = at;
    notebook.deselectAll();
    if (source) notebook.model.cells.get(at).sharedModel.setSource(source);
    await jupyterapp.commands.execute("notebook:run-cell");
    return JSON.stringify(notebook.model.cells.get(at).toJSON().outputs);
})"""


def answer(page, check, source):
    """Put `source` above the exercise's check, run it, and return what is shown."""
    ending = f"checks.{check}"
    return page.run(f"{RUN_AS}({json.dumps(ending)}, {json.dumps(source + ending)})")


def progress_lines(cells):
    return [
        output["data"].get("text/plain", "")
        for cell in cells
        for output in cell["outputs"]
        if output.get("metadata", {}).get(progress.MARK)
    ]


LOG_ODDS = "def log_odds(logps):\n    return {}\n\n\n"
FURTHEST = """def furthest_move(pairs, batch, accumulation, learning_rate):
    steps = -(-pairs // (batch * accumulation))
    return steps, learning_rate * {}


"""
SEEN = """seen = {{"prompt of the chosen row": "NLL", "chosen answer": "NLL + odds",
        "prompt of the rejected row": "none", "rejected answer": "{}"}}
"""


@pytest.mark.parametrize(
    ("name", "seconds", "check", "attempt", "wrong", "right"),
    [
        ("00_start_here", 90, "seen(seen)", SEEN, "NLL", "odds"),
        pytest.param(
            "01_sft_vs_preference",
            900,
            "log_odds(log_odds)",
            LOG_ODDS,
            "logps.exp()",
            "logps - torch.log(-torch.expm1(logps))",
            marks=slow,
        ),
        pytest.param(
            "04_orpo_training",
            900,
            "furthest_move(furthest_move)",
            FURTHEST,
            "steps",
            "(steps + 1) / 2",
            marks=slow,
        ),
    ],
)
def test_a_learner_runs_a_notebook_and_answers_an_exercise(
    lab, name, seconds, check, attempt, wrong, right
):
    with browser.opened() as page:
        page.look(1280)
        page.visit(lab)
        browser.wait_until(lambda: page.run("'jupyterapp' in window"), 60)
        page.run("jupyterapp.restored.then(() => true)")
        page.run(
            "jupyterapp.commands.execute('docmanager:open', "
            f"{{path: '{name}.ipynb', factory: 'Notebook'}}).then(async panel => {{"
            "await panel.context.ready; await panel.sessionContext.ready;"
            "jupyterapp.commands.execute('notebook:clear-all-cell-outputs');"
            "return true;})"
        )
        page.run("jupyterapp.commands.execute('notebook:run-all-cells'); true")

        lines = set()  # what was said of a training while it ran

        def finished():
            cells = page.run(CELLS)
            lines.update(progress_lines(cells))
            broken = [
                (cell["source"], output)
                for cell in cells
                for output in cell["outputs"]
                if output["output_type"] == "error"
            ]
            assert not broken
            return all(cell["execution_count"] for cell in cells) and cells

        cells = browser.wait_until(finished, seconds)
        outputs = [output for cell in cells for output in cell["outputs"]]
        figures = [out for out in outputs if "image/png" in out.get("data", {})]
        assert figures
        if name != "00_start_here":
            assert any(line.endswith("s left") for line in lines)
        assert set(progress_lines(cells)) <= {""}
        warned = "".join(str(o["text"]) for o in outputs if o.get("name") == "stderr")
        assert "Loading" not in warned and "it/s]" not in warned  # red bars
        page.run(f"{RUN_AS}('plt.show()')")
        drawn = "document.querySelector('.jp-RenderedImage img')?.naturalWidth > 0"
        browser.wait_until(lambda: page.run(drawn), 20)

        feedback = answer(page, check, attempt.format(wrong))
        assert "expected:" in feedback
        passed = answer(page, check, attempt.format(right))
        assert "expected:" not in passed and ": correct" in passed
        if folder := os.environ.get("COURSE_SCREENSHOTS"):
            page.screenshot(Path(folder) / f"lab-{name}.png")


# --- the built pages ----------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    with browser.opened() as page:
        yield page


OVERFLOWING = "document.documentElement.scrollWidth - innerWidth"
# What is wider than its place and does not scroll cannot be read.
CUT_OFF = """[...document.querySelectorAll("main *")].filter(e =>
    e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX == "hidden"
    && !e.closest("[class*=MathJax]"))  // formulas carry a hidden copy for listeners
    .map(e => e.textContent.trim().slice(0, 60))"""
# A picture without an alternative text is its file's name, or nothing, to a listener.
SILENT = "[...document.images].filter(image => !image.alt).length"


@pytest.mark.parametrize(
    "name", ["00_start_here", "01_sft_vs_preference", "02_dataset_mixing"]
)
def test_a_page_is_read_in_light_and_dark_at_desk_and_on_a_phone(page, tmp_path, name):
    notebook = notebooks.read(ROOT / "notebooks" / f"{name}.ipynb")
    file = tmp_path / f"{name}.html"
    pages.write_page(notebook, file, ROOT / "notebooks")
    page.visit(file.as_uri())
    page.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    for width in (1280, 390):
        for dark in (False, True):
            page.look(width, dark)
            # 4.5 is WCAG's least for text.
            assert page.run(f"({CONTRAST})(4.5)") == [], (width, dark)
            assert page.run(OVERFLOWING) <= 0, (width, dark)
        assert page.run(CUT_OFF) == [], width
    assert page.run("document.images.length") and page.run(SILENT) == 0


def test_text_that_is_hard_to_read_is_found_in_both_themes(page, tmp_path):
    file = tmp_path / "pale.html"
    file.write_text(
        "<style>@media (prefers-color-scheme: dark) "
        "{ body { filter: invert(.93) hue-rotate(180deg); background: #fff } }</style>"
        "<body><p style='color: #999; background: #ccc'>pale</p><p>black on white</p>",
        encoding="utf-8",
    )
    page.visit(file.as_uri())
    for dark in (False, True):
        page.look(1280, dark)
        ((ratio, text, *_),) = page.run(f"({CONTRAST})(4.5)")
        assert text == "pale" and 1 < float(ratio) < 2.2
