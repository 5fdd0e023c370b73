"""Files of one's own: what stands in them is what is trained on, or is refused."""

import json
import os

import pandas as pd
import pytest
from datasets import Dataset

from course_utils.data import sources
from course_utils.data.sources.files import read_file
from course_utils.training import run

CARD = (
    "---\nlicense: mit\ncourse:\n  source: {source}\n"
    "  prompt: {{user: q}}\n  chosen: a\n  rejected: b\n{more}---\n# Mine\n"
)
ROW = {"q": "Why?", "a": "So.", "b": "No."}


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def make_card(folder, source="mine", more="", name="mine.md"):
    path = folder / name
    path.write_text(CARD.format(source=source, more=more), encoding="utf-8")
    return sources.read_card(path)


def pairs_of(folder, name, content, more=""):
    """(answers that stay, dropped) of a file `name` with this content."""
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    (folder / name).write_bytes(data)
    card = make_card(folder, more=more)
    pairs, dropped = sources.to_pairs(card, sources.load_rows(card, folder))
    return [pair["chosen"][0]["content"] for pair in pairs], dropped


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


SEPARATORS = ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1e"]


# --- JSON Lines ---------------------------------------------------------------------


@pytest.mark.promise(
    "JSON Lines with U+2028, U+2029, U+0085, a byte order mark or blank lines",
    "read as they are: only a line feed ends a line",
)
@pytest.mark.parametrize("mark", SEPARATORS)
def test_only_a_line_feed_ends_a_line(tmp_path, mark):
    row = ROW | {"a": f"one{mark}two"}
    path = tmp_path / "mine.jsonl"
    path.write_bytes(lines(row, ROW).encode("utf-8"))
    assert sources.read_json_lines(path) == [row, ROW]
    assert run.read_json_lines(str(path)) == [row, ROW]
    assert pairs_of(tmp_path, "mine.jsonl", lines(row, ROW))[0] == [row["a"], "So."]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + lines(ROW, ROW),
        lines(ROW, ROW) + "\n \n\t\r\n",
        "\n" + lines(ROW) + "\n\n" + lines(ROW),
        lines(ROW, ROW).replace("\n", "\r\n"),
        lines(ROW, ROW).rstrip("\n"),
    ],
    ids=["mark", "blank at the end", "blank between", "CRLF", "no last line feed"],
)
def test_marks_and_blank_lines_are_no_rows(tmp_path, content):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content.encode("utf-8"))
    assert sources.read_json_lines(path) == [ROW, ROW]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no row"),
        (b"\xef\xbb\xbf\n \n", "holds no row"),
        (b'{"q": "a"}\n\n{"q": \n', "line 3 is not JSON"),
        (b'{"q": "a"}\n[1]\n', "line 2 is not an object"),
        (b'{"q": "a"}\nnull\n', "line 2 is not an object"),
        (b'{"q": "a"} {"q": "b"}\n', "line 1 is not JSON"),
        (b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        (b'{"q": ' + b"9" * 5_000 + b"}", "line 1 is not JSON"),
        ('{"q": "é"}'.encode("cp1252"), "is not UTF-8"),
        ('{"q": "é"}'.encode("utf-16"), "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_json_lines_is_named_with_its_line(tmp_path, content, words):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    for read in (sources.read_json_lines, read_file):
        with pytest.raises(ValueError, match=f"mine.jsonl.* {words}"):
            read(path)


def test_a_broken_list_of_rows_is_named(tmp_path):
    with pytest.raises(ValueError, match="mine.json cannot be read as json.*line 2"):
        pairs_of(tmp_path, "mine.json", '[{"q": "a"},\n{"q": }]')


@pytest.mark.parametrize(
    "content", [json.dumps([ROW, ROW], indent=1), "\ufeff" + lines(ROW, ROW)]
)
def test_json_is_a_list_of_rows_or_lines(tmp_path, content):
    assert pairs_of(tmp_path, "mine.json", content)[0] == ["So.", "So."]


# --- what looks like something else -------------------------------------------------

WORDS = ["None", "N/A", "NA", "null", "nan", "NaN", "NULL", "-", "#N/A", "True", "no"]
WORDS += ["2020-01-01", "2020-01-01T10:00:00Z", "12:30", "007", "1e5", "+4", "inf"]


@pytest.mark.promise(
    "answers such as None, N/A, null, 2020-01-01 or 007",
    "text as it stands; only an empty cell is missing",
)
@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_an_answer_is_the_text_that_stands_there(tmp_path, suffix, only):
    """Also where a column holds nothing but numbers or dates, which readers guess."""
    for words in [[word] for word in WORDS] if only else [WORDS]:
        rows = [ROW | {"a": word, "b": f"not {word}"} for word in words]
        frame = pd.DataFrame(rows)
        path = tmp_path / f"mine.{suffix}"
        if suffix == "csv":
            frame.to_csv(path, index=False)
        elif suffix == "parquet":
            frame.to_parquet(path)
        else:
            text = lines(*rows) if suffix == "jsonl" else json.dumps(rows)
            path.write_text(text, encoding="utf-8")
        card = make_card(tmp_path)
        pairs, dropped = sources.to_pairs(card, sources.load_rows(card, path))
        assert [pair["chosen"][0]["content"] for pair in pairs] == words
        assert not dropped


def test_an_empty_cell_is_missing_and_a_comma_in_quotes_is_none(tmp_path):
    text = 'q,a,b\nfirst,"one, two\nthree",b\nsecond,,b\nthird,"",b\nfourth, ,b\n\n\n'
    answers, dropped = pairs_of(tmp_path, "mine.csv", "\ufeff" + text)
    assert answers == ["one, two\nthree"]
    assert dropped == {"an answer is missing": 3}
    assert dropped.rows == {"an answer is missing": [1, 2, 3]}


def test_a_csv_s_other_columns_are_numbers_where_all_cells_are(tmp_path):
    text = "q,a,b,stars,ok,note,empty\n"
    text += "1,2,3,5,True,nan,\n4,5,6,4.5,false,7,\n7,8,9,,true,x,\n"
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    rows = read_file(tmp_path / "mine.csv", ("q", "a", "b"))
    assert rows.to_list()[0] == {
        "q": "1",
        "a": "2",
        "b": "3",
        "stars": 5.0,
        "ok": True,
        "note": "nan",
        "empty": None,
    }
    more = "  keep: stars >= 4.5 and ok\n"
    answers, dropped = pairs_of(tmp_path, "mine.csv", text, more)
    assert answers == ["2"]
    assert dropped.rows == {"rule": [1], "a rating is missing": [2]}


def test_a_column_that_the_card_calls_text_is_text(tmp_path):
    names = ("q", "a", "b", "code")
    columns = "".join(f"  - {{name: {name}, dtype: string}}\n" for name in names)
    text = CARD.format(source="mine", more="  keep: code != '007'\n").replace(
        "license", f"dataset_info:\n  features:\n{columns}license"
    )
    (tmp_path / "mine.md").write_text(text, encoding="utf-8")
    card = sources.read_card(tmp_path / "mine.md")
    content = "q,a,b,code\n1,2,3,007\n1,2,3,7\n"
    (tmp_path / "mine.csv").write_text(content, encoding="utf-8")
    pairs, dropped = sources.to_pairs(card, sources.load_rows(card, tmp_path))
    assert list(pairs["row"]) == [1] and dropped.rows == {"rule": [0]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read as csv"),
        ("q,a,b\n", "holds no row"),
        ("q,a,b\n1,2\n", "cannot be read as csv"),
        ("q,a,b\n1,2,3\n1,2,3,4\n", "cannot be read as csv.*Row #3"),
        ("q,a,a\n1,2,3\n", "two columns of one name"),
        ("q,a,b\né,2,3\n".encode("cp1252"), "cannot be read as csv"),
        ("q;a;b\n1;2;3\n", "no column q, a, b; they have q;a;b"),
    ],
)
def test_a_broken_csv_is_named(tmp_path, content, words):
    with pytest.raises(ValueError, match=f"(?s)mine.*{words}"):
        pairs_of(tmp_path, "mine.csv", content)


# --- rows that are not as they should be --------------------------------------------


@pytest.mark.promise(
    "numbers, nulls and half characters among the answers",
    "numbers become text; the rest is dropped by reason or refused with the row",
)
def test_numbers_among_answers_are_text(tmp_path):
    rows = [ROW, ROW | {"a": 5}, ROW | {"a": 0.5}, ROW | {"a": True}]
    rows += [ROW | {"a": None}, ROW | {"a": float("nan")}, ROW | {"a": 2**70}]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    content = content.replace("}\n", f', "id": {2**70}}}\n')
    answers, dropped = pairs_of(tmp_path, "mine.jsonl", content)
    assert answers == ["So.", "5", "0.5", "true", str(2**70)]
    assert dropped.rows == {"an answer is missing": [4, 5]}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["x"], "column a holds text .row 0. and a list .row 2"),
        ({"x": 1}, "column a holds text .row 0. and an object .row 2"),
        ("\ud800", "row 2: column a cannot be read"),
        ("ok\udfff", "row 2: column a cannot be read"),
    ],
)
def test_a_value_that_no_column_can_hold_is_named_with_its_row(tmp_path, value, words):
    rows = [ROW, ROW, ROW | {"a": value}, ROW]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    with pytest.raises(ValueError, match=f"mine.jsonl.*{words}"):
        pairs_of(tmp_path, "mine.jsonl", content)


