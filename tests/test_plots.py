import matplotlib
import pytest

from course_utils import plots

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_stacked_bars_sum_to_the_totals_that_are_written(ax):
    bills = {
        "full": {"weights": 15.0, "gradients": 15.0, "means": 60.0},
        "QLoRA": {"weights": 5.3, "gradients": 0.2, "means": 0.3},
    }
    assert plots.stacked_gib(ax, bills, "title", limit=(21, "card")) is ax
    ends = [bar.get_x() + bar.get_width() for bar in ax.containers[-1]]
    assert ends == pytest.approx([90.0, 5.8])
    assert [text.get_text() for text in ax.texts] == ["90.0", "5.8"]
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
