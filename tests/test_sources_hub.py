"""Downloading the real sources, against a stand-in of the hub with their schemas."""

import json
import pickle

import pytest
from datasets import Dataset
from hub import Hub

from course_utils.data import sources, world
from course_utils.data.world import tasks

CARDS = sources.cards()
# Prints for every card either the number of its pairs or what the reader is told.
LOAD = """
import json
from dataclasses import replace
import datasets
from course_utils.data import sources
datasets.disable_progress_bars()
card = sources.cards()["toxic"]
for name, revision in json.loads(ASKED):
    mine = replace(card, repo="owner/" + name, revision=revision)
    try:
        pairs, _ = sources.to_pairs(mine, sources.load_rows(mine, "hub"))
        print(json.dumps([name, len(pairs)]))
    except (sources.SourceUnavailable, ValueError) as error:
        print(json.dumps([name, str(error)]))
"""
FAULTS = {
    "unsigned": ("gated", {"status": 401}),
    "unlisted": ("gated", {"status": 403}),
    "busy": ("busy", {"retry_after": 7}),
    "crowded": ("busy", {}),
    "broken": ("broken", {}),
    "dropped": ("dropped", {}),
    "cut": ("cut", {"path": "train.parquet"}),
    "short": ("short", {"path": "train.parquet"}),
    "hiccup": ("cut", {"path": "train.parquet", "times": 1}),
}
TOLD = {
    "unsigned": [
        "owner/unsigned: it is gated",
        "accept its conditions",
        "hf auth login",
    ],
    "unlisted": [
        "owner/unlisted: it is gated",
        "accept its conditions",
        "hf auth login",
    ],
    "gone": ["owner/gone: the hub shows no such data set: it was renamed", "card"],
    "busy": ["429, too many requests. Wait 7 seconds", "run this cell again"],
    "crowded": ["429, too many requests. Wait some minutes", "run this cell again"],
    "broken": ["the hub answers 500", "run this cell again later"],
    "dropped": ["cannot be reached", "COURSE_PROFILE=cpu", "COURSE_DATA"],
    "cut": ["owner/cut: a file of it was cut off on its way", "run this cell again"],
    "short": [
        "owner/short: a file of it was cut off on its way",
        "run this cell again",
    ],
    "old": ["owner/old: it has no revision 'v9'", "card"],
    "renamed": ["toxic.md: the rows have no column chosen", "preferred", "card"],
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "train.parquet"
    Dataset.from_list(world.rows("toxic", 40)).to_parquet(path)
    return path


def load(hub, names):
    asked = json.dumps([(name, "v9" if name == "old" else "main") for name in names])
    done = hub.run(f"ASKED = {asked!r}\n{LOAD}")
    assert done.returncode == 0, done.stderr[-1500:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_every_way_to_fail_says_what_to_do_and_leaves_the_cache_usable(rows, tmp_path):
    renamed = tmp_path / "renamed.parquet"
    Dataset.from_parquet(str(rows)).rename_column("chosen", "preferred").to_parquet(
        renamed
    )
    names = [*FAULTS, "old", "renamed", "gone"]
    with Hub() as hub:
        for name in names[:-1]:
            file = renamed if name == "renamed" else rows
            hub.add(f"owner/{name}", {"README.md": "# Pairs\n", "train.parquet": file})
        for name, (fault, options) in FAULTS.items():
            hub.fail(f"owner/{name}", fault, **options)
        first = load(hub, names)
        assert first.pop("hiccup") == 40  # one cut is fixed by the client itself
        assert set(first) == set(TOLD)
        for name, words in TOLD.items():
            for word in words:
                assert word in str(first[name]), (name, first[name])

        hub.fix()
        again = [name for name in FAULTS if name != "hiccup"]
        assert load(hub, again) == dict.fromkeys(again, 40)

        # Out of reach, what was had stays usable; what was not says so.
        hub.add("owner/late", {"README.md": "# Pairs\n", "train.parquet": rows})
        hub.stop()
        offline = load(hub, ["cut", "busy", "late"])
        assert (offline["cut"], offline["busy"]) == (40, 40)
        assert "the hub cannot be reached" in offline["late"]


@pytest.mark.promise(
    "a data set of the hub that needs a script or pickles", "refused; nothing runs"
)
def test_a_data_set_that_would_run_code_is_refused(tmp_path):
    mark = tmp_path / "ran"
    script = f"open({str(mark)!r}, 'w').close()\n"

    class Evil:
        def __reduce__(self):
            return open, (str(mark), "w")

    pickled = tmp_path / "train.pkl"
    pickled.write_bytes(pickle.dumps(Evil()))
    with Hub() as hub:
        hub.add("owner/script", {"README.md": "# Pairs\n", "script.py": script})
        hub.add("owner/pickled", {"README.md": "# Pairs\n", "train.pkl": pickled})
        told = load(hub, ["script", "pickled"])
    assert not mark.exists()
    for name, message in told.items():
        assert f"owner/{name}: loading it would run code" in str(message), told


QUESTIONS = {
    "openai/gsm8k": ("main", "test", "question"),
    "truthfulqa/truthful_qa": ("multiple_choice", "validation", "question"),
    "HuggingFaceH4/MATH-500": ("default", "test", "problem"),
}
BUILD = """
import json
import datasets
from course_utils.data import mixing
datasets.disable_progress_bars()
mix = mixing.build(
    "hub", version=VERSION, evaluation_pairs=100,
    benchmarks=dict.fromkeys(("GSM8K", "TruthfulQA", "MATH-500")),
)
print(json.dumps([mix.report, mix.notes, len(mix.train)]))
"""


@pytest.mark.parametrize("version", ["v1.0", "v1.2"])
def test_the_whole_mix_comes_from_the_hub_as_in_colab(tmp_path, version):
    """The real repositories' names, schemas and quirks, with the small world's rows."""
    cards = sources.cards(version=version)
    first = world.rows("prm", 200)[5]["prompt"]
    with Hub() as hub:
        for name, card in cards.items():
            path = tmp_path / f"{name}.parquet"
            Dataset.from_list(world.rows(name, 90, version=version)).to_parquet(path)
            hub.add(card.repo, {"README.md": "# x\n", "data/train-0.parquet": path})
        for repo, (config, split, column) in QUESTIONS.items():
            front = {
                "configs": [
                    {
                        "config_name": config,
                        "data_files": [{"split": split, "path": "q.jsonl"}],
                    }
                ]
            }
            asked = first if column == "problem" else f"Nothing like it, {repo}?"
            page = f"---\n{json.dumps(front)}\n---\n"
            hub.add(repo, {"README.md": page, "q.jsonl": json.dumps({column: asked})})
        done = hub.run(f"VERSION = {version!r}\n{BUILD}")
    assert done.returncode == 0, done.stderr[-2000:]
    report, notes, train = json.loads(done.stdout.splitlines()[-1])
    assert {row["source"]: row["rows"] for row in report} == dict.fromkeys(cards, 90)
    assert sum(row["kept"] for row in report) == train + 100
    dropped = {row["source"]: row.get("asked by MATH-500", 0) for row in report}
    assert dropped.pop("prm") == 1 and set(dropped.values()) == {0}
    # Ninety rows are not what the cards say, and the reader is told.
    assert len([note for note in notes if "changed upstream" in note]) == len(cards)
    assert tasks.parse([tasks.user(first)])
