"""What the commands say on the terminal: progress of a notebook, and a table."""

import io
import shutil
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

LOG_SECONDS = 20  # how often a log, which is no terminal, gets a line of progress


def table(rows: Sequence[dict], width: int | None = None) -> str:
    """The closing table, as text that fits `width` characters (the terminal's)."""
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("notebook", no_wrap=True)
    grid.add_column("minutes", justify="right")
    grid.add_column("headline finding")
    grid.add_column("where to look", no_wrap=True)
    for row in rows:
        cells = row["name"], row["minutes"], row["finding"] or "–", row["where"]
        grid.add_row(*map(escape, cells))
    out = io.StringIO()
    width = width or shutil.get_terminal_size((110, 24)).columns
    Console(file=out, width=width, color_system=None, highlight=False).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class Progress:
    """Says how far a notebook is: one line rewritten on a terminal, few in a log."""

    def __init__(self, name: str, alone: bool = True) -> None:
        # Several notebooks at a time cannot share one line.
        self.name, self.terminal = name, alone and sys.stdout.isatty()
        self.start = self.last = time.monotonic()
        print(f"{name}: started", end="" if self.terminal else "\n", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self.start

    def __call__(self, done: int, total: int) -> None:
        pause = 1 if self.terminal else LOG_SECONDS
        if time.monotonic() - self.last >= pause:
            self.last = time.monotonic()
            self._say(f"{done}/{total} cells, {self.seconds() / 60:.1f} min")

    def end(self, trouble: str = "") -> None:
        self._say(trouble or f"done in {self.seconds() / 60:.1f} min")
        if self.terminal:
            print(flush=True)

    def _say(self, text):
        line = f"{self.name}: {text}"
        if self.terminal:
            print(f"\r\033[K{line}", end="", flush=True)
        else:
            print(line, flush=True)