@pytest.mark.parametrize("row", [None, 1, "text", [ROW]])
def test_a_row_that_is_no_object_is_named(tmp_path, row):
    with pytest.raises(ValueError, match="row 1 is .*, not an object"):
        pairs_of(tmp_path, "mine.json", json.dumps([ROW, row]))
    with pytest.raises(ValueError, match="mine.md, row 1 is .*, not an object"):
        sources.to_pairs(make_card(tmp_path), [ROW, row])


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([USER, None], "an answer is missing"),
        ([None, ANSWER], "content is not text"),
        ([USER, {"role": None, "content": "a"}], "turns are out of order"),
        ([USER, {"role": "assistant"}], "an answer is missing"),
        ([{"content": "q"}, ANSWER], "turns are out of order"),
        ([], "an answer is missing"),
        (None, "an answer is missing"),
    ],
)
def test_a_null_in_a_dialogue_is_dropped_with_its_row(tmp_path, suffix, turns, reason):
    """The Parquet file is pandas' own, whose lists are arrays."""
    other = [USER, ANSWER | {"content": "no"}]
    rows = [{"q": [USER, ANSWER], "a": [USER, ANSWER], "b": other} for _ in range(2)]
    rows[1]["a"] = turns
    path = tmp_path / f"mine.{suffix}"
    if suffix == "jsonl":
        path.write_text(lines(*rows), encoding="utf-8")
    else:
        pd.DataFrame(rows).to_parquet(path)
    text = CARD.format(source="mine", more="").replace("user: q", "messages: a")
    (tmp_path / "mine.md").write_text(text, encoding="utf-8")
    card = sources.read_card(tmp_path / "mine.md")
    pairs, dropped = sources.to_pairs(card, sources.load_rows(card, tmp_path))
    assert list(pairs["row"]) == [0]
    assert dropped.rows == {reason: [1]}


