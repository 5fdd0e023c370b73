"""The gate's record holds for the files it lists, and for no other."""

import json

import pytest

from course_utils.publishing import gate

PASSED = {"name": "KL", "passed": True, "measured": 1e-6, "limit": 1e-4, "failure": ""}
REFUSED = PASSED | {"passed": False, "failure": "KL is 1e-3 nats per token"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text("# Card", encoding="utf-8")
    return tmp_path


def write(folder, *checks):
    return gate.write_record(folder, list(checks), {"n": 1}, {"date": "2026-11-22"})


def test_a_record_that_passed_is_read_back(folder):
    written = write(folder, PASSED)
    assert gate.require_passed(folder) == gate.read_record(folder) == written
    assert written["passed"] and written["failures"] == []
    assert sorted(written["files"]) == ["config.json", "model.safetensors"]
    assert written["files"]["model.safetensors"]["bytes"] == 7


def test_it_says_nothing_about_the_card(folder):
    write(folder, PASSED)
    (folder / "README.md").write_text("# Another card", encoding="utf-8")
    (folder / "results.json").write_text("{}", encoding="utf-8")
    gate.require_passed(folder)


def test_a_refusal_is_passed_on_in_words(folder):
    write(folder, PASSED, REFUSED)
    with pytest.raises(ValueError, match="refused .*: KL is 1e-3 nats per token"):
        gate.require_passed(folder)


def changed_weights(folder):
    (folder / "model.safetensors").write_bytes(b"weighty")  # of the same length


def changed_config(folder):
    (folder / "config.json").write_text('{"eos_token_id": 1}', encoding="utf-8")


def another_shard(folder):
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"more")


def lost_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "change", [changed_weights, changed_config, another_shard, lost_weights]
)
def test_it_does_not_hold_for_other_files(folder, change):
    write(folder, PASSED)
    change(folder)
    with pytest.raises(ValueError, match="holds for other files: .* changed since"):
        gate.require_passed(folder)


def test_an_edited_record_does_not_pass(folder):
    record = write(folder, REFUSED)
    (folder / gate.GATE_FILE).write_text(
        json.dumps(record | {"passed": True}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match="refused"):
        gate.require_passed(folder)


def test_no_record_is_no_proof(folder):
    with pytest.raises(
        FileNotFoundError, match="Run course_utils.publishing.gate.release_gate"
    ):
        gate.require_passed(folder)


def test_a_file_that_is_no_record(folder):
    (folder / gate.GATE_FILE).write_text('{"passed": true}', encoding="utf-8")
    with pytest.raises(ValueError, match="is no gate's record: it lacks"):
        gate.require_passed(folder)


def test_a_number_that_json_does_not_know_leaves_no_half_record(folder):
    with pytest.raises(ValueError, match="JSON"):
        write(folder, PASSED | {"measured": float("nan")})
    assert not list(folder.glob("*gate*"))
