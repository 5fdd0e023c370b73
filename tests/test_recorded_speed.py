"""Tables of the speed, precision and scaling records, whatever these hold."""

import matplotlib
import pytest

from course_utils import plots, recorded
from course_utils.recorded import speed

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def part(processes, seconds, scaling=None, even=None):
    found = {"processes": processes, "seconds_per_1000_pairs": seconds}
    found |= {"peak_gib": [6.0, 7.0][:processes]}
    if scaling:
        found |= {"scaling": scaling, "scaling_if_only_uneven": even}
    return found


def test_scaling_splits_what_is_lost_for_any_number_of_gpus():
    parts = {
        "8 GPUs, DDP": part(8, 10.0, 6.0, 7.0),
        "1 GPU": part(1, 60.0),
        "exchange of gradients": {"milliseconds": 1.0, "processes": 8},
        "FSDP2, 16 bit": {"error": "out of memory"},
    }
    table = speed.scaling({"parts": parts})
    assert list(table.index) == ["1 GPU", "8 GPUs, DDP"]
    assert table["lost to uneven pairs"].tolist() == [0.0, 1.0]
    assert table["lost to the rest"].tolist() == [0.0, 1.0]
    assert table["peak GiB"].tolist() == [6.0, 7.0]


def test_the_scaling_figure_draws_what_was_measured():
    _, ax = plt.subplots()
    plots.scaling(ax, [1, 2, 4], [1, 1.8, 3.5], [1, 1.9, 3.8], "a title")
    (drawn,) = [line for line in ax.get_lines() if line.get_label() == "measured"]
    assert drawn.get_ydata().tolist() == [1, 1.8, 3.5]
    plt.close()


def test_a_seed_without_an_arm_leaves_a_gap():
    full = {"seed": 0, "before": 2.0, "judged": {"a": 1.0, "b": 1.0}}
    full["own"] = {"a": 1.0, "b": 1.5}
    other = {"seed": 1, "before": 2.0, "judged": {"a": 1.0}, "own": {"a": 1.2}}
    table = speed.learned_and_seen([full, other])
    assert table["seed 0: seen"].to_dict() == {"a": "100%", "b": "50%"}
    assert table["seed 1: seen"].to_dict() == {"a": "80%", "b": "–"}


def test_ratios_are_taken_lap_by_lap():
    laps = {"fast": [1.0, 2.0, 2.0], "stock": [4.0, 4.0, 10.0]}
    rounds = {k: [{"seconds": s} for s in v] for k, v in laps.items()}
    found = speed.times_as_fast({"rounds": rounds}, "fast", "stock")
    assert found == "4.00 [2.00, 5.00]"


def test_seconds_per_token_leave_first_laps_out():
    laps = [{"seconds": s, "tokens_once": 1_000_000} for s in (9.0, 2.0, 4.0)]
    assert speed.per_million_tokens({"rounds": {"a": laps}}, "a", skip=1) == 3.0


def test_where_the_time_goes_is_per_step():
    profile = {"steps": 2, "wall_ms": 12.0, "busy_ms": 10.0, "kernels": 8}
    rounds = {"a": [{"profile": profile | {"by_kind": {"products": 10.0}}}], "b": [{}]}
    table = speed.where_time_goes({"rounds": rounds})
    assert list(table.columns) == ["a"]
    assert table["a"].tolist() == [5, 5, 1, 4]


def test_only_records_that_are_there_are_loaded():
    found = recorded.load_if_there("speed_8b", "no_such_record")
    assert list(found) == ["speed_8b"]


@pytest.mark.parametrize("low", [None, 1.0])
def test_an_interval_is_shown_where_there_is_one(low):
    value = {"median": 2.0, "low": low, "high": 3.0}
    assert speed.interval(value, 1) == ("2.0" if low is None else "2.0 [1.0, 3.0]")
