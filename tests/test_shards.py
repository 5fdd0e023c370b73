"""Streamed checkpoints read like any other, and folders are written whole or not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from course_utils.models import shards
from course_utils.setup import folders

SHAPES = {"a": (3, 4), "b": (5,), "c": (2, 2, 2), "d": (7, 3)}


def values():
    torch.manual_seed(0)
    return {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}


@pytest.mark.parametrize("max_bytes", [10**6, 40])
@pytest.mark.parametrize("pieces", [1, 3])
def test_the_library_reads_what_was_streamed(tmp_path, max_bytes, pieces):
    want = values()

    def make(name):
        return want[name] if pieces == 1 else want[name].flatten().chunk(pieces)

    total = shards.write_checkpoint(tmp_path, SHAPES, torch.bfloat16, make, max_bytes)
    assert total == 2 * sum(t.numel() for t in want.values())
    got = {}
    for file in tmp_path.glob("*.safetensors"):
        got |= load_file(file)
    assert all(torch.equal(got[name], want[name]) for name in want)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    if max_bytes > 100:
        assert files == ["model.safetensors"]
    else:
        assert files[0] == "model-00001-of-00003.safetensors" and len(files) == 3
        assert json.loads((tmp_path / shards.INDEX).read_text(encoding="utf-8"))[
            "metadata"
        ] == {"total_size": total}
    reader = shards.Reader(tmp_path)
    assert sorted(reader) == sorted(want)
    assert all(torch.equal(reader.read(name), want[name]) for name in want)
    assert reader.shapes()["c"] == ((2, 2, 2), "BF16")


def test_a_tensor_of_another_dtype_or_size_is_refused(tmp_path):
    with (
        pytest.raises(TypeError, match="holds torch.bfloat16: got torch.float32"),
        shards.ShardWriter(tmp_path / "x", {"a": (2,)}, torch.bfloat16) as shard,
    ):
        shard.write(torch.zeros(2))
    with (
        pytest.raises(ValueError, match="2 bytes too few or many"),
        shards.ShardWriter(tmp_path / "x", {"a": (2,)}, torch.bfloat16) as shard,
    ):
        shard.write(torch.zeros(1, dtype=torch.bfloat16))


def test_missing_and_differing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor"):
        shards.weight_files(tmp_path)
    shards.write_checkpoint(tmp_path, SHAPES, torch.bfloat16, values().get, 40)
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {last.name}"):
        shards.weight_files(tmp_path)
    save_file({"z": torch.zeros(1)}, last)
    with pytest.raises(ValueError, match="differ on d, z"):
        shards.weight_files(tmp_path)
    last.write_bytes(kept)
    assert len(shards.weight_files(tmp_path)) == 4


# --- folders ------------------------------------------------------------------------


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with folders.written_whole(tmp_path / "new") as partial:
        (partial / "x").write_text("1", encoding="utf-8")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "x").read_text(encoding="utf-8") == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one_as_it_was(tmp_path, error):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_text("old", encoding="utf-8")
    with (
        pytest.raises(error),
        folders.written_whole(tmp_path / "old", replace=True) as partial,
    ):
        (partial / "x").write_text("half", encoding="utf-8")
        raise error
    assert (tmp_path / "old" / "x").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_replacing_is_asked_for(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_text("old", encoding="utf-8")
    with pytest.raises(FileExistsError), folders.written_whole(tmp_path / "old"):
        pass
    with folders.written_whole(tmp_path / "old", replace=True) as partial:
        (partial / "y").write_text("new", encoding="utf-8")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["y"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
