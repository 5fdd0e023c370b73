"""The course's figures: colours that mean one thing, axes that carry units.

Every function takes an `ax`, draws on it and returns it; the notebook shows it.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

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
# Colour and hatch of a bar's parts, told apart in grey: greys for what is frozen, blues
# for what training adds.
PARTS = (
    ("#333333", ""),
    ("#7f7f7f", ""),
    ("#0072b2", "///"),
    ("#56b4e9", "..."),
    ("#bfe3f7", ""),
)


def tidy(ax: Axes, title: str, xlabel: str, ylabel: str) -> Axes:
    """Title that states the finding, axis labels with units, no box."""
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


# What each method needs: (its name, data, models in memory while it trains, stages
# after pretraining). RLHF holds policy, reference, reward and value model.
ROAD = (
    ("pretraining", ("text",), 1, ("predict\nthe next token",)),
    ("SFT", ("good answers",), 1, ("imitate",)),
    ("RLHF", ("good answers", "pairs"), 4, ("SFT", "reward model", "reinforcement")),
    ("DPO", ("good answers", "pairs"), 2, ("SFT", "compare with\na frozen copy")),
    ("ORPO", ("pairs",), 1, ("imitate and\ncompare",)),
)


def road_to_orpo(ax: Axes) -> Axes:
    """One column per method: its data, its models in memory, its training stages."""
    rows = {"data": 2.7, "models in memory": 1.9, "training stages": 0.7}
    for column, (name, data, models, stages) in enumerate(ROAD):
        colour = COLOURS.get(name, COLOURS["base"])
        ax.text(column, 3.3, name, ha="center", weight="bold", color=colour)
        ax.text(column, rows["data"], "\n+ ".join(data), ha="center", va="center")
        for at in range(models):
            left = column - 0.11 * models + 0.22 * at
            box = (left + 0.01, rows["models in memory"] - 0.17)
            ax.add_patch(Rectangle(box, 0.2, 0.34, color=colour))
        for number, stage in enumerate(stages):
            y = rows["training stages"] + 0.48 * ((len(stages) - 1) / 2 - number)
            box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": colour}
            ax.text(column, y, stage, ha="center", va="center", fontsize=8, bbox=box)
    ax.set_yticks(list(rows.values()), list(rows))
    ax.set_xticks([])
    ax.set_xlim(-0.6, len(ROAD) - 0.4)
    ax.set_ylim(-0.1, 3.6)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return tidy(ax, "ORPO needs one model and one stage", "", "")


def preference_curves(ax: Axes, histories: list[list[dict]], title: str) -> Axes:
    """Mean log-probs of chosen and rejected answers over steps.

    histories: list of `PreferenceCurve.history`, one per seed; several are drawn as
    their mean with a band from the lowest to the highest seed.
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


def estimates(
    ax: Axes,
    names: Sequence[str],
    values: Sequence,
    title: str,
    xlabel: str,
    colours: dict[str, str] | None = None,
) -> Axes:
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

    def __init__(self, title: str) -> None:
        self.title, self.handle = title, None

    def __call__(self, history: list[dict]) -> None:
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


def stacked_gib(
    ax: Axes,
    bills: dict[str, dict[str, float]],
    title: str,
    limit: tuple[float, str] | None = None,
) -> Axes:
    """Horizontal stacked bars of memory, each with its total.

    bills: {name: {part: GiB}}, all with the same parts, at most five. limit: (GiB,
    label) of a card. Raises: ValueError for more parts.
    """
    parts = list(next(iter(bills.values())))
    if len(parts) > len(PARTS):
        raise ValueError(f"{len(parts)} parts, and colours for {len(PARTS)} only.")
    left = [0.0] * len(bills)
    for part, (colour, hatch) in zip(parts, PARTS, strict=False):
        widths = [bill[part] for bill in bills.values()]
        look = {"color": colour, "hatch": hatch, "edgecolor": "white", "lw": 0.5}
        ax.barh(range(len(bills)), widths, left=left, label=part, **look)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for row, total in enumerate(left):
        ax.text(total + 0.5, row, f"{total:.1f}", va="center", fontsize=9, bbox=white)
    if limit:
        ax.axvline(limit[0], color="black", ls="--", lw=1, label=limit[1], zorder=0)
    ax.set_yticks(range(len(bills)), list(bills))
    ax.invert_yaxis()
    ax.legend(frameon=False, fontsize=8)
    return tidy(ax, title, "GiB", "")


