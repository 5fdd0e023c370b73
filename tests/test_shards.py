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
    for error in (FileNotFoundError, ValueError):
        with pytest.raises(error, match="holds neither model.safetensors nor"):
            shards.weight_files(tmp_path)
    shards.write_checkpoint(tmp_path, SHAPES, torch.bfloat16, values().get, 40)
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    kept = last.read_bytes()
    last.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {last.name}"):
        shards.weight_files(tmp_path)
    save_file({"z": torch.zeros(1)}, last)
    with pytest.raises(ValueError, match="differ on .*z"):
        shards.weight_files(tmp_path)
    last.write_bytes(kept[:-1])
    with pytest.raises(ValueError, match=f"{last.name} is no complete safetensors"):
        shards.weight_files(tmp_path)
    last.write_bytes(kept)
    assert len(shards.weight_files(tmp_path)) == 4


@pytest.mark.promise("weights that are pickled", "they are refused and never loaded")
def test_pickled_weights_are_named_and_not_read(tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError, match="but pytorch_model.bin: .* can run code"
    ):
        shards.weight_files(tmp_path)


def test_tensors_are_asked_for_in_order_whatever_file_they_go_to(tmp_path):
    """A tensor larger than a file comes before smaller ones in the plan."""
    asked = []

    def make(name):
        asked.append(name)
        return values()[name]

    shards.write_checkpoint(tmp_path, SHAPES, torch.bfloat16, make, 40)
    assert asked == list(SHAPES)


# --- folders ------------------------------------------------------------------------


def made(folder, **files):
    with folders.written_whole(folder, writer="test") as partial:
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
    return folder


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with folders.written_whole(tmp_path / "new") as partial:
        (partial / "x").write_text("1", encoding="utf-8")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "x").read_text(encoding="utf-8") == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert folders.files_in(tmp_path / "new") == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_one_as_it_was(tmp_path, error):
    made(tmp_path / "old", x="old")
    with (
        pytest.raises(error),
        folders.written_whole(tmp_path / "old", writer="test") as partial,
    ):
        (partial / "x").write_text("half", encoding="utf-8")
        raise error
    assert (tmp_path / "old" / "x").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_its_own_folder_is_replaced(tmp_path):
    made(tmp_path / "old", x="old")
    (tmp_path / "old" / "__pycache__").mkdir()
    (tmp_path / "old" / "__pycache__" / "x.pyc").write_bytes(b"")
    made(tmp_path / "old", y="new")
    assert folders.files_in(tmp_path / "old") == ["y"]
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    made(tmp_path / "empty" / "deep", x="1")
    (tmp_path / "void").mkdir()
    made(tmp_path / "void", x="1")  # an empty folder is nobody's


def refused(folder, words, writer="test", inputs=(), error=FileExistsError):
    before = sorted(folder.parent.rglob("*"))
    with (
        pytest.raises(error, match=words),
        folders.written_whole(folder, writer=writer, inputs=inputs),
    ):
        raise AssertionError("it should not get here")
    assert sorted(folder.parent.rglob("*")) == before


def foreign(folder):
    folder.mkdir()
    (folder / "x").write_text("years", encoding="utf-8")


def of_another_writer(folder):
    with folders.written_whole(folder, writer="another") as partial:
        (partial / "x").write_text("1", encoding="utf-8")


def with_a_guest(folder):
    made(folder, x="1")
    (folder / "thesis.txt").write_text("years", encoding="utf-8")


def with_a_guest_below(folder):
    made(folder, x="1")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref", encoding="utf-8")


def with_a_link(folder):
    made(folder, x="1")
    (folder / "link").symlink_to(folder.parent)


def with_a_broken_marker(folder):
    made(folder, x="1")
    (folder / folders.MARKER).write_text('{"writer": "test"}', encoding="utf-8")


def a_file(folder):
    folder.write_text("years", encoding="utf-8")


@pytest.mark.parametrize(
    "make",
    [
        foreign,
        of_another_writer,
        with_a_guest,
        with_a_guest_below,
        with_a_link,
        with_a_broken_marker,
        a_file,
    ],
)
@pytest.mark.promise(
    "an output folder that another program or person has filled",
    "it is refused, and every file stays",
)
def test_what_the_writer_did_not_write_is_not_replaced(tmp_path, make):
    make(tmp_path / "out")
    refused(tmp_path / "out", "Name another folder")


def test_a_writer_that_never_replaces(tmp_path):
    made(tmp_path / "out", x="1")
    refused(tmp_path / "out", "is not part of what is to be written", writer=None)


def test_the_folder_one_works_in(tmp_path, monkeypatch):
    inner = made(tmp_path / "out", x="1") / "inner"
    inner.mkdir()
    for here in (tmp_path / "out", inner):
        monkeypatch.chdir(here)
        refused(tmp_path / "out", "the folder that this program runs in")
    monkeypatch.chdir(tmp_path / "out")
    with (
        pytest.raises(FileExistsError, match="runs in"),
        folders.written_whole(".", writer="test"),
    ):
        raise AssertionError("it should not get here")


@pytest.mark.parametrize(
    "out", ["in", "in/deep/out", ".", "in/../in", "link", "link/out", "IN/out"]
)
def test_an_input_is_never_written_over(tmp_path, monkeypatch, out):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").write_text("years", encoding="utf-8")
    (tmp_path / "link").symlink_to(tmp_path / "in", target_is_directory=True)
    if out == "IN/out" and not (tmp_path / "IN").exists():
        pytest.skip("this file system tells upper case from lower case")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ValueError, match="lie in each other"),
        folders.written_whole(out, writer="test", inputs=["in", "someone/model"]),
    ):
        raise AssertionError("it should not get here")
    assert (tmp_path / "in" / "x").read_text(encoding="utf-8") == "years"


def test_files_of_the_course_are_noted_and_others_refused(tmp_path):
    folder = made(tmp_path / "out", x="1")
    folders.require_own(folder, ["x", "not there"])
    (folder / "y").write_text("years", encoding="utf-8")
    with pytest.raises(FileExistsError, match="holds y, and this course did not"):
        folders.require_own(folder, ["x", "y"])
    folders.add_own(folder, ["y"])
    made(folder, z="2")
    assert folders.files_in(folder) == ["z"]
    folders.add_own(tmp_path, ["z"])  # without a writer no marker appears
    assert not (tmp_path / folders.MARKER).exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_file_appears_when_it_is_complete(tmp_path, error):
    path = tmp_path / "deep" / "out.json"
    for text in ("mark 1", "mark 2"):
        with folders.written_file(path, b"mark") as partial:
            partial.write_text(text, encoding="utf-8")
    with pytest.raises(error), folders.written_file(path, b"mark") as partial:
        partial.write_text("half", encoding="utf-8")
        raise error
    assert path.read_text(encoding="utf-8") == "mark 2"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("allow", [True, False])
def test_json_is_written_completely_or_not_at_all(tmp_path, allow):
    path = tmp_path / "record.json"
    path.write_text("before", encoding="utf-8")
    if allow:
        folders.write_json(path, {"é": float("nan")})
        assert path.read_bytes() == '{\n "é": NaN\n}\n'.encode()
    else:
        with pytest.raises(ValueError, match="JSON compliant"):
            folders.write_json(path, {"é": float("nan")}, allow_nan=False)
        assert path.read_text(encoding="utf-8") == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["record.json"]
