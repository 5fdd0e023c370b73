"""The precision benchmark, rehearsed on a CPU: the same code on a tiny model."""

import json

import bench_precision
import pytest
from trl_orpo import trl_orpo


def test_all_adapters_are_worth_the_same_in_float32(tmp_path, capsys):
    trl_orpo()
    file = tmp_path / "tiny.json"
    few = ["--shape", "tiny", "--pairs", "8", "--steps", "2", "--by-matrix"]
    arms = ["--arms", "TRL, bf16", "+ fused LoRA, sum by addmm_", "fast"]
    record = bench_precision.main([*few, *arms, "--json", str(file)])
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(
        json.dumps(record)
    )
    assert record["command"].startswith("python tests/benchmarks/bench_precision.py")
    reference = record["judged"][bench_precision.REFERENCE]
    assert reference < record["before"] - 1e-4  # something was learned
    assert len(record["judged"]) == len(record["own"]) == 4
    for name, losses in record["losses"].items():
        assert len(losses) == 2
        assert record["judged"][name] == pytest.approx(reference, abs=5e-5)
        assert record["own"][name] == pytest.approx(reference, abs=2e-3)
    gains = record["by_matrix"]
    assert len(gains) == 7
    assert sum(gain["float32"] for gain in gains.values()) > 1e-4
    for gain in gains.values():
        assert gain["own"] == pytest.approx(gain["float32"], abs=2e-3)
    late, _, fixed = record["arrived"].values()
    for matrix, row in fixed.items():
        assert len(row["arrived"]) == 5
        # On so few numbers chance is large, and the same for both.
        share = sum(row["arrived"]) - sum(late[matrix]["arrived"])
        assert share / 5 == pytest.approx(1, abs=0.2)
    assert "before training" in capsys.readouterr().out