def spread(
    ax: Axes,
    groups: dict[str, Sequence[float]],
    marks: dict[str, float],
    title: str,
    ylabel: str,
) -> Axes:
    """One column of dots a group, and a bar where a reference value lies.

    groups: {name: list of values}. marks: {name: value}, drawn as short lines.
    """
    for column, (name, values) in enumerate(groups.items()):
        # Dots side by side in the order given, so that each stays visible.
        step = 0.5 / max(1, len(values) - 1)
        xs = [column - 0.25 + step * i for i in range(len(values))]
        ax.plot(xs, values, "o", color=COLOURS["base"], ms=3, mew=0)
        ax.hlines(marks[name], column - 0.35, column + 0.35, color="black", lw=2)
    ax.set_xticks(range(len(groups)), list(groups))
    return tidy(ax, title, "", ylabel)


def waterfall(ax: Axes, report: list[dict], title: str) -> Axes:
    """From all rows down to the pairs that are kept, one bar a reason.

    report: `Mix.report`. Numbers beside the bars are rows.
    """
    names = dict.fromkeys(key for row in report for key in row if key != "source")
    total = {name: sum(row.get(name, 0) for row in report) for name in names}
    reasons = {k: v for k, v in total.items() if k not in ("rows", "kept")}
    steps = {"rows": total["rows"], **reasons, "kept": total["kept"]}
    remaining = total["rows"]
    for at, (name, count) in enumerate(steps.items()):
        falls = name in reasons
        remaining -= count * falls
        colour = "#c8c8c8" if falls else "#333333"
        ax.barh(
            at,
            count,
            left=remaining * falls,
            color=colour,
            hatch="///" * falls,
            edgecolor="#333333",
            lw=0.5,
        )
        ax.text(
            remaining * falls + count,
            at,
            f" {'−' * falls}{count:,}",
            va="center",
            fontsize=8,
        )
    ax.set_yticks(range(len(steps)), list(steps))
    ax.set_xlim(0, total["rows"] * 1.12)
    ax.invert_yaxis()
    return tidy(ax, title, "rows", "")


def chosen_against_rejected(
    ax: Axes, groups: dict[str, dict], title: str, xlabel: str
) -> Axes:
    """Two points with 95 % intervals a row: chosen and rejected.

    groups: {name: {"chosen": Estimate, "rejected": Estimate}}.
    """
    for side, shift, marker in (("chosen", -0.12, "o"), ("rejected", 0.12, "s")):
        for row, values in enumerate(groups.values()):
            value, at = values[side], row + shift
            ax.plot([value.low, value.high], [at, at], color=COLOURS[side], lw=2)
            label = side if row == 0 else None
            ax.plot(value.value, at, marker, color=COLOURS[side], ms=5, label=label)
    ax.set_yticks(range(len(groups)), list(groups))
    ax.invert_yaxis()
    ax.legend(frameon=False, fontsize=8)
    return tidy(ax, title, xlabel, "")


def two_histograms(
    ax: Axes,
    values: dict[str, Sequence[float]],
    bins: int | Sequence[float],
    title: str,
    xlabel: str,
) -> Axes:
    """Outlines of how chosen and rejected are spread. values: {side: numbers}."""
    for side in ("chosen", "rejected"):
        ax.hist(
            values[side],
            bins,
            histtype="step",
            color=COLOURS[side],
            linestyle=STYLES[side],
            label=side,
        )
    ax.legend(frameon=False, fontsize=8)
    return tidy(ax, title, xlabel, "pairs")


def scaling(
    ax: Axes,
    processes: Sequence[int],
    measured: Sequence[float],
    only_uneven: Sequence[float],
    title: str,
) -> Axes:
    """Times as fast as one GPU, over GPUs, between the ideal line and two losses.

    only_uneven: what would be reached if uneven pairs alone cost something. Where
    `measured` lies above it, tokens are not quite time, and no second loss is drawn.
    """
    ax.plot(processes, processes, color=COLOURS["base"], ls=":", label="ideal")
    grey, orange = ({"color": c, "linewidth": 0} for c in ("#cccccc", "#d55e00"))
    ax.fill_between(processes, only_uneven, processes, **grey, label="uneven pairs")
    low = [min(pair) for pair in zip(measured, only_uneven, strict=True)]
    ax.fill_between(processes, low, only_uneven, **orange, label="the rest")
    ax.plot(processes, measured, "o-", color="#0072b2", label="measured")
    ax.set_xticks(processes)
    ax.legend(frameon=False, fontsize=8)
    return tidy(ax, title, "GPUs", "times as fast as one")
