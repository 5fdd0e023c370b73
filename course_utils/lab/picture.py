"""The README's picture, drawn from the recorded findings.

python -m course_utils.lab.picture notebooks/sft_and_orpo.png
"""

import sys

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from course_utils import plots
from course_utils.lab.findings import over_seeds, recorded
from course_utils.setup.printing import print_safely

METHODS = ("base", "SFT", "SFT, then DPO LR 0.0001", "ORPO β 0.5", "ORPO β 1")


def draw() -> Figure:
    """The figure: log-probs under SFT and ORPO, and who writes good answers."""
    fig, axes = plt.subplots(1, 3, figsize=(11, 3), dpi=90)
    for ax, name, title in (
        (axes[0], "SFT", "SFT lifts the rejected answers too"),
        (axes[1], "ORPO β 0.5", "ORPO holds them back"),
    ):
        curves = [run["curve"] for run in recorded(name)]
        plots.preference_curves(ax, curves, title)
        ax.set_ylim(-0.39, -0.14)
    good = [
        over_seeds(recorded(name), lambda run: run["sampled"]["good_bits"])[0]
        for name in METHODS
    ]
    names = [name.split(" LR")[0] for name in METHODS]
    plots.estimates(
        axes[2], names, good, "and writes better answers", "share good, sampled"
    )
    axes[2].set_xlim(0, 1)
    fig.tight_layout()
    return fig


if __name__ == "__main__":
    print_safely()
    draw().savefig(sys.argv[1])
