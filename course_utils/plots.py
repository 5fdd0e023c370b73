"""The course's figures: colours that mean one thing, axes that carry units.

Knows: matplotlib. Does not know: where numbers come from. Every function takes an `ax`,
draws on it and returns it; the notebook shows it.
"""

# Okabe-Ito colours, distinct for colour-blind readers; line styles repeat the meaning.
COLOURS = {
    "chosen": "#0072b2",
    "rejected": "#d55e00",
    "base": "#7f7f7f",
    "SFT": "#009e73",
    "DPO": "#cc79a7",
    "ORPO": "#000000",
}
STYLES = {"chosen": "-", "rejected": "--"}


def tidy(ax, title, xlabel, ylabel):
    """Title that states the finding, axis labels with units, no box."""
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def preference_curves(ax, histories, title):
    """Mean log-probs of chosen and rejected answers over steps.

    histories: list of `PreferenceCurve.history`, one a seed; several are drawn as their
    mean with a band from the lowest to the highest seed.
    """
    steps = [point["step"] for point in histories[0]]
    for side in ("chosen", "rejected"):
        values = [[point[side] for point in history] for history in histories]
        mean = [sum(column) / len(column) for column in zip(*values, strict=True)]
        ax.plot(steps, mean, STYLES[side], color=COLOURS[side], label=side)
        if len(histories) > 1:
            low, high = [[f(c) for c in zip(*values, strict=True)] for f in (min, max)]
            ax.fill_between(steps, low, high, color=COLOURS[side], alpha=0.2, lw=0)
    ax.legend(frameon=False, fontsize=8)
    return tidy(ax, title, "optimizer step", "mean log-prob per token (nats)")


def estimates(ax, names, values, title, xlabel, colours=None):
    """Horizontal points with 95 % intervals. values: list of `evaluation.Estimate`."""
    for row, (name, value) in enumerate(zip(names, values, strict=True)):
        colour = (colours or {}).get(name, "#000000")
        ax.plot([value.low, value.high], [row, row], color=colour, lw=2)
        ax.plot(value.value, row, "o", color=colour, ms=5)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    return tidy(ax, title, xlabel, "")


class LiveCurves:
    """A figure that redraws itself while a training runs, in any Jupyter front end.

    Give it to `PreferenceCurve(..., on_point=LiveCurves(title))`.
    """

    def __init__(self, title):
        self.title, self.handle = title, None

    def __call__(self, history):
        import matplotlib.pyplot as plt
        from IPython.display import display

        fig, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=80)
        preference_curves(axes[0], [history], self.title)
        steps = [point["step"] for point in history]
        axes[1].plot(steps, [point["accuracy"] for point in history], color="black")
        axes[1].axhline(0.5, color=COLOURS["base"], lw=1, ls=":")
        axes[1].set_ylim(0, 1)
        tidy(axes[1], "share of pairs preferred", "optimizer step", "accuracy")
        fig.tight_layout()
        plt.close(fig)  # or Jupyter would show it a second time at the end of the cell
        if self.handle is None:
            self.handle = display(fig, display_id=True)
        else:
            self.handle.update(fig)
