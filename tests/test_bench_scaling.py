"""Parts of the scaling benchmark; the whole of it is rehearsed with --rehearse."""

import json
import sys

import bench_scaling
import pytest


def bench(folder):
    (folder / "config.json").write_text("{}", encoding="utf-8")
    options = bench_scaling.parse(
        [str(folder), "--rehearse", "--out", str(folder / "out.json")]
    )
    made = bench_scaling.Bench(options, [])
    made.folder, made.head = folder, lambda: {"command": "test"}
    return made


def test_losses_are_the_same_within_rounding_only():
    same = bench_scaling.same_losses([2.0, 1.001], [2.0, 1.0], "one GPU")
    assert same["largest_relative_difference"] == pytest.approx(1e-3)
    assert same["relative_movement"] == pytest.approx(0.5)
    with pytest.raises(bench_scaling.Failed, match="differ from one GPU"):
        bench_scaling.same_losses([2.0, 1.01], [2.0, 1.0], "one GPU")
    with pytest.raises(bench_scaling.Failed, match="differ"):
        bench_scaling.same_losses([2.0, float("nan")], [2.0, 1.0], "one GPU")
    with pytest.raises(bench_scaling.Failed, match="1 losses, one GPU has 2"):
        bench_scaling.same_losses([2.0], [2.0, 1.0], "one GPU")


def test_a_failed_part_is_recorded_and_the_next_one_runs(tmp_path, capsys):
    made = bench(tmp_path)

    def no_gpu():
        raise bench_scaling.Failed("no GPU")

    made.part("first", no_gpu)
    made.part("second", lambda: {"scaling": 1.5})
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["parts"] == {
        "first": {"error": "no GPU"},
        "second": {"scaling": 1.5},
    }
    assert "first: FAILED" in capsys.readouterr().out
    lines = bench_scaling.table(made.record).splitlines()
    assert lines[1].endswith("failed") and " 1.50" in lines[2]


def test_scaling_is_one_gpus_time_over_many_gpus_time(tmp_path):
    made = bench(tmp_path)
    one = {"losses": [1.0], "seconds_per_1000_pairs": 60.0}
    made.record["parts"]["1 GPU"] = one
    found = {
        "losses": [1.0],
        "seconds_per_1000_pairs": 40.0,
        "tokens_by_step": [[9, 30], [9, 10]],  # the first step is not timed
    }
    out = made.compared(found, "1 GPU")
    assert out["scaling"] == 1.5
    assert out["scaling_if_only_uneven"] == pytest.approx(40 / 30)
    with pytest.raises(bench_scaling.Failed, match="another, to compare with, failed"):
        made.compared(found, "another")


def test_every_process_must_have_whole_micro_batches(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    options = bench_scaling.parse([str(tmp_path), "--gpus", "8", "2"])
    assert options.gpus == [1, 2, 8]
    for wrong in (["3"], ["1"], ["0"]):
        with pytest.raises(SystemExit):
            bench_scaling.parse([str(tmp_path), "--gpus", *wrong])
        assert "each a divisor of 16" in capsys.readouterr().err


def test_a_job_that_takes_too_long_is_ended_with_what_it_said(tmp_path):
    made = bench(tmp_path)
    script = "import time; print('loading', flush=True); time.sleep(60)"
    job = made.start_job("slow", [sys.executable, "-c", script], "0", None)
    with pytest.raises(bench_scaling.Failed, match="out of time. slow said: loading"):
        job.wait(1.5)
    assert job.process.poll() is not None
    failing = made.start_job(
        "bad", [sys.executable, "-c", "raise SystemExit(3)"], "0", 1
    )
    with pytest.raises(bench_scaling.Failed, match="exit status 3"):
        failing.wait(20)


def test_a_rehearsal_never_writes_the_record(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for arguments, message in (
        ([str(tmp_path), "--rehearse"], "a rehearsal is no result"),
        (
            [str(tmp_path / "none")],
            "holds no twin: python -m course_utils.models.random_weights",
        ),
    ):
        with pytest.raises(SystemExit):
            bench_scaling.parse(arguments)
        assert message in capsys.readouterr().err


def test_adding_keeps_what_is_done_and_runs_what_failed(tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    names = ("1 GPU", "2 GPUs, DDP", bench_scaling.EXCHANGE, bench_scaling.KILLED)
    done = {name: {} for name in (*names, bench_scaling.RESUMED)}
    done[bench_scaling.ONE_16_BIT] = {"losses": [1.0]}
    failed = {bench_scaling.FSDP: {"error": "out of time"}}
    out.write_text(
        json.dumps({"fast_config": [], "parts": done | failed}), encoding="utf-8"
    )
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    arguments = [str(tmp_path), "--rehearse", "--add", "--out", str(out)]
    made = bench_scaling.Bench(bench_scaling.parse(arguments), arguments)
    made.folder, made.head, made.pairs = tmp_path, lambda: {}, tmp_path / "pairs"
    started = []
    monkeypatch.setattr(made, "train", lambda name, *_, **__: started.append(name) or 1)
    monkeypatch.setattr(made, "result", lambda job: {"losses": [1.001]})
    monkeypatch.setattr(made, "loaded", lambda step: {"losses": [1.0]})
    made.run_parts()
    assert started == ["fsdp"]
    parts = json.loads(out.read_text(encoding="utf-8"))["parts"]
    assert parts[bench_scaling.FSDP]["compared"] == bench_scaling.ONE_16_BIT
    assert parts[bench_scaling.LOADED] == {"losses": [1.0]}
