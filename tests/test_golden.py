"""Both trainers against the numbers that TRL 1.16 gave; see golden/make_golden.py."""

import json
from pathlib import Path

import golden_cases
import pytest
from fast_harness import WITH_PADDING, run_step, text_rows

from course_utils.training import ORPOConfig, ORPOTrainer, PackedORPOTrainer

FOLDER = Path(__file__).parent / "golden"
OURS = [ORPOTrainer, PackedORPOTrainer]


def golden(name):
    found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert found.pop("made with")["trl"].startswith("1.16.")
    return found


def assert_same_projections(found, expected, tolerance):
    """Norms, and products with a fixed sequence, of the same tensors.

    Each may be off by a share of its norm; a tensor that hardly moved, of all.
    """
    assert found.keys() == expected.keys()
    whole = sum(norm**2 for norm, _ in expected.values()) ** 0.5
    for name, (norm, product) in expected.items():
        allowed = tolerance * max(norm, 1e-3 * whole)
        assert found[name][0] == pytest.approx(norm, rel=0, abs=allowed), name
        # The sequence's own norm is 0.29 for each number; so is the product's scale.
        assert found[name][1] == pytest.approx(product, rel=0, abs=10 * allowed), name


def test_tokens_and_labels_of_awkward_rows(tmp_path):
    expected = golden("tokens")
    found = golden_cases.tokens(ORPOTrainer, ORPOConfig, tmp_path)
    assert found.keys() == expected.keys()
    for case, row in expected.items():
        assert found[case] == row, case


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("kind", golden_cases.KINDS)
def test_losses_metrics_and_gradients(tmp_path, cls, kind):
    expected = golden("steps")[kind]
    trainer = golden_cases.make(kind, cls, ORPOConfig, tmp_path, text_rows(4))
    loss, metrics, gradients = run_step(trainer, expected["groups"])
    assert loss == pytest.approx(expected["loss"], rel=1e-6)
    for name in expected["metrics"].keys() - WITH_PADDING:
        assert metrics[name] == pytest.approx(
            expected["metrics"][name], rel=1e-6, abs=5e-6
        ), name
    found = golden_cases.projections(gradients)
    assert_same_projections(found, expected["gradients"], 2e-6)


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("model", ["lab", "LoRA"])
def test_fifty_steps(tmp_path, cls, model):
    expected = golden("curve")[model]
    arguments = cls, ORPOConfig, tmp_path, expected["rows"]
    settings = golden_cases.CURVE_SETTINGS
    trainer = (
        golden_cases.make_lab(*arguments, **settings)
        if model == "lab"
        else golden_cases.make("LoRA", *arguments, **settings)
    )
    found = golden_cases.curve(trainer)
    for name, values in expected["logs"].items():
        assert found["logs"][name] == pytest.approx(values, rel=1e-4, abs=1e-4), name
    assert_same_projections(found["update"], expected["update"], 1e-3)


def test_the_record_is_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.json")) < 200_000
