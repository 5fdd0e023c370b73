"""Trainings that are killed, run out of memory, meet NaN, or fill the disk."""

import gc
import re
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import resilience_run as run
import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl_orpo import trl_orpo

from course_utils.training import resilience
from course_utils.training.fast import PackedORPOTrainer


def trained_weights(trainer):
    return {
        name: parameter.detach().clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run that nothing happened to: folder, weights at the end."""
    folder = tmp_path_factory.mktemp("unbroken")
    trainer = run.make_trainer(folder)
    with resilience.watched(trainer):
        trainer.train()
    return SimpleNamespace(folder=folder, weights=trained_weights(trainer))


@pytest.fixture
def copied(unbroken, tmp_path):
    """A copy of the unbroken run's checkpoints, to break."""
    shutil.copytree(unbroken.folder, tmp_path / "run")
    return tmp_path / "run"


class Weights(TrainerCallback):
    """Keeps the trained weights after each step."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, model=None, **_):
        self.after[state.global_step] = {
            n: p.detach().clone()
            for n, p in model.named_parameters()
            if p.requires_grad
        }


def test_watching_changes_nothing(unbroken, tmp_path):
    trainer = run.make_trainer(tmp_path)
    trainer.train()
    assert_same(trained_weights(trainer), unbroken.weights)
    names = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    with resilience.watched(trainer):
        pass
    assert names == {type(c).__name__ for c in trainer.callback_handler.callbacks}
    assert "_save_checkpoint" not in vars(trainer)


# ---- killed ----


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_run_resumes_with_nothing_lost_and_the_same_order(unbroken, tmp_path):
    script = Path(run.__file__)
    ended = subprocess.run(
        [sys.executable, script, tmp_path, "4"], cwd=script.parent, capture_output=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    last = resilience.last_whole_checkpoint(tmp_path)
    assert Path(last).name == "checkpoint-2"
    killed = run.order(tmp_path)
    assert killed[-1][0] == 3  # it died in the fourth step, half of it done
    (tmp_path / "order.jsonl").unlink()
    trainer = run.make_trainer(tmp_path)
    with resilience.watched(trainer):
        trainer.train(resume_from_checkpoint=last)
    assert_same(trained_weights(trainer), unbroken.weights)
    whole = run.order(unbroken.folder)
    assert killed == whole[: len(killed)]
    assert run.order(tmp_path) == [line for line in whole if line[0] >= 2]


# ---- which checkpoint ----


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


BROKEN = {
    "nothing written but the folder": lambda c: [p.unlink() for p in c.iterdir()],
    "the last file is missing": lambda c: (c / "trainer_state.json").unlink(),
    "the last file is cut": lambda c: cut(c / "trainer_state.json"),
    "the weights are cut": lambda c: cut(c / "adapter_model.safetensors"),
    "the weights are missing": lambda c: (c / "adapter_model.safetensors").unlink(),
    "the optimizer is cut": lambda c: cut(c / "optimizer.pt"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_checkpoint_that_is_not_whole_is_passed_over(how, copied, capsys):
    BROKEN[how](copied / "checkpoint-6")
    assert Path(get_last_checkpoint(copied)).name == "checkpoint-6"  # takes any
    assert Path(resilience.last_whole_checkpoint(copied)).name == "checkpoint-4"
    assert "checkpoint-6 is not whole" in capsys.readouterr().out


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert resilience.last_whole_checkpoint(tmp_path / "missing") is None
    (tmp_path / "checkpoint-best").mkdir()
    assert resilience.last_whole_checkpoint(tmp_path) is None


# ---- NaN ----


def with_a_full_prompt(row=9):
    rows = run.pairs()
    rows[row]["prompt"] = "What is the capital of France? " * 20
    return rows


def test_nan_stops_before_the_weights_are_touched_and_names_the_row(tmp_path):
    trainer = run.make_trainer(
        tmp_path, with_a_full_prompt(), trl_orpo().ORPOTrainer, save_strategy="no"
    )
    weights = Weights()
    trainer.add_callback(weights)
    with (
        pytest.raises(resilience.NotFinite, match=r"Row 9 has no token left") as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    step, rows = error.value.step, error.value.rows
    assert step > 1 and 9 in rows and len(rows) == 2  # the micro-batch, not the step
    assert f"Step {step}:" in str(error.value)
    now = trained_weights(trainer)
    assert all(value.isfinite().all() for value in now.values())
    assert_same(now, weights.after[step - 1])
    assert all(p.grad is None for p in trainer.model.parameters())


def test_unwatched_the_same_row_poisons_the_adapter(tmp_path):
    trainer = run.make_trainer(
        tmp_path, with_a_full_prompt(), trl_orpo().ORPOTrainer, save_strategy="no"
    )
    trainer.train()
    assert not any(v.isfinite().all() for v in trained_weights(trainer).values())


@pytest.mark.parametrize("kind", [run.ORPOTrainer, PackedORPOTrainer])
def test_an_infinite_gradient_stops_too(kind, tmp_path):
    trainer = run.make_trainer(tmp_path, kind=kind, save_strategy="no")
    weights = Weights()
    trainer.add_callback(weights)
    parameter = next(
        p for name, p in trainer.model.named_parameters() if "lora_B" in name
    )
    parameter.register_hook(
        lambda grad: grad * float("inf") if trainer.state.global_step == 2 else grad
    )
    with (
        pytest.raises(resilience.NotFinite, match="gradient is not finite") as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    assert error.value.step == 3 and len(error.value.rows) == 4  # all of the step
    assert_same(trained_weights(trainer), weights.after[2])


# ---- memory ----

FULL = (
    "CUDA out of memory. Tried to allocate 1.96 GiB. GPU 0 has a total capacity of 22"
)


def run_out_of_memory(trainer, at=2, message=FULL):
    """Let the trainer's step fail once; returns weak references to what it held."""
    inner, held, calls = trainer.training_step, [], []

    def training_step(*arguments):
        calls.append(1)
        if len(calls) == at:
            logits = torch.zeros(1000)
            held.append(weakref.ref(logits))
            raise torch.OutOfMemoryError(message)
        return inner(*arguments)

    trainer.training_step = training_step
    return held


@pytest.mark.parametrize("kind", [run.ORPOTrainer, PackedORPOTrainer])
def test_out_of_memory_names_settings_and_their_savings(kind, tmp_path):
    trainer = run.make_trainer(tmp_path, kind=kind, save_strategy="no", max_length=512)
    held = run_out_of_memory(trainer)
    with (
        pytest.raises(resilience.OutOfMemory, match=r"at least 2\.0 GiB") as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    changes = error.value.changes
    assert changes and isinstance(error.value.__cause__, torch.OutOfMemoryError)
    for change in changes[:-1]:
        assert change.saves_gib > 0 and change.what in str(error.value)
    asked = "PackedORPOTrainer" if kind is run.ORPOTrainer else "max_length=384"
    assert any(asked in change.what for change in changes)
    gc.collect()
    assert held[0]() is None  # or the next try would start with a full card
    with resilience.watched(trainer):
        trainer.train()
    assert trainer.state.global_step == run.STEPS


def test_settings_without_a_prediction_say_so(tmp_path):
    trainer = run.make_trainer(tmp_path, save_strategy="no", optim="sgd")
    run_out_of_memory(trainer)
    with (
        pytest.raises(resilience.OutOfMemory, match="no prediction.*sgd") as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    assert error.value.changes == []


# ---- disk ----


def test_a_full_disk_leaves_the_checkpoints_before_whole(unbroken, tmp_path):
    """The system itself refuses: no file of this process may grow beyond a limit."""
    resource = pytest.importorskip("resource", reason="the system has no such limit")
    trainer = run.make_trainer(tmp_path)
    size = (unbroken.folder / "checkpoint-2" / "optimizer.pt").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))

    trainer.add_callback(Fill())
    try:
        with (
            pytest.raises(resilience.DiskFull, match=r"checkpoint-4.*\d GiB") as error,
            resilience.watched(trainer),
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "half-written one was removed" in str(error.value)
    assert error.value.__cause__ is not None
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-2"]
    last = resilience.last_whole_checkpoint(tmp_path)
    again = run.make_trainer(tmp_path)
    again.train(resume_from_checkpoint=last)
    assert_same(trained_weights(again), unbroken.weights)


def test_too_little_room_is_noticed_before_anything_is_written(tmp_path, monkeypatch):
    trainer = run.make_trainer(tmp_path)
    free = SimpleNamespace(total=2**40, used=2**40, free=2**20)
    monkeypatch.setattr(resilience.checkpoints.shutil, "disk_usage", lambda _: free)
    with (
        pytest.raises(resilience.DiskFull, match="nothing was written") as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
    assert re.search(r"takes about 0\.03 GiB.* has 0\.00 GiB free", str(error.value))


def test_checkpoint_size_is_not_underestimated(unbroken, tmp_path):
    trainer = run.make_trainer(tmp_path, save_strategy="no", max_steps=1)
    trainer.train()
    files = (unbroken.folder / "checkpoint-2").iterdir()
    assert resilience.checkpoint_bytes(trainer) > sum(p.stat().st_size for p in files)


def test_another_error_while_saving_stays_what_it_is(tmp_path):
    trainer = run.make_trainer(tmp_path)

    def broken(folder):
        raise ValueError("something else")

    trainer._save_rng_state = broken
    with (
        pytest.raises(ValueError, match="something else"),
        resilience.watched(trainer),
    ):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))
