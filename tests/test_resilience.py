"""Trainings that are killed, run out of memory, meet NaN, or fill the disk."""

import functools
import gc
import json
import os
import pickle
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
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl_orpo import trl_orpo

from course_utils.training import resilience
from course_utils.training.fast import PackedORPOTrainer
from course_utils.training.resilience import checkpoints, saving


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
@pytest.mark.promise("kill -9", "--resume ends with the same weights, bit for bit")
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


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def change_weight(checkpoint, value):
    path = checkpoint / "adapter_model.safetensors"
    weights = load_file(path)
    next(w for name, w in weights.items() if "lora_B" in name)[0, 0] = value
    save_file(weights, path, {"format": "pt"})


def change_moment(checkpoint, value):
    path = checkpoint / "optimizer.pt"
    content = torch.load(path, weights_only=True)
    content["state"][0]["exp_avg"][0, 0] = value
    torch.save(content, path)


def change_json(path, **changes):
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


PARTS = [
    "adapter_model.safetensors",
    "adapter_config.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "complete.json",
]
BROKEN = {
    "nothing written but the folder": (
        lambda c: [p.unlink() for p in c.iterdir()],
        "trainer_state.json is missing",
    ),
    **{
        f"{name} is missing": (lambda c, n=name: (c / n).unlink(), f"{name} is missing")
        for name in PARTS
    },
    **{
        f"{name} is cut": (lambda c, n=name: cut(c / n), f"{name} cannot be read")
        for name in PARTS
        if name != "training_args.bin"
    },
    **{
        f"{name} is empty": (lambda c, n=name: (c / n).write_bytes(b""), name)
        for name in PARTS
    },
    **{
        f"{name} is zeroed": (lambda c, n=name: zeroed(c / n), f"{name} cannot be read")
        for name in PARTS
    },
    **{
        f"{name} is of another kind": (
            lambda c, n=name: torch.save({"step": 5}, c / n),
            f"{name} is not what the Trainer writes",
        )
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    },
    "a weight is NaN": (
        lambda c: change_weight(c, float("nan")),
        "adapter_model.safetensors holds NaN or infinite values, in base_model",
    ),
    "a weight is infinite": (
        lambda c: change_weight(c, float("-inf")),
        "adapter_model.safetensors holds NaN or infinite values, in base_model",
    ),
    "a moment is NaN": (
        lambda c: change_moment(c, float("nan")),
        "optimizer.pt holds NaN or infinite values, in state 0 exp_avg",
    ),
    "there are no weights": (
        lambda c: save_file({}, c / "adapter_model.safetensors"),
        "adapter_model.safetensors holds no weights",
    ),
    "the state is of another step": (
        lambda c: change_json(c / "trainer_state.json", global_step=3),
        "trainer_state.json is of step 3",
    ),
    "it is no adapter": (
        lambda c: (c / "adapter_config.json").write_text("{}", encoding="utf-8"),
        "adapter_config.json has no peft_type",
    ),
    "the configuration is a list": (
        lambda c: (c / "adapter_config.json").write_text("[]", encoding="utf-8"),
        "adapter_config.json is not an object",
    ),
    "the record is another's": (
        lambda c: (c / "complete.json").write_text("{}", encoding="utf-8"),
        "complete.json does not list the files",
    ),
    "of two processes one is missing": (
        lambda c: change_json(c / "complete.json", processes=2),
        "rng_state_0.pth is missing",
    ),
}
# What only the record can tell, since the content is plausible.
CHANGED = {
    "a weight is another": (
        lambda c: change_weight(c, 0.25),
        "adapter_model.safetensors is not as it was written",
    ),
    "a moment is another": (
        lambda c: change_moment(c, 0.25),
        "optimizer.pt is not as it was written",
    ),
    "the rank is another": (
        lambda c: change_json(c / "adapter_config.json", lora_alpha=99),
        "adapter_config.json is not as it was written",
    ),
    "the tokenizer is gone": (
        lambda c: (c / "tokenizer.json").unlink(),
        "tokenizer.json is missing",
    ),
    "weights were added that Trainer would read": (
        lambda c: torch.save({}, c / "pytorch_model.bin"),
        "pytorch_model.bin was added later",
    ),
}


