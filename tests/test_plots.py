"""Figures: what is drawn is what was given, in the colours that mean it."""

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from course_utils import plots
from course_utils.evaluation import Estimate


@pytest.fixture
def ax():
    return Figure().subplots()


def history(shift=0.0):
    return [
        {"step": s, "chosen": -0.4 + s / 100 + shift, "rejected": -0.5 - s / 100,
         "margin": 0.1, "accuracy": 0.5}
        for s in (0, 5, 10)
    ]  # fmt: skip


def lines(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_curves_are_the_means_over_seeds_with_a_band(ax):
    histories = [history(), history(0.2)]
    assert plots.preference_curves(ax, histories, "ORPO separates") is ax
    chosen, rejected = lines(ax)["chosen"], lines(ax)["rejected"]
    assert list(chosen.get_xdata()) == [0, 5, 10]
    assert list(chosen.get_ydata()) == pytest.approx([-0.3, -0.25, -0.2])
    assert (chosen.get_color(), chosen.get_linestyle()) == ("#0072b2", "-")
    assert (rejected.get_color(), rejected.get_linestyle()) == ("#d55e00", "--")
    bands = [band.get_paths()[0].vertices for band in ax.collections]
    assert len(bands) == 2
    assert (bands[0][:, 1].min(), bands[0][:, 1].max()) == pytest.approx((-0.4, -0.1))
    assert ax.get_title() == "ORPO separates"
    assert "nats" in ax.get_ylabel() and ax.get_xlabel() == "optimizer step"


def test_one_seed_has_no_band(ax):
    plots.preference_curves(ax, [history()], "one seed")
    assert len(ax.collections) == 0 and len(ax.get_lines()) == 2


def test_seeds_of_unlike_lengths_are_refused(ax):
    with pytest.raises(ValueError):
        plots.preference_curves(ax, [history(), history()[:2]], "x")


def test_estimates_are_points_with_their_intervals(ax):
    values = [Estimate(0.5, 0.4, 0.6, 20), Estimate(0.9, 0.8, 0.95, 20)]
    colours = {"SFT": plots.COLOURS["SFT"]}
    out = plots.estimates(ax, ["SFT", "ORPO"], values, "t", "share good", colours)
    assert out is ax
    drawn = [list(line.get_xdata()) for line in ax.get_lines()]
    assert drawn == [[0.4, 0.6], [0.5], [0.8, 0.95], [0.9]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["SFT", "ORPO"]
    assert to_hex(ax.get_lines()[0].get_color()) == plots.COLOURS["SFT"]
    assert ax.yaxis_inverted()  # the first name on top
    assert ax.get_xlabel() == "share good"


def test_tidy_takes_the_box_away(ax):
    plots.tidy(ax, "finding", "x (s)", "y (nats)")
    assert not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()
    assert ax.spines["left"].get_visible()


def test_colours_differ_also_in_lightness_or_style():
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert plots.STYLES["chosen"] != plots.STYLES["rejected"]


def test_importing_plots_leaves_the_backend_alone():
    assert "plots" not in matplotlib.get_backend()