@pytest.mark.promise(
    "chosen and rejected that differ in case, spaces or invisible characters only",
    "dropped and counted as the same answer",
)
@pytest.mark.parametrize("twin", ["so.", " So.\n", "So\u200b.", "Ｓo.", "So.\u2003"])
def test_answers_that_read_the_same_are_the_same(tmp_path, twin):
    content = lines(ROW, ROW | {"b": twin})
    answers, dropped = pairs_of(tmp_path, "mine.jsonl", content)
    assert answers == ["So."] and dropped == {"both answers are the same": 1}


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl", "parquet"])
def test_an_empty_file_is_named(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"mine.{suffix}"):
        read_file(path)


# --- nothing outside the data folder, and no code -----------------------------------


@pytest.mark.promise(
    "a card whose source leads out of the data folder", "refused, the card is named"
)
@pytest.mark.parametrize(
    "source",
    [
        "../secret",
        "a/../../secret",
        "/etc/passwd",
        "..",
        ".hidden",
        "a//b",
        "..\\secret",
        "C:\\secret",
        "C:/secret",
        "\\\\host\\share",
        "~/secret",
        "a\0b",
    ],
)
def test_a_source_stays_inside_the_data_folder(tmp_path, source):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text(lines(ROW), encoding="utf-8")
    text = CARD.format(source=json.dumps(source), more="")
    (folder / "evil.md").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"evil.md: (`source` is|the front matter)"):
        sources.cards(folder)


@pytest.mark.parametrize("source", ["../secret", "sub/../../secret", "..\\secret"])
def test_a_card_changed_in_code_is_checked_too(tmp_path, source):
    from dataclasses import replace

    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.jsonl").write_text(lines(ROW), encoding="utf-8")
    card = replace(make_card(folder), source=source)
    with pytest.raises(ValueError, match=r"mine.md: `source` leads to .* outside"):
        sources.load_rows(card, folder)


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
@pytest.mark.parametrize("link_folder", [False, True])
def test_a_link_out_of_the_data_folder_is_refused(tmp_path, link_folder):
    folder, outside = tmp_path / "data", tmp_path / "outside"
    folder.mkdir(), outside.mkdir()
    (outside / "mine.jsonl").write_text(lines(ROW), encoding="utf-8")
    if link_folder:
        (folder / "sub").symlink_to(outside)
        card = make_card(folder, source="sub/mine")
    else:
        (folder / "mine.jsonl").symlink_to(outside / "mine.jsonl")
        card = make_card(folder)
    with pytest.raises(ValueError, match="`source` leads to .* outside the data"):
        sources.load_rows(card, folder)


def test_links_and_folders_inside_the_data_folder_are_fine(tmp_path):
    sub = tmp_path / "sub"
    sub.mkdir()
    (sub / "mine.jsonl").write_text(lines(ROW), encoding="utf-8")
    assert len(sources.load_rows(make_card(tmp_path, source="sub/mine"), tmp_path)) == 1