@pytest.mark.parametrize("how", [*BROKEN, *CHANGED])
@pytest.mark.promise(
    "a checkpoint lacks a part, or one is cut off, empty, zeroed, NaN or changed",
    "the file is named and the checkpoint before it is taken",
)
def test_a_checkpoint_that_is_not_whole_is_passed_over(how, copied, capsys):
    breaking, reason = (BROKEN | CHANGED)[how]
    breaking(copied / "checkpoint-6")
    assert Path(get_last_checkpoint(copied)).name == "checkpoint-6"  # takes any
    assert Path(resilience.last_whole_checkpoint(copied)).name == "checkpoint-4"
    said = capsys.readouterr().out
    assert f"checkpoint-6 is not whole ({reason}" in said and said.count("\n") == 1


class Evil:
    """Unpickling this runs a shell command."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content))


WRITERS = {
    "torch.save": torch.save,
    "torch's older format": functools.partial(
        torch.save, _use_new_zipfile_serialization=False
    ),
    "pickle": pickled,
}


@pytest.mark.parametrize("recorded", [False, True], ids=["", "with a new record"])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    "name", [n for n in PARTS if n.endswith((".pt", "pth", "bin"))]
)
@pytest.mark.promise(
    "a checkpoint's optimizer, scheduler, RNG state or arguments would run code",
    "nothing runs, the file is named and the checkpoint before it is taken",
)
def test_a_pickle_that_would_run_code_is_refused(
    name, writer, recorded, copied, tmp_path, capsys
):
    last = copied / "checkpoint-6"
    WRITERS[writer]({"state": {}, "x": Evil(tmp_path / "ran")}, last / name)
    if recorded:  # whoever writes the file can write its hash as well
        (last / "complete.json").unlink()
        checkpoints.write_record(last, 1, None)
    assert Path(resilience.last_whole_checkpoint(copied)).name == "checkpoint-4"
    said = capsys.readouterr().out
    assert f"checkpoint-6 is not whole ({name} " in said and said.count("\n") == 1
    if writer == "torch.save":
        assert "could run code" in said or "asks to run code: posix.system" in said
    assert not (tmp_path / "ran").exists()


def test_plain_pickles_of_the_trainer_pass_with_a_new_record(copied):
    """The test above refuses for what is in the file, not for the record."""
    last = copied / "checkpoint-6"
    (last / "complete.json").unlink()
    checkpoints.write_record(last, 1, None)
    assert Path(resilience.last_whole_checkpoint(copied)) == last


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert resilience.last_whole_checkpoint(tmp_path / "missing") is None
    (tmp_path / "checkpoint-best").mkdir()
    assert resilience.last_whole_checkpoint(tmp_path) is None


def test_a_broken_checkpoint_of_the_same_step_is_replaced(copied, unbroken):
    (copied / "checkpoint-6" / "optimizer.pt").unlink()
    trainer = run.make_trainer(copied, save_total_limit=2)
    with resilience.watched(trainer, {"seed": 0}):
        trainer.train(resume_from_checkpoint=resilience.last_whole_checkpoint(copied))
    last = resilience.last_whole_checkpoint(copied)
    assert Path(last).name == "checkpoint-6"
    assert resilience.read_record(last)["settings"] == {"seed": 0}
    assert_same(trained_weights(trainer), unbroken.weights)
    names = sorted(path.name for path in copied.iterdir())
    assert names == ["checkpoint-4", "checkpoint-6", "order.jsonl"]


# ---- two processes, one folder ----

HOLDING = """
import sys, time
from course_utils.training import resilience
with resilience.locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_lock_ends_with_its_owner_however_that_dies(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, tmp_path],
        env=os.environ | {"WANDB_MODE": ""},  # transformers prints that it is offline
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout.readline() == "locked\n"
    with (
        pytest.raises(resilience.FolderInUse, match=rf"pid {process.pid} on "),
        resilience.locked(tmp_path),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with resilience.locked(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_leaves_what_was_there(tmp_path):
    with resilience.locked(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "kept").touch()
    assert [p.name for p in (tmp_path / "new" / "run").iterdir()] == ["kept"]
    with pytest.raises(KeyError), resilience.locked(tmp_path / "other"):
        raise KeyError
    assert not (tmp_path / "other").exists()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError), resilience.locked(tmp_path / "file"):
        pass


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


class Spoil(TrainerCallback):
    """Makes a weight, or a moment of the optimizer, NaN after a step."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step_end(self, args, state, control, model=None, optimizer=None, **_):
        if state.global_step == self.step:
            trained = [p for p in model.parameters() if p.requires_grad]
            moments = optimizer.state[trained[0]]
            tensor = trained[0].data if self.what == "weight" else moments["exp_avg"]
            tensor[0, 0] = float("nan")


@pytest.mark.parametrize("kind", [run.ORPOTrainer, PackedORPOTrainer])
@pytest.mark.parametrize("what", ["weight", "moment"])
@pytest.mark.promise(
    "a step leaves NaN or infinite weights or optimizer state",
    "it stops, and no checkpoint has them",
)
def test_what_is_not_finite_never_reaches_a_checkpoint(kind, what, tmp_path, capsys):
    trainer = run.make_trainer(tmp_path, kind=kind)
    trainer.add_callback(Spoil(4, what))
    with (
        pytest.raises(resilience.NotFinite, match="nothing was saved") as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    assert "Step 4 left" in str(error.value) and "rate, 0.01," in str(error.value)
    assert "Kept: checkpoint-2" in str(error.value)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    with pytest.raises(resilience.NotFinite, match="nothing was saved"):
        resilience.save_adapter(trainer, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    assert not (tmp_path / ".unfinished").exists()


def test_weights_that_broke_a_step_before_are_the_cause(tmp_path):
    trainer = run.make_trainer(tmp_path, save_strategy="no")
    trainer.add_callback(Spoil(3, "weight"))
    with (
        pytest.raises(resilience.NotFinite, match="Step 4: the loss") as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    assert "weights themselves are not finite since step 3" in str(error.value)
    assert "learning rate, 0.01, is too high" in str(error.value)


@pytest.mark.parametrize("kind", [run.ORPOTrainer, PackedORPOTrainer])
@pytest.mark.parametrize(
    ("part", "whose"),
    [
        ("lora_A", "adapter"),
        ("lora_B", "adapter"),
        ("embed_tokens", "base model"),
        ("model.norm", "base model"),
    ],
)
@pytest.mark.promise(
    "a weight of base or adapter is NaN before the first step", "it is named"
)
def test_a_weight_that_came_in_broken_is_named(part, whose, kind, tmp_path):
    trainer = run.make_trainer(tmp_path, kind=kind, save_strategy="no")
    named = trainer.model.named_parameters()
    name, weight = next((n, p) for n, p in named if part in n)
    weight.data.view(-1)[-1] = float("inf")
    with (
        pytest.raises(
            resilience.NotFinite, match=f"The {whose} came in broken"
        ) as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    assert name in str(error.value) and error.value.step == 1


def trainer_with_a_sure_answer(side, kind, tmp_path):
    """A model that always says the end token, and a row whose answer is just that."""
    rows = run.pairs(4)
    rows[2][side] = "<|end_of_text|>"
    trainer = run.make_trainer(
        tmp_path, rows, kind=kind, save_strategy="no", learning_rate=1e-9
    )
    base = trainer.model.get_base_model()
    with torch.no_grad():
        base.model.embed_tokens.weight[:, 0] = 100
        base.lm_head.weight.zero_()
        base.lm_head.weight[trainer.processing_class.eos_token_id, 0] = 100
    return trainer


@pytest.mark.parametrize("kind", [run.ORPOTrainer, PackedORPOTrainer])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.promise("a sure answer, with log-prob 0", "it counts, without a gradient")
def test_a_sure_answer_does_not_stop_our_trainers(side, kind, tmp_path):
    trainer = trainer_with_a_sure_answer(side, kind, tmp_path)
    with resilience.watched(trainer):
        trainer.train()
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.promise("a sure answer under TRL's trainer", "row and side are named")
def test_a_sure_answer_is_the_cause_of_trl_s_nan(side, tmp_path):
    trainer = trainer_with_a_sure_answer(side, trl_orpo().ORPOTrainer, tmp_path)
    with (
        pytest.raises(
            resilience.NotFinite, match="The model is sure of an answer"
        ) as error,
        resilience.watched(trainer),
    ):
        trainer.train()
    assert f"in row 2 ({side}): log-odds are not defined" in str(error.value)
    assert "row 1" not in str(error.value)


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


@pytest.mark.promise("the disk is full at a checkpoint", "those before it are whole")
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
    assert "Kept: checkpoint-2, from which --resume goes on" in str(error.value)
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
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: free)
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
