"""Memory predicted and advised, against a real GPU's allocator.

On two layers of Llama 3 8B's exact width: all tensors have their real size.
`measure_memory.py` measures the whole model.
"""

from dataclasses import replace

import measure_memory
import pytest
import torch
from transformers import AutoTokenizer

from course_utils.models import memory, random_weights
from course_utils.training import resilience

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a CUDA GPU with bf16",
)
NAMES = [
    "stock 2x4",
    "stock 1x8",
    "stock 2x4, no checkpointing",
    "stock 2x4, no padding",
    "fast 2x4, rows of 4,096",
    "fast 2x4, no checkpointing",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "two_layers"
    random_weights.write(path, "llama3-8b-2-layers")
    return path


@pytest.fixture
def loaded(folder):
    measure_memory.forget_embeddings()
    return (
        measure_memory.load(folder, "nf4", "bfloat16"),
        AutoTokenizer.from_pretrained(folder),
    )


@pytest.mark.parametrize("name", NAMES)
def test_prediction_is_within_a_tenth_of_the_peak(name, loaded):
    settings = measure_memory.SETTINGS[name]
    row = measure_memory.one(*loaded, name, settings, rehearse=False)
    assert row["predicted_gib"] == pytest.approx(row["measured_gib"], rel=0.10)


def test_out_of_memory_for_real_and_the_first_change_is_enough(
    loaded, folder, tmp_path
):
    settings = replace(measure_memory.SETTINGS["stock 8x1"])
    needs = memory.predict(loaded[0].config, settings).peak_gib
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    if needs > total:
        pytest.skip(f"the card has {total:.0f} GiB, the test uses {needs:.0f}")
    torch.cuda.set_per_process_memory_fraction((needs - 4) / total)
    try:
        trainer = measure_memory.make_trainer(*loaded, settings, tmp_path)
        with (
            pytest.raises(resilience.OutOfMemory, match="What to change") as error,
            resilience.watched(trainer),
        ):
            trainer.train()
        enough = [change for change in error.value.changes if change.enough]
        assert enough, str(error.value)
        del trainer, loaded
        torch.cuda.empty_cache()
        model = measure_memory.load(folder, "nf4", "bfloat16")
        again = measure_memory.make_trainer(
            model,
            AutoTokenizer.from_pretrained(folder),
            replace(settings, **enough[0].values),
            tmp_path,
        )
        with resilience.watched(again):
            again.train()
        assert again.state.global_step == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
