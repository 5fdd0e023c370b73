"""The speed benchmark, rehearsed on a CPU: the same code, small enough to wait for."""

import itertools
import json

import bench_orpo
import bench_parts
import pytest
from trl_orpo import trl_orpo


def test_the_benchmark_runs_from_end_to_end_and_profiles_a_step_more(tmp_path, capsys):
    trl_orpo()
    file = tmp_path / "results" / "tiny.json"
    few = ["--warmup", "1", "--steps", "1", "--laps", "2", "--pairs", "8", "--profile"]
    arms = ["--arms", "stock", "fast", "lean"]
    record = bench_orpo.main(["--shape", "tiny", *few, *arms, "--json", str(file)])
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(
        json.dumps(record)
    )
    assert record["command"].startswith(
        "python tests/benchmarks/bench_orpo.py --shape tiny"
    )
    assert {"machine", "versions", "lengths", "seed", "threads"} <= record.keys()
    for first, second in record["rounds"].values():
        # A step of 2 x 4 pairs each; the profiled one is not among them.
        assert first["pairs"] == second["pairs"] == 8
        assert min(first["seconds"], second["seconds"], first["flops"]) > 0
        assert "profile" not in second
        profile = first["profile"]
        assert 0 < profile["busy_ms"] < 1.2 * profile["wall_ms"]
        assert sum(profile["by_kind"].values()) == pytest.approx(profile["busy_ms"])
        assert profile["kernels"] > 100
        assert any("mm" in name for name in profile["longest"])
    by_arm = record["arms"]
    # The arms saw the same pairs, in the same order, and learned the same.
    for arm in ("fast", "lean"):
        assert by_arm[arm]["mean_loss"] == pytest.approx(
            by_arm["stock"]["mean_loss"], rel=1e-5
        )
        assert by_arm[arm]["seconds_per_1000_pairs"]["n"] == 2
        assert by_arm[arm]["warmup_seconds"]["n"] == 1
    assert by_arm["stock"]["times_faster_in_seconds"]["median"] == 1
    shown = capsys.readouterr().out
    assert all(arm in shown for arm in by_arm) and "s per 1,000 pairs" in shown


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>", "decoding 4 bit"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk", "attention"),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", "matrix products"),
        ("void kOptimizerStatic8bit2StateBlockwise<float>", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_poi_fused__to_copy_mul_silu_view_8", "other arithmetic"),
    ],
)
def test_kernels_are_told_apart_by_name(kernel, kind):
    assert bench_parts.kind_of_kernel(kernel) == kind


def test_every_ablation_differs_from_the_fast_arm_in_one_lever():
    shape = bench_parts.SHAPES["llama3-8b"]
    arms = bench_parts.arms(shape)
    ablations = bench_orpo.pick(["ablations"], arms)
    assert len(ablations) > 1
    assert arms[bench_parts.IN_STOCK_MEMORY] == (shape.fast, {})
    for name in ablations:
        fast_config, changes = arms[name]
        assert changes == {}
        differing = [
            lever
            for lever, value in vars(fast_config).items()
            if value != vars(shape.fast)[lever]
        ]
        # Without varlen's arguments a row cannot be recorded either.
        expected = 2 if name == "fast, FlexAttention" else 1
        assert len(differing) == expected, name


def test_the_ladder_goes_from_no_lever_to_fast_one_at_a_time():
    shape = bench_parts.SHAPES["llama3-8b"]
    steps = [*bench_parts.ladder(shape.fast).values(), shape.fast]
    for lower, upper in itertools.pairwise(steps):
        differing = [k for k, v in vars(upper).items() if vars(lower)[k] != v]
        assert len(differing) == 1
    arms = bench_parts.arms(shape)
    assert bench_orpo.pick(["stock", "ladder"], arms) == [
        "stock",
        *bench_parts.LADDER,
    ]


def test_lengths_fit_and_keep_their_medians():
    lengths = bench_parts.draw_lengths(2000, 1, 1024, seed=0)
    for prompt, *answers in lengths:
        assert 12 <= prompt <= 512
        assert all(8 <= answer <= 1024 - prompt for answer in answers)
    prompts = sorted(prompt for prompt, *_ in lengths)
    assert 100 < prompts[1000] < 140


def test_lengths_from_a_file(tmp_path):
    file = tmp_path / "lengths.json"
    file.write_text("[[3, 4, 5], [6, 7, 8]]", encoding="utf-8")
    assert bench_parts.read_lengths(file) == [(3, 4, 5), (6, 7, 8)]
    file.write_text("[[3, 4]]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lengths.json must hold a list of"):
        bench_parts.read_lengths(file)


def test_an_unknown_arm_is_refused_with_the_known_ones():
    with pytest.raises(SystemExit, match=r"no arm 'slow'; there are 'stock'.*'lean'"):
        bench_orpo.main(["--shape", "tiny", "--arms", "slow"])


def test_the_interval_of_a_median_lies_between_two_values():
    few = bench_orpo.median_with_interval([2.0, 9.0, 3.0])
    assert few == {"median": 3.0, "low": None, "high": None, "n": 3}
    # Of six values the median lies outside all of them with probability 2 / 64.
    six = bench_orpo.median_with_interval([6.0, 1.0, 5.0, 2.0, 4.0, 3.0])
    assert six == {"median": 3.5, "low": 1.0, "high": 6.0, "n": 6}
    # Of twelve the third and the tenth: P(at most two below it) = 79 / 4096 = 0.019.
    twelve = bench_orpo.median_with_interval([float(i) for i in range(12)])
    assert (twelve["low"], twelve["high"]) == (2.0, 9.0)
