"""The pairs of notebook 08: a part of the lab's mix, in the published mix's columns.

python -m course_utils.lab.pairs_file notebooks/pairs.jsonl
"""

import json
import sys
from pathlib import Path

from course_utils.data import mixing

PAIRS = 600


def lines() -> list[str]:
    """One JSON object per pair: source, chosen and rejected as entire conversations."""
    rows = []
    for pair in mixing.build().train.select(range(PAIRS)):
        row = {"source": pair["source"]}
        for side in ("chosen", "rejected"):
            row[side] = [*pair["prompt"], *pair[side]]
        rows.append(json.dumps(row, ensure_ascii=False))
    return rows


if __name__ == "__main__":
    text = "\n".join(lines()) + "\n"
    Path(sys.argv[1]).write_text(text, encoding="utf-8", newline="\n")
