"""The stand-in for the hub, proved with the hub's own clients."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from hub import TOKEN

ROWS = [{"prompt": f"{i} + 1?", "chosen": str(i + 1)} for i in range(500)]
PARQUET = "data/train-00000-of-00001.parquet"
# Loads data sets; an error becomes its type and all messages of its chain.
LOAD = """
import json
from datasets import load_dataset
for repo, revision in ASKED:
    try:
        rows = load_dataset(repo, split="train", revision=revision)
        print(json.dumps([rows.num_rows, rows.column_names]))
    except Exception as error:
        chain = [error]
        while cause := chain[-1].__cause__ or chain[-1].__context__:
            chain.append(cause)
        print(json.dumps([type(error).__name__, " ".join(map(str, chain))]))
"""


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


def load(hub, *asked, **options):
    done = hub.run(f"ASKED = {asked!r}\n{LOAD}", **options)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_is_loaded_at_a_revision_and_then_from_the_cache(hub, parquet):
    name = "owner/pairs"
    first = hub.add(name, {"README.md": "---\nlicense: mit\n---\n", PARQUET: parquet})
    lines = "".join(json.dumps(row | {"new": 1}) + "\n" for row in ROWS[:7])
    hub.add(name, {"train.jsonl": lines}, tag="v2")
    old, new = load(hub, (name, first), (name, "v2"))
    assert old == [500, ["prompt", "chosen"]]
    assert new == [7, ["prompt", "chosen", "new"]]
    assert load(hub, (name, first)) == [old]
    assert len(hub.seen(kind="blob")) == 1
    # The storage behind signed addresses is another host: no token goes there.
    assert hub.tokens_seen() == {TOKEN}
    assert {request.token for request in hub.seen(server="storage")} == {None}


def test_each_fault_in_the_clients_own_words_and_then_none(hub, parquet):
    cases = [
        ("gated", {"status": 401}, "DatasetNotFoundError", "must be authenticated"),
        ("gated", {"status": 403}, "DatasetNotFoundError", "ask for access"),
        ("missing", {}, "DatasetNotFoundError", "doesn't exist on the Hub"),
        ("busy", {}, "FileNotFoundError", "429"),
        ("busy", {"retry_after": 1, "on": ["blob"]}, "HfHubHTTPError", "429"),
        ("broken", {}, "FileNotFoundError", "500"),
        ("dropped", {}, "RemoteProtocolError", "disconnected"),
        ("cut", {"path": "*.parquet"}, "RemoteProtocolError", "closed connection"),
        ("short", {"path": "*.parquet"}, "OSError", "Consistency check failed"),
        ("cut", {"path": "*.parquet", "times": 1}, 500, "prompt"),
    ]
    names = [f"owner/fault{i}" for i in range(len(cases))]
    for name, (fault, options, *_) in zip(names, cases, strict=True):
        hub.add(name, {PARQUET: parquet})
        hub.fail(name, fault, **options)
    asked = [(name, None) for name in names]
    for got, (fault, _, error, said) in zip(load(hub, *asked), cases, strict=True):
        assert got[0] == error and said in got[1], (fault, got)
    assert len(hub.seen(kind="blob", repo=names[-1])) == 2
    hub.fix()
    assert [rows for rows, _ in load(hub, *asked)] == [500] * len(cases)


def test_a_large_file_that_was_cut_off_goes_on_where_the_client_stopped(hub):
    content = bytes(range(256)) * 100_000
    hub.add("owner/large", {"large.bin": content}, repo_type="model")
    hub.fail("owner/large", "cut", times=1)
    done = hub.run(
        "from huggingface_hub import hf_hub_download\n"
        "print(hf_hub_download('owner/large', 'large.bin'))"
    )
    with open(done.stdout.strip(), "rb") as file:
        assert file.read() == content
    ranges = [request.range for request in hub.seen(kind="blob")]
    assert ranges == [None, f"bytes={10 * 2**20}-"]  # it writes 10 MiB at a time


def test_an_unreachable_hub(hub):
    hub.stop()
    assert load(hub, ("owner/pairs", None))[0][0] == "ConnectionError"


UPLOAD = """
import json, sys
from huggingface_hub import HfApi, snapshot_download
def upload(token):
    api = HfApi(token=token)
    api.create_repo("someone/model", private=True)
    api.upload_folder(repo_id="someone/model", folder_path=FOLDER)
    return snapshot_download("someone/model", local_dir=COPY)
for token in TOKENS:
    try:
        print(json.dumps(upload(token)))
    except Exception as error:
        print(json.dumps(str(error)))
"""


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }


def test_uploads(hub, tmp_path):
    folder, copy = tmp_path / "model", tmp_path / "copy"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8000)
    (folder / "sub" / "other.safetensors").write_bytes(b"other" * 1000)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n# A model: ü\n", encoding="utf-8"
    )
    hub.tokens["hf_reader"] = "read"
    hub.fail("someone/model", "cut upload", times=1)
    tokens = ["hf_wrong", "hf_reader", TOKEN, TOKEN]
    setting = f"FOLDER, COPY, TOKENS = {str(folder)!r}, {str(copy)!r}, {tokens!r}"
    done = hub.run(f"{setting}\n{UPLOAD}")
    assert done.returncode == 0, done.stderr
    wrong, reader, right, again = map(json.loads, done.stdout.splitlines())
    assert "401" in wrong and "403" in reader and "409" in again
    assert right == str(copy)
    assert contents(copy) == contents(folder) == hub.files("someone/model")
    assert hub.repos["model", "someone/model"].private
    puts = [request.status for request in hub.seen(kind="put")]
    assert sorted(puts, key=str) == [200, 200, None]  # one was cut, and came again
    ours = [request.kind for request in hub.seen(server="hub", token=TOKEN)]
    order = ["create", "yaml", "preupload", "batch", "verify", "commit", "info"]
    assert list(dict.fromkeys(ours))[:7] == order