@pytest.mark.promise(
    "a data set that comes with a script or with pickles", "refused; nothing runs"
)
@pytest.mark.parametrize("suffix", ["py", "pkl", "pickle", "pt", "npy"])
def test_no_file_that_runs_code_is_read(tmp_path, suffix):
    path = tmp_path / f"mine.{suffix}"
    path.write_bytes(b"import os")
    with pytest.raises(ValueError, match="rows are read from jsonl, json, parquet"):
        sources.load_rows(make_card(tmp_path), path)
    with pytest.raises(FileNotFoundError, match="holds none of mine.jsonl"):
        sources.load_rows(make_card(tmp_path), tmp_path)


@pytest.mark.parametrize("repo", ["../evil", "/evil", "evil", "owner/evil"])
def test_a_folder_here_is_no_data_set_of_the_hub(tmp_path, monkeypatch, repo):
    """`datasets` would read a folder of that name before it asks the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "evil").mkdir(parents=True)
    Dataset.from_list([ROW]).to_json(tmp_path / "owner" / "evil" / "train.jsonl")
    with pytest.raises(ValueError, match="is not owner/name of a data set"):
        sources.from_hub(repo)


# --- cards --------------------------------------------------------------------------


@pytest.mark.promise(
    "a card with a value of the wrong kind", "an error with the card and the key"
)
@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("source: [x]", "source"),
        ("source: 5", "source"),
        ("source:", "source"),
        ("chosen: [a]", "chosen"),
        ("chosen: true", "chosen"),
        ("rejected: {a: b}", "rejected"),
        ("rejected: a", "chosen"),
        ("prompt: {user: 5}", "prompt"),
        ("prompt: {user: [q]}", "prompt"),
        ("prompt: [q]", "prompt"),
        ("keep: 5", "keep"),
        ("keep:", "keep"),
        ("keep: true", "keep"),
        ("keep: [a > 1]", "keep"),
        ("versions:", "versions"),
        ("versions: v1.0", "versions"),
        ("versions: [1.0]", "versions"),
        ("versions: {v1.0: 1}", "versions"),
        ("repo: ../x", "repo"),
        ("repo: [x]", "repo"),
        ("repo: json", "repo"),
        ("revision: 1.0", "revision"),
        ("revision: 2024-01-01", "revision"),
        ("rows: many", "rows"),
        ("rows: -1", "rows"),
        ("rows: true", "rows"),
        ("published: 5", "published"),
        ("published: {v1.0: many}", "published"),
        ("citation: [a]", "citation"),
        ("warning: 5", "warning"),
        ("5: x", "5"),
        ("kind: [mix]", "kind"),
        ("kind: moon", "kind"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_card_and_key(tmp_path, line, key):
    rule = {"source": "mine", "prompt": "{user: q}", "chosen": "a", "rejected": "b"}
    name, _, value = line.partition(":")
    rule[name] = value
    block = "\n".join(f"  {name}: {value}" for name, value in rule.items())
    text = f"---\nlicense: mit\ncourse:\n{block}\n---\n# T\n"
    (tmp_path / "bad.md").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"bad\.md: .*`{key}`"):
        sources.cards(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("license: [mit, apache-2.0]", "`license` is a list"),
        ("license:", "`license` is empty"),
        ("license: no", "`license` is False"),
        ("license: mit\nlicense: mit", "the key 'license' stands twice"),
        ("license: mit\nx: &x [*x]\n? [a]\n: b", "the front matter is not YAML"),
        ("license: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("license: mit\ndataset_info: [1]", "`dataset_info` holds no `features`"),
        ("license: mit\ndataset_info: {features: 5}", "`dataset_info` holds no"),
    ],
)
def test_a_front_matter_of_the_wrong_kind_is_named(tmp_path, text, words):
    card = CARD.format(source="mine", more="").replace("license: mit", text)
    (tmp_path / "bad.md").write_text(card, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"bad\.md: .*{words}"):
        sources.cards(tmp_path)


def test_a_key_that_stands_twice_in_the_rule_is_no_accident(tmp_path):
    text = CARD.format(source="mine", more="  keep: a == 'x'\n  keep: a == 'y'\n")
    (tmp_path / "bad.md").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.md: .*'keep' stands twice"):
        sources.cards(tmp_path)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_a_card_in_another_encoding_is_named(tmp_path, encoding):
    text = CARD.format(source="mine", more="  citation: é\n")
    (tmp_path / "bad.md").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"bad\.md is not UTF-8"):
        sources.cards(tmp_path)


def test_a_card_may_begin_with_a_byte_order_mark(tmp_path):
    text = "\ufeff" + CARD.format(source="mine", more="  citation: é\n")
    (tmp_path / "good.md").write_bytes(text.replace("\n", "\r\n").encode("utf-8"))
    assert sources.cards(tmp_path)["mine"].citation == "é"
