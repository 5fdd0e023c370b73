"""Rows from files: JSON Lines, JSON, CSV, Parquet.

What a file says stays what it says: text that looks like a date or like "None" is
text, an empty cell alone is missing, and a line ends at a line feed only.
"""

import bisect
import codecs
import json
from collections.abc import Collection, Iterable
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from pyarrow import csv

_BLANK = " \t\r\n"
_CSV_TYPES = (pa.int64(), pa.float64(), pa.bool_())
_SCALARS = ("text", "numbers", "yes or no")


def read_json_lines(path: str | Path) -> list[dict]:
    """The rows of a file with one JSON object per line; blank lines do not count.

    Raises: ValueError that names the line, or says that there is none.
    """
    rows = []
    try:
        # Only \n ends a line: JSON text may hold U+2028 and other separators.
        with Path(path).open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip(_BLANK):
                    rows.append(_object(line, f"{path}, line {number}"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if not rows:
        raise ValueError(f"{path} holds no row.")
    return rows


def _object(line, place):
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(
            f"{place} is not an object, such as "
            '{"prompt": ..., "chosen": ..., "rejected": ...}.'
        )
    return row


def read_file(path: Path, texts: Collection[str] = ()) -> Dataset:
    """The rows of a file as a Dataset.

    texts: columns whose values are text even where all of them look like numbers.
    Raises: ValueError that names the file and, where it is known, the row.
    """
    reader = READERS.get(path.suffix.lstrip(".").lower())
    if reader is None:
        raise ValueError(f"{path}: rows are read from {', '.join(READERS)} only.")
    rows = reader(path, texts)
    if not len(rows):
        raise ValueError(f"{path} holds no row.")
    return rows


def rows_to_dataset(
    rows: Iterable[dict], place: str | Path, texts: Collection[str] = ()
) -> Dataset:
    """Rows as a Dataset whose columns each hold one kind of value.

    place: where they are from, for messages. texts: columns that become text. Numbers
    among texts become text; other mixtures raise a ValueError that names the row,
    counted from 0.
    """
    rows = list(rows)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{place}, row {number} is {_kind(row)}, not an object.")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {
        str(name): _column([row.get(name) for row in rows], name, place, name in texts)
        for name in names
    }
    return Dataset(pa.table(columns))


def _column(values, name, place, as_text):
    values = [None if isinstance(v, float) and v != v else v for v in values]  # NaN
    kinds = {}  # the first row of every kind of value
    for number, value in enumerate(values):
        if value is not None:
            kinds.setdefault(_kind(value), number)
    if set(kinds) <= set(_SCALARS):
        if as_text or len(kinds) > 1 or any(map(_is_large, values)):
            values = [_text(value) for value in values]
    elif len(kinds) > 1:
        found = " and ".join(f"{kind} (row {row})" for kind, row in kinds.items())
        raise ValueError(f"{place}: column {name} holds {found}. Give one kind only.")

    def array(count):
        try:
            return pa.array(values[:count])
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            return error

    made = array(len(values))
    if isinstance(made, pa.Array):
        return made
    row = bisect.bisect(
        range(len(values) + 1), False, key=lambda n: isinstance(array(n), Exception)
    )
    error = array(row)
    raise ValueError(f"{place}, row {row - 1}: column {name} cannot be read: {error}")


def _kind(value):
    for kind, types in {
        "yes or no": bool,
        "text": str,
        "numbers": (int, float),
        "a list": (list, tuple),
        "an object": dict,
    }.items():
        if isinstance(value, types):
            return kind
    return type(value).__name__


def _is_large(value):
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _text(value):
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _read_jsonl(path, texts):
    return rows_to_dataset(read_json_lines(path), path, texts)


def _read_json(path, texts):
    """A list of rows, or JSON Lines under this name."""
    with path.open("rb") as file:
        start = file.read(1_000).removeprefix(codecs.BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        return _read_jsonl(path, texts)
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as json: {error}") from error
    return rows_to_dataset(rows, path, texts)


def _read_csv(path, texts):
    # One block, so that no row is cut; one thread, so that errors number the rows.
    size = min(max(path.stat().st_size, 1), 2**31 - 1)
    blocks = csv.ReadOptions(block_size=size, use_threads=False)
    cells = csv.ParseOptions(newlines_in_values=True)

    def read(as_text):
        types = dict.fromkeys(as_text, pa.string())
        nulls = {"null_values": [""], "strings_can_be_null": True}
        return csv.read_csv(
            path, blocks, cells, csv.ConvertOptions(column_types=types, **nulls)
        )

    try:
        # What Arrow takes for a date or for nothing at all is read again as text.
        found = read(texts).schema
        table = read([*texts, *(f.name for f in found if f.type not in _CSV_TYPES)])
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as csv: {error}") from error
    names = table.column_names
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has two columns of one name: {', '.join(names)}.")
    return Dataset(table)


def _read_parquet(path, texts):
    try:
        return load_dataset("parquet", data_files=str(path), split="train")
    except (DatasetGenerationError, pa.ArrowException, NotImplementedError) as error:
        # datasets' own message says only that it failed; its cause says why.
        raise ValueError(
            f"{path} cannot be read as parquet: {error.__cause__ or error}"
        ) from error


READERS = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "parquet": _read_parquet,
    "csv": _read_csv,
}
