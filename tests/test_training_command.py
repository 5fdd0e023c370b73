"""The trainer as a command: one process, two with gloo, a killed one, FSDP2."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_model
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import AutoTokenizer
from trl_orpo import trl_orpo

from course_utils import lab
from course_utils.data import mixing
from course_utils.setup import profiles
from course_utils.training import __main__ as command
from course_utils.training import lost, options, preparing, reading, resilience, run
from course_utils.training.batches import EvenSteps, Shares, even_order, share

FSDP_ON_CPU = Path(__file__).parent / "helpers" / "train_fsdp_on_cpu.py"
# Rows so short that the two processes have different numbers of them.
FAST = ["--lever", "token_budget=200"]
STEPS, SAVED = 10, 2


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny random Llama and the lab's tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = AutoTokenizer.from_pretrained(lab.BASE_MODEL)
    tiny_model(len(tokenizer), hidden_size=32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file with 40 pairs of the lab."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = mixing.build().train.select_columns(list(reading.COLUMNS)).select(range(40))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def asked(pairs):
    return [
        "--profile",
        "cpu",
        "--pairs-file",
        str(pairs),
        "--batch-size",
        "8",
        "--micro-batch",
        "2",
        "--steps",
        str(STEPS),
        "--save-steps",
        str(SAVED),
        "--logging-steps",
        "1",
        "--learning-rate",
        "1e-2",
    ]


def train_here(base, *arguments):
    """The record of a run in this process."""
    parsed = options.parse(list(map(str, arguments)))
    parsed.command = "test"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_BASE_MODEL", str(base))
        return run.run(parsed, options.choose_profile(parsed).profile)


@pytest.fixture
def command_here(base, monkeypatch, capsys):
    """The command in this process: (its status, what it said on stderr)."""
    monkeypatch.setenv("COURSE_BASE_MODEL", str(base))
    monkeypatch.setattr(profiles, "stay_offline", lambda: None)  # the tests are
    monkeypatch.setattr(command.quiet, "hide_library_chatter", lambda: None)

    def call(*arguments):
        capsys.readouterr()
        status = command.main(["--profile", "cpu", *map(str, arguments)])
        return status, capsys.readouterr().err

    return call


def launch(base, config, script, *arguments):
    """Two processes on this CPU, started as the documentation says."""
    here = Path(__file__).parent
    environment = os.environ | {
        "COURSE_BASE_MODEL": str(base),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "accelerate.commands.accelerate_cli",
            "launch",
            "--config_file",
            str(options.config_path(config)),
            "--num_processes",
            "2",
            "--main_process_port",
            "0",
            *script,
            *map(str, arguments),
        ],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def finished(process):
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said[-3000:]
    return said


def losses(folder):
    log = json.loads((folder / "run.json").read_text(encoding="utf-8"))["log"]
    return [row["loss"] for row in log]


def assert_same(folder, alone):
    """A run's losses and adapter are those of the run in one process."""
    assert losses(folder) == pytest.approx(alone.losses, rel=1e-5)
    adapter = load_file(folder / "adapter_model.safetensors")
    assert adapter.keys() == alone.adapter.keys()
    for name, value in adapter.items():
        torch.testing.assert_close(value, alone.adapter[name], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(base, asked, tmp_path_factory):
    """The run in one process that the others are compared with."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    record = train_here(base, *asked, *FAST, "--output", folder)
    adapter = load_file(folder / "adapter_model.safetensors")
    return SimpleNamespace(
        folder=folder, record=record, losses=losses(folder), adapter=adapter
    )


# ---- one process ----


def test_what_a_run_leaves_behind(alone, base):
    assert len(alone.losses) == STEPS
    assert alone.losses[-1] < alone.losses[0] - 0.2  # it learns, so it can differ
    record = json.loads((alone.folder / "run.json").read_text(encoding="utf-8"))
    assert record["command"] == "test" and record["settings"]["batch_size"] == 8
    assert record["processes"] == 1 and record["by_process"][0]["tokens"] > 0
    assert all(row["seconds"] > 0 for row in record["log"])
    model = lab.load_base(base)[0]
    PeftModel.from_pretrained(model, alone.folder)
    assert AutoTokenizer.from_pretrained(alone.folder).eos_token == "<|eot_id|>"


def test_a_finished_run_is_not_overwritten(alone, base, asked):
    before = (alone.folder / "run.json").read_bytes()
    with pytest.raises(
        ValueError, match="holds a run already .*run.json.* Go on with it by --res"
    ):
        train_here(base, *asked, *FAST, "--output", alone.folder)
    with pytest.raises(ValueError, match="other settings: seed 0 -> 1. Resume"):
        train_here(
            base, *asked, *FAST, "--output", alone.folder, "--resume", "--seed", 1
        )
    assert (alone.folder / "run.json").read_bytes() == before


def test_an_adapter_is_trained_further(alone, base, asked, tmp_path):
    again = [*asked, "--steps", 1, "--adapter", alone.folder, "--save-steps", 0]
    record = train_here(base, *again, "--output", tmp_path / "further")
    assert record["log"][0]["loss"] < alone.losses[0] - 0.2


def test_pairs_come_from_the_mix_by_default(base, tmp_path):
    steps = ["--profile", "cpu", "--pairs", 9, "--save-steps", 0]
    record = train_here(base, *steps, "--output", tmp_path)
    assert record["pairs"] == 8 and record["steps"] == 1  # whole steps only


# ---- what is asked for on a resume ----


@pytest.fixture
def begun(alone, tmp_path):
    """A run that goes on from step 8 of 10."""
    folder = tmp_path / "run"
    shutil.copytree(alone.folder, folder)
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    for name in ("run.json", "adapter_model.safetensors"):
        (folder / name).unlink()
    return folder


CHANGES = {
    "--beta 0.25": "beta 0.5 -> 0.25",
    "--learning-rate 1e-3": "learning_rate 0.01 -> 0.001",
    "--seed 7": "seed 0 -> 7",
    "--batch-size 4": "batch_size 8 -> 4",
    "--micro-batch 4": "micro_batch 2 -> 4",
    "--steps 20": "steps 10 -> 20",
    "--optim sgd": "optim adamw_torch -> sgd",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.promise("--resume with other settings", "refused, naming old and new")
def test_changed_settings_are_named_and_refused(change, asked, begun, command_here):
    status, said = command_here(
        *asked, *FAST, "--output", begun, "--resume", *change.split()
    )
    assert status == 1 and CHANGES[change] in said and said.count("\n") == 1


@pytest.mark.promise("--resume with other data, base or adapter", "refused, named")
def test_changed_files_are_named_and_refused(
    asked, alone, base, begun, pairs, command_here, monkeypatch, tmp_path
):
    again = [*asked, *FAST, "--output", begun, "--resume"]
    other = tmp_path / "pairs.jsonl"
    text = pairs.read_text(encoding="utf-8").replace(" the ", " a ")
    other.write_text(text, encoding="utf-8")
    status, said = command_here(*again, "--pairs-file", other)
    assert status == 1 and re.search(r"pairs_sha256 \w+ -> \w+", said)
    status, said = command_here(*again, "--adapter", alone.folder)
    assert status == 1 and re.search(r"adapter None -> \w+", said)
    trained = shutil.copytree(base, tmp_path / base.name)
    weights = load_file(trained / "model.safetensors")
    weights["model.norm.weight"] *= 1.01
    save_file(weights, trained / "model.safetensors", {"format": "pt"})
    monkeypatch.setenv("COURSE_BASE_MODEL", str(trained))
    status, said = command_here(*again)
    assert status == 1
    assert re.search(rf"base_model {base.name} \(\w+\) -> {base.name} \(\w+\)", said)


@pytest.mark.promise("--resume with another trainer or lever", "named, and it goes on")
def test_another_trainer_or_lever_is_named(asked, alone, base, begun, capsys):
    train_here(base, *asked, "--lever", "packing=false", "--output", begun, "--resume")
    said = capsys.readouterr().out
    assert "lever packing True -> False, lever token_budget 200 -> 4096 since" in said
    assert_same(begun, alone)
    trl_orpo()
    shutil.rmtree(begun / f"checkpoint-{STEPS}")
    again = [*asked, "--trainer", "stock", "--output", begun, "--resume"]
    train_here(base, *again)
    assert "trainer fast -> stock since checkpoint-8" in capsys.readouterr().out
    assert_same(begun, alone)


@pytest.mark.promise("the output folder holds another run", "refused, with what to do")
def test_a_foreign_checkpoint_is_not_resumed(asked, alone, command_here, tmp_path):
    for names in (
        ["checkpoint-8"],
        ["adapter_model.safetensors"],
        ["run.json"],
        ["settings.json"],
    ):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name in names:
            copy = shutil.copytree if "check" in name else shutil.copy
            copy(alone.folder / name, folder / name)
        status, said = command_here(*asked, *FAST, "--output", folder)
        assert status == 1 and f"holds a run already ({names[0]})" in said
        assert "Go on with it by --resume, or name another folder" in said
        assert [path.name for path in folder.iterdir()] == names
    other = [*asked, *FAST, "--beta", "0.3", "--resume", "--output"]
    status, said = command_here(*other, tmp_path / "checkpoint-8")
    assert status == 1 and "checkpoint-8 was begun with other settings: beta" in said
    status, said = command_here(*other, tmp_path / "adapter_model.safetensors")
    assert status == 1 and "no checkpoint to go on from" in said


@pytest.mark.promise("no checkpoint is whole", "an error that names what is wrong")
def test_without_a_whole_checkpoint_nothing_is_begun(asked, begun, command_here):
    (begun / "checkpoint-8" / "optimizer.pt").write_bytes(b"")
    status, said = command_here(*asked, *FAST, "--output", begun, "--resume")
    assert status == 1 and "none is whole; checkpoint-8: optimizer.pt" in said
    (begun / "settings.json").write_text("{", encoding="utf-8")
    status, said = command_here(*asked, *FAST, "--output", begun, "--resume")
    assert status == 1 and "settings.json cannot be read as settings" in said


# ---- one line, or a traceback ----


@pytest.mark.promise("an adapter that came in broken", "refused before training")
def test_an_adapter_that_came_in_broken_is_refused(
    asked, alone, command_here, tmp_path
):
    adapter = shutil.copytree(alone.folder, tmp_path / "adapter")
    path, out = adapter / "adapter_model.safetensors", tmp_path / "out"
    again = [*asked, "--adapter", adapter, "--output", out]
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] = float("inf")
    save_file(weights, path)
    status, said = command_here(*again)
    assert status == 1 and said.count("\n") == 1
    assert "came in broken" in said and f"infinite values, in {name}" in said
    weights[name] = torch.zeros(3, 16)
    save_file(weights, path)
    status, said = command_here(*again)
    assert status == 1 and "does not fit this base model" in said
    assert said.count("\n") == 1
    path.rename(adapter / "adapter_model.bin")
    status, said = command_here(*again)
    assert status == 1 and "there is no adapter_model.safetensors" in said
    assert not out.exists()


@pytest.mark.promise("a base model with broken weights", "named before the first step")
def test_a_base_that_came_in_broken_is_named(
    asked, base, command_here, monkeypatch, tmp_path
):
    broken = shutil.copytree(base, tmp_path / "base")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    monkeypatch.setenv("COURSE_BASE_MODEL", str(broken))
    for trainer in ("fast", "plain", "stock"):
        if trainer == "stock":
            trl_orpo()
        again = [*asked, "--trainer", trainer, "--output", tmp_path / trainer]
        status, said = command_here(*again)
        assert status == 1 and said.count("\n") == 1
        assert (
            "The base model came in broken" in said and "layers.1.mlp.up_proj" in said
        )


@pytest.mark.promise("Ctrl-C", "one line that says what is kept, status 130")
def test_ctrl_c_says_what_is_kept(
    asked, base, alone, command_here, monkeypatch, tmp_path
):
    out = tmp_path / "run"
    logged = run.Progress.on_log

    def stop_at(step):
        def on_log(self, args, state, control, **rest):
            logged(self, args, state, control, **rest)
            if state.global_step == step:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(run.Progress, "on_log", on_log)

    stop_at(1)
    status, said = command_here(*asked, *FAST, "--output", out)
    assert (status, said.count("\n")) == (130, 1)
    assert said.startswith("Stopped. No checkpoint had been saved yet")
    stop_at(5)
    status, said = command_here(*asked, *FAST, "--output", out, "--resume")
    assert (status, said.count("\n")) == (130, 1)
    assert said.startswith(f"Stopped. Kept: {out / 'checkpoint-4'}. The same command")
    monkeypatch.setattr(run.Progress, "on_log", logged)
    assert command_here(*asked, *FAST, "--output", out, "--resume")[0] == 0
    assert_same(out, alone)
    assert not (out / ".lock").exists() and not (out / ".unfinished").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT to send")
def test_ctrl_c_in_an_import_ends_in_words():
    """numpy, imported by torch, makes a RecursionError of the KeyboardInterrupt."""
    script = (
        "import signal, time\n"
        "from course_utils.training import lost\n"
        "with lost.end_in_words_on_ctrl_c('Stopped.', 130):\n"
        "    try:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    except BaseException as error:\n"
        "        raise RecursionError from error\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert (ended.returncode, ended.stderr) == (130, b"Stopped.\n")


def test_a_bug_shows_its_traceback(asked, command_here, monkeypatch, tmp_path):
    def bug(job):
        torch.zeros(2).view(3)

    def other_bug(job):
        int("three")

    monkeypatch.setattr(run, "train", other_bug)
    status, said = command_here(*asked, "--output", tmp_path / "a")
    assert status == 1 and "Traceback" in said and 'int("three")' in said
    monkeypatch.setattr(run, "train", bug)
    with pytest.raises(RuntimeError, match="shape"):
        command_here(*asked, "--output", tmp_path / "b")


# ---- two runs, one folder ----


@pytest.mark.promise("two runs in one output folder", "the second is refused at once")
def test_a_second_run_in_a_folder_is_refused(asked, command_here, tmp_path):
    for more in ([], ["--resume"]):
        with resilience.locked(tmp_path / "run"):
            status, said = command_here(*asked, "--output", tmp_path / "run", *more)
            assert status == 1 and said.count("\n") == 1
            assert f"Another process (pid {os.getpid()} on " in said
    assert not (tmp_path / "run").exists()


# ---- the disk ----


@pytest.mark.promise(
    "the disk is full at the final save", "the last checkpoint has all"
)
def test_a_full_disk_at_the_end_loses_nothing(
    asked, base, alone, command_here, monkeypatch, tmp_path
):
    """The system itself refuses: no file of this process may grow beyond a limit."""
    resource = pytest.importorskip("resource", reason="the system has no such limit")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    out, save = tmp_path / "run", run.resilience.save_adapter

    def save_adapter(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            save(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    monkeypatch.setattr(run.resilience, "save_adapter", save_adapter)
    status, said = command_here(*asked, *FAST, "--output", out)
    assert status == 1 and said.count("\n") == 1
    assert "No room for the adapter" in said
    assert f"Kept: checkpoint-{STEPS}, from which --resume goes on" in said
    left = sorted(path.name for path in out.iterdir() if path.suffix != ".md")
    assert left == [f"checkpoint-{STEPS}", "checkpoint-8", "settings.json"]
    monkeypatch.setattr(run.resilience, "save_adapter", save)
    assert command_here(*asked, *FAST, "--output", out, "--resume")[0] == 0
    assert_same(out, alone)


# ---- two processes ----


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_process_ends_all_and_the_run_goes_on(alone, base, asked, tmp_path):
    """Begun with TRL's trainer, gone on with ours: losses equal one process's."""
    script = ["-m", "course_utils.training", *asked]
    process = launch(base, "ddp", [*script, "--trainer", "stock"], "--output", tmp_path)
    saved = tmp_path / f"checkpoint-{SAVED}" / "trainer_state.json"
    while not saved.exists():
        assert process.poll() is None, process.stdout.read()[-3000:]
        time.sleep(0.01)
    (second,) = (
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.environ().get("RANK") == "1"
    )
    second.send_signal(signal.SIGKILL)
    killed = time.perf_counter()
    said = process.communicate(timeout=30)[0]
    assert process.returncode != 0 and time.perf_counter() - killed < 30
    assert "process 0: ended, because another process did" in said
    assert "with --resume" in said and not (tmp_path / "run.json").exists()

    assert said.count(f"step 1/{STEPS}") == 1  # the main process speaks for all

    script += [*FAST, "--resume"]
    said = finished(launch(base, "ddp", script, "--output", tmp_path))
    assert f"resuming from {tmp_path}/checkpoint-" in said
    assert_same(tmp_path, alone)
    # What two processes saved, one process goes on with.
    for path in (tmp_path / "run.json", tmp_path / "adapter_model.safetensors"):
        path.unlink()
    for number in range(SAVED + 1, STEPS + 1):
        for path in (tmp_path / f"checkpoint-{number}").glob("trainer_state.json"):
            if number == STEPS:
                path.unlink()  # so that there is something left to train
    train_here(base, *asked, *FAST, "--output", tmp_path, "--resume")
    assert_same(tmp_path, alone)


def test_fsdp2_equals_one_process_and_its_adapter_loads_on_one(
    alone, base, asked, tmp_path
):
    script = [str(FSDP_ON_CPU), *asked, *FAST, "--save-steps", str(STEPS)]
    finished(launch(base, "fsdp", script, "--output", tmp_path))
    assert_same(tmp_path, alone)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["distributed"] == "FSDP" and len(record["by_process"]) == 2
    tokens = [process["tokens"] for process in record["by_process"]]
    assert sum(tokens) == alone.record["by_process"][0]["tokens"]
    PeftModel.from_pretrained(lab.load_base(base)[0], tmp_path)
    last = resilience.last_whole_checkpoint(tmp_path)
    assert Path(last).name == f"checkpoint-{STEPS}"


def test_a_process_that_waits_in_a_library_ends_when_told(tmp_path):
    script = (
        "import torch\n"
        "from course_utils.training import lost\n"
        "lost.end_in_words_on_sigterm('ended: go on with --resume')\n"
        "print('ready', flush=True)\n"
        "a = torch.randn(9000, 9000)\n"
        "a @ a @ a @ a\n"
        "print('done', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.terminate()
    out, said = process.communicate(timeout=5)
    assert (process.returncode, out, said) == (143, "", "ended: go on with --resume\n")


def test_only_a_broken_connection_counts_as_one():
    gloo = RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:2930")
    assert lost.is_broken_connection(gloo)
    assert lost.is_broken_connection(torch.distributed.DistBackendError("NCCL"))
    assert not lost.is_broken_connection(RuntimeError("shapes do not match"))


# ---- how processes share a step ----


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [
        (8, 8, 1, Shares(8, 1, 1)),
        (8, 8, 2, Shares(4, 1, 2)),
        (8, 2, 2, Shares(2, 2, 2)),
        (32, 8, 2, Shares(8, 2, 2)),
        (12, 4, 2, Shares(3, 2, 2)),
        (8, 8, 8, Shares(1, 1, 8)),
    ],
)
def test_a_step_has_the_same_pairs_on_any_number_of_processes(
    batch, micro, processes, expected
):
    found = share(batch, micro, processes)
    assert found == expected and found.batch == batch


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="8 pairs .* 3 processes. Set --num_processes"):
        share(8, 2, 3)
    with pytest.raises(ValueError, match="one of 1, 2, 4, 8, .* such as 9"):
        share(8, 2, 3)
    with pytest.raises(ValueError, match="--micro-batch 3 does not divide"):
        share(8, 3, 2, exactly=True)
    with pytest.raises(ValueError, match="--batch-size must be at least 1"):
        share(0, 1, 1)


def test_a_launch_that_cannot_share_ends_in_one_sentence(
    base, asked, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("COURSE_BASE_MODEL", str(base))
    monkeypatch.setattr(profiles, "stay_offline", lambda: None)  # the tests are
    monkeypatch.setenv("WORLD_SIZE", "3")
    parsed = options.parse([*asked, "--output", str(tmp_path)])
    assert command._train(parsed, "0") == 1
    said = capsys.readouterr().err
    assert said.startswith("8 pairs per step cannot be shared by 3")
    assert said.count("\n") == 1 and list(tmp_path.iterdir()) == []


# ---- the command line, the configurations ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "--output is missing"),
        ("--steps 0", "--steps: must be a whole number of at least 1, got '0'"),
        ("--steps 1e3", "--steps: must be a whole number"),
        ("--steps 99999999999999999999", "--steps: must be a whole number"),
        ("--batch-size -8", "--batch-size: must be a whole number"),
        ("--micro-batch 1.5", "--micro-batch: must be a whole number"),
        ("--pairs nan", "--pairs: must be a whole number"),
        ("--logging-steps 0", "--logging-steps: must be a whole number"),
        ("--save-steps -1", "--save-steps: must be a whole number of at least 0"),
        ("--seed -1", "--seed: must be a whole number from 0"),
        ("--seed 4294967296", "--seed: must be a whole number from 0"),
        ("--learning-rate inf", "--learning-rate: must be a finite number above 0"),
        ("--learning-rate nan", "--learning-rate: must be a finite number"),
        ("--learning-rate=-1e-5", "--learning-rate: must be a finite number"),
        ("--learning-rate 0", "--learning-rate: must be a finite number"),
        ("--learning-rate fast", "--learning-rate: must be a finite number"),
        ("--beta -1", "--beta: must be a finite number of at least 0, got '-1'"),
        ("--beta nan", "--beta: must be a finite number"),
        ("--beta 1e999", "--beta: must be a finite number"),
        ("--profile h100", "invalid choice: 'h100'"),
        ("--trainer stock --lever packing=false", "fast settings"),
    ],
)
@pytest.mark.promise(
    "a number that makes no sense: infinite, NaN, negative, 0 where it means nothing",
    "refused where it enters, in a line that names it, with status 2",
)
def test_a_command_that_makes_no_sense_ends_with_its_reason(arguments, message, capsys):
    output = ["--output", "x"] if arguments else []
    with pytest.raises(SystemExit) as error:
        options.parse([*output, *arguments.split()])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_a_beta_of_zero_is_plain_fine_tuning():
    assert options.parse(["--output", "x", "--beta", "0"]).beta == 0


@pytest.mark.parametrize(
    ("lever", "message"),
    [
        ("x=abc", "--lever x=abc: give NAME=VALUE, NAME one of shared_prefix"),
        ("packing", "--lever packing: give NAME=VALUE"),
        (
            "token_budget=abc",
            "token_budget must be a whole number or 'auto', got 'abc'",
        ),
        ("token_budget=0", "token_budget must be at least 1"),
        ("token_budget=1.5", "token_budget must be a whole number or 'auto', got 1.5"),
        (
            "token_budget=true",
            "token_budget must be a whole number or 'auto', got True",
        ),
        ("packing=1", "packing must be true or false, got 1"),
        ("head_tile=many", "head_tile must be a whole number or null"),
        ("attention=flash", "attention must be 'auto', 'varlen'"),
        ("activation_gib=-1", "activation_gib must be >= 0"),
        ("activation_gib=Infinity", "activation_gib must be >= 0"),
        ("activation_gib=NaN", "activation_gib must be >= 0"),
        ("cuda_graphs=maybe", "cuda_graphs must be true or false or 'auto'"),
        ('compile_layers=["a"]', "compile_layers must be true or false or a name"),
    ],
)
def test_a_lever_that_makes_no_sense_ends_in_one_line(
    lever, message, command_here, tmp_path
):
    status, said = command_here("--output", tmp_path / "x", "--lever", lever)
    assert status == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_levers_are_named_and_typed():
    given = [
        "--lever",
        "token_budget=512",
        "--lever",
        "packing=false",
        "--lever",
        "attention=sdpa",
    ]
    found = options.fast_config(options.parse(["--output", "x", *given]))
    assert (found.token_budget, found.packing, found.attention) == (512, False, "sdpa")
    with pytest.raises(ValueError, match="--lever speed=9: give NAME=VALUE.*packing"):
        options.fast_config(options.parse(["--output", "x", "--lever", "speed=9"]))


def test_a_file_of_pairs_that_is_none_is_refused_with_its_line(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": []}\n{"prompt"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2 is not JSON"):
        reading.read_json_lines(path)
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is not an object"):
        reading.read_json_lines(path)
    missing = ["--output", "x", "--pairs-file", str(tmp_path / "none.jsonl")]
    with pytest.raises(FileNotFoundError, match="There is no file .*none.jsonl"):
        options.choose_profile(options.parse(missing))


def test_the_path_of_a_configuration_is_printed_at_once(capsys):
    assert command.main(["--config-path", "ddp"]) == 0
    assert capsys.readouterr().out.strip() == str(options.config_path("ddp"))


def test_the_configurations_say_what_accelerate_understands():
    paths = (str(options.config_path(name)) for name in options.CONFIGS)
    ddp, fsdp = map(load_config_from_file, paths)
    assert ddp.distributed_type == "MULTI_GPU" and fsdp.distributed_type == "FSDP"
    assert fsdp.fsdp_config["fsdp_version"] == 2
    # -1: the command must name it, and does not take what another machine had.
    assert ddp.num_processes == fsdp.num_processes == -1


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        (FSDP | {"FSDP_VERSION": "1"}, ["--sixteen-bit"], "fsdp_version: 2"),
        (FSDP, [], "Add --sixteen-bit, or take the configuration ddp"),
        (FSDP, ["--sixteen-bit"], "paged_adamw_8bit .* Add --optim adamw_torch"),
        (FSDP, ["--sixteen-bit", "--optim", "adamw_torch"], "on GPUs only"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(environment, arguments, message, monkeypatch):
    if "only" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked = options.parse(["--output", "x", "--profile", "a100", *arguments])
    profile = profiles.all_profiles()["a100"]
    if asked.sixteen_bit:
        profile = profiles.replace(profile, nf4=False)
    with pytest.raises(ValueError, match=message):
        preparing.require_fsdp_to_fit(asked, profile)


def test_processes_get_equally_many_micro_batches_of_about_equal_work():
    chance = random.Random(0)
    for processes, each in ((1, 4), (2, 3), (4, 2), (4, 8), (8, 2)):
        tokens = [chance.randint(100, 900) for _ in range(processes * each)]
        order = even_order(tokens, processes)
        assert sorted(order) == list(range(len(tokens)))
        sums = [sum(tokens[n] for n in order[r::processes]) for r in range(processes)]
        as_they_come = [sum(tokens[r::processes]) for r in range(processes)]
        assert max(sums) <= max(as_they_come)
        assert max(sums) - min(sums) <= max(tokens) - min(tokens)
    assert even_order([9, 1, 8, 2], 2) == [0, 2, 1, 3]  # 9 + 1 and 8 + 2


def test_the_first_and_an_unfinished_step_stay_as_they_are():
    tokens = [9, 9, 1, 1] * 3 + [9, 1, 1]
    batches = BatchSampler(SequentialSampler(tokens), batch_size=1, drop_last=False)
    even = EvenSteps(batches, tokens, processes=2, accumulation=2)
    found = [tokens[n] for (n,) in even]
    assert found == [9, 9, 1, 1, *[9, 9, 1, 1] * 2, 9, 1, 1]
    tokens = [9, 1, 9, 1] * 3 + [9, 1, 1]
    even = EvenSteps(batches, tokens, processes=2, accumulation=2)
    found = [tokens[n] for (n,) in even]
    assert found == [9, 1, 9, 1, *[9, 9, 1, 1] * 2, 9, 1, 1]
    assert len(even) == 15 and even.sampler is batches.sampler
