"""Figures: what is drawn is what was given, in the colours that mean it."""

from itertools import combinations

import matplotlib
import pytest
from matplotlib.colors import to_hex, to_rgb

from course_utils import plots
from course_utils.evaluation import Estimate

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def history(shift=0.0):
    return [
        {
            "step": s,
            "chosen": -0.4 + s / 100 + shift,
            "rejected": -0.5 - s / 100,
            "margin": 0.1,
            "accuracy": 0.5,
        }
        for s in (0, 5, 10)
    ]


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


REPORT = [
    {"source": "prm", "rows": 10, "kept": 10},
    {"source": "orca", "rows": 20, "kept": 8, "rule": 9, "asked in the tests": 3},
]


def test_a_waterfall_falls_from_all_rows_to_what_is_kept(ax):
    assert plots.waterfall(ax, REPORT, "t") is ax
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["rows", "rule", "asked in the tests", "kept"]
    bars = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert bars == [(0, 30), (21, 9), (18, 3), (0, 18)]
    assert [text.get_text() for text in ax.texts] == [" 30", " −9", " −3", " 18"]
    hatches = [bar.get_hatch() for bar in ax.patches]
    assert hatches[0] == hatches[3] != hatches[1] == hatches[2]


def test_the_road_to_orpo_draws_a_box_per_model_and_names_every_stage(ax):
    assert plots.road_to_orpo(ax) is ax
    assert len(ax.patches) == sum(models for _, _, models, _ in plots.ROAD) == 9
    written = {text.get_text() for text in ax.texts}
    for name, data, _, stages in plots.ROAD:
        assert {name, "\n+ ".join(data), *stages} <= written


def test_chosen_and_rejected_stand_side_by_side(ax):
    value, other = Estimate(0.7, 0.6, 0.8, 20), Estimate(0.9, 0.85, 0.95, 20)
    groups = {"prm (20)": {"chosen": value, "rejected": other}}
    assert plots.chosen_against_rejected(ax, groups, "t", "share") is ax
    interval, chosen, _, rejected = ax.get_lines()
    assert list(interval.get_xdata()) == [0.6, 0.8]
    assert (chosen.get_label(), chosen.get_color()) == ("chosen", "#0072b2")
    assert (rejected.get_label(), rejected.get_color()) == ("rejected", "#d55e00")
    assert chosen.get_marker() != rejected.get_marker()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["prm (20)"]


def test_two_histograms_count_both_sides(ax):
    values = {"chosen": [1, 1, 2], "rejected": [2, 2, 2]}
    assert plots.two_histograms(ax, values, [1, 2, 3], "t", "tokens") is ax
    highest = {}
    for patch in ax.patches:
        highest[patch.get_label()] = max(patch.get_xy()[:, 1])
    assert highest == {"chosen": 2, "rejected": 3}
    assert len({patch.get_linestyle() for patch in ax.patches}) == 2


def test_tidy_takes_the_box_away(ax):
    plots.tidy(ax, "finding", "x (s)", "y (nats)")
    assert not ax.spines["top"].get_visible() and not ax.spines["right"].get_visible()
    assert ax.spines["left"].get_visible()


def lightness(colour):
    """CIE L* of a colour: what a grey copy keeps of it, from 0 to 100."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in to_rgb(colour)
    ]
    light = sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 116 * light ** (1 / 3) - 16 if light > 0.008856 else 903.3 * light


def test_the_parts_of_a_bar_are_told_apart_in_grey():
    for (one, hatch), (other, another) in combinations(plots.PARTS, 2):
        assert hatch != another or abs(lightness(one) - lightness(other)) > 15


def test_chosen_and_rejected_are_told_apart_without_colour():
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)
    assert plots.STYLES["chosen"] != plots.STYLES["rejected"]


def test_stacked_bars_sum_to_the_totals_that_are_written(ax):
    bills = {
        "full": {"weights": 15.0, "gradients": 15.0, "means": 60.0},
        "QLoRA": {"weights": 5.3, "gradients": 0.2, "means": 0.3},
    }
    assert plots.stacked_gib(ax, bills, "title", limit=(21, "card")) is ax
    ends = [bar.get_x() + bar.get_width() for bar in ax.containers[-1]]
    assert ends == pytest.approx([90.0, 5.8])
    assert [text.get_text() for text in ax.texts] == ["90.0", "5.8"]
    looks = [
        (to_hex(c[0].get_facecolor()), c[0].get_hatch() or "") for c in ax.containers
    ]
    assert looks == list(plots.PARTS[:3])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert set(labels) == {"weights", "gradients", "means", "card"}
    assert len({bars[0].get_facecolor() for bars in ax.containers}) == 3


def test_more_parts_than_colours_are_refused(ax):
    bill = {f"part {i}": 1.0 for i in range(6)}
    with pytest.raises(ValueError, match="6 parts"):
        plots.stacked_gib(ax, {"one": bill}, "title")


def test_spread_draws_every_value_in_its_column(ax):
    groups = {"NF4": [0.09, 0.10, 0.09], "FP4": [0.12, 0.16]}
    assert plots.spread(ax, groups, {"NF4": 0.092, "FP4": 0.12}, "title", "error") is ax
    drawn = [list(line.get_ydata()) for line in ax.lines]
    assert drawn == list(groups.values())
    for column, line in enumerate(ax.lines):
        xs = line.get_xdata()
        assert len(set(xs)) == len(xs)  # equal values do not hide each other
        assert all(abs(x - column) <= 0.25 for x in xs)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["NF4", "FP4"]
