"""The Space tried by a browser without a screen, as a visitor would.

The small world's verifier judges the answers.

    python tests/benchmarks/visit_space.py SPACE MODEL [--record]

needs gradio and playwright, and a Chromium: `pip install gradio playwright`.
"""

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from course_utils import recorded
from course_utils.data import world
from course_utils.setup import folders, places
from course_utils.setup.printing import print_safely

RECORDED = places.PACKAGE / "recorded"
QUESTIONS = 7  # one of each source
MAX_PNG = 60_000
PATIENCE = 180_000  # milliseconds; two busy cores need them


@contextmanager
def running(space: str | Path, model: str | Path) -> Iterator[str]:
    """The address of the Space's own app.py, started as the hub would start it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environ = os.environ | {
        "MODEL_ID": str(Path(model).resolve()),
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
    app = subprocess.Popen([sys.executable, "app.py"], cwd=space, env=environ)
    try:
        _wait(app, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        app.terminate()
        app.wait()


def _wait(app, port):
    for _ in range(PATIENCE // 500):
        if app.poll() is not None:
            raise RuntimeError(f"app.py ended with {app.returncode} before it served.")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError("app.py did not serve in time.")


def visit(address: str, questions: list[str]) -> tuple[list[str], bytes]:
    """(answers as the page shows them, a picture of the last one as PNG).

    Each question goes into a conversation of its own.
    """
    from playwright.sync_api import sync_playwright

    answers = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for question in questions:
            page = browser.new_page(viewport={"width": 760, "height": 620})
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.get_by_role("textbox").first.fill(question)
            page.locator("button.submit-button").first.click()
            bot = page.locator("[data-testid=bot]").last
            bot.wait_for()
            page.wait_for_function(
                "() => { const all = document.querySelectorAll('[data-testid=bot]');"
                " const text = all[all.length - 1].innerText.trim();"
                " const done = text && text === window.lastText;"
                " window.lastText = text; return done; }",
                polling=1000,
            )
            answers.append(bot.inner_text().strip())
            picture = page.screenshot()
            page.close()
        browser.close()
    return answers, picture


def small_png(picture: bytes) -> bytes:
    """The picture as a PNG of few colours. Raises: ValueError if it stays too large."""
    from PIL import Image

    out = io.BytesIO()
    colours = Image.open(io.BytesIO(picture)).convert("RGB").quantize(64)
    colours.save(out, "PNG", optimize=True)
    if out.tell() > MAX_PNG:
        raise ValueError(
            f"The picture has {out.tell():,} bytes, more than {MAX_PNG:,}."
        )
    return out.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("space", help="the folder of the Space")
    parser.add_argument("model", help="a merged model of the lab")
    parser.add_argument("--record", action="store_true", help="keep it as recorded")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    single = [p for p in world.test_pairs() if len(p["prompt"]) == 1]
    prompts = [pair["prompt"] for pair in single[:QUESTIONS]]
    with running(options.space, options.model) as address:
        answers, picture = visit(address, [prompt[0]["content"] for prompt in prompts])
    rows = [
        {
            "question": prompt[0]["content"],
            "answer": text,
            "good": world.verify(prompt, text).good,
        }
        for prompt, text in zip(prompts, answers, strict=True)
    ]
    print(json.dumps(rows, indent=1))
    if options.record:
        program = "python tests/benchmarks/visit_space.py"
        command = f"{program} {options.space} {options.model}"
        run = recorded.describe_run(f"{command} --record", start)
        run["versions"] |= recorded.versions(("gradio", "playwright"))
        text = json.dumps({**run, "visits": rows}, indent=1, ensure_ascii=False)
        folders.write_text(RECORDED / "space.json", text + "\n")
        (RECORDED / "space.png").write_bytes(small_png(picture))


if __name__ == "__main__":
    print_safely()
    main()
