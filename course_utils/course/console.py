"""What the commands say on the terminal: progress while a notebook runs, and a table.

Knows: terminals, and logs that are none.
Does not know: notebooks.
"""

import shutil
import sys
import textwrap
import time

LOG_SECONDS = 20  # how often a log that is no terminal gets a line of progress


def table(rows, width=None):
    """The closing table, as text that fits `width` characters (the terminal's)."""
    width = width or shutil.get_terminal_size((110, 24)).columns
    head = ("notebook", "minutes", "headline finding", "where to look")
    first = max(len(head[0]), *(len(row["name"]) for row in rows))
    last = max(len(head[3]), *(len(row["where"]) for row in rows))
    middle = max(30, width - first - last - len(head[1]) - 6)
    lines = [f"{head[0]:<{first}}  {head[1]}  {head[2]:<{middle}}  {head[3]}"]
    for row in rows:
        words = textwrap.wrap(row["finding"] or "–", middle) or ["–"]
        lines.append(
            f"{row['name']:<{first}}  {row['minutes']:>{len(head[1])}}  "
            f"{words[0]:<{middle}}  {row['where']}"
        )
        indent = " " * (first + len(head[1]) + 4)
        lines += [indent + line for line in words[1:]]
    return "\n".join(lines)


class Progress:
    """Says how far a notebook is: one line rewritten on a terminal, few in a log."""

    def __init__(self, name):
        self.name, self.terminal = name, sys.stdout.isatty()
        self.start = self.last = time.monotonic()
        print(f"{name}: started", end="" if self.terminal else "\n", flush=True)

    def seconds(self):
        return time.monotonic() - self.start

    def __call__(self, done, total):
        pause = 1 if self.terminal else LOG_SECONDS
        if time.monotonic() - self.last >= pause:
            self.last = time.monotonic()
            self._say(f"{done}/{total} cells, {self.seconds() / 60:.1f} min")

    def end(self, trouble=""):
        self._say(trouble or f"done in {self.seconds() / 60:.1f} min")
        if self.terminal:
            print(flush=True)

    def _say(self, text):
        line = f"{self.name}: {text}"
        if self.terminal:
            print(f"\r\033[K{line}", end="", flush=True)
        else:
            print(line, flush=True)
