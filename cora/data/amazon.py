"""Amazon's reviews of 2018: JSON lines of reviews, and beside them those of the products with their titles."""

import json
import warnings
import zlib
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from cora.data.json_lines import is_unicode, objects
from cora.data.memory import refuse_too_large
from cora.data.parts import suffix_of
from cora.data.problems import listed, problem, shown, shown_path
from cora.data.rows import Lines, Rows, Source, coded, coded_chunk, distinct
from cora.data.text import open_text, reading
from cora.data.values import is_visible

FORMS = "Amazon's reviews with meta_NAME beside NAME"
_SUFFIXES = (".json", ".json.gz", ".jsonl", ".jsonl.gz")
_PIECE = 100_000  # objects in memory at a time


class _Field(NamedTuple):
    """name: in the file; type: of the column; is_right: of a value; expected: in words."""

    name: str
    type: pa.DataType
    is_right: Callable[[Any], bool]
    expected: str


def _is_text(value: Any) -> bool:
    return type(value) is str and is_unicode(value)


_ID = pa.large_string(), _is_text, "must be text"
_TITLE = pa.large_string(), lambda value: value is None or _is_text(value), "must be text"
_RATING = pa.float64(), lambda value: type(value) in (int, float) and abs(value) <= 2**53, "must be a number"
_TIME = pa.int64(), lambda value: type(value) is int and abs(value) < 2**63, "must be a whole number within int64"
_REVIEW = {
    "user_id": _Field("reviewerID", *_ID),
    "item_id": _Field("asin", *_ID),
    "rating": _Field("overall", *_RATING),
    "timestamp": _Field("unixReviewTime", *_TIME),
}
_PRODUCT = {"item_id": _Field("asin", *_ID), "title": _Field("title", *_TITLE)}


def reads(path: Path) -> bool:
    """A file of JSON lines whose first one is a review, with meta_NAME beside NAME or NAME_5; or a folder with one."""
    if path.is_dir():
        return any(reads(file) for file in path.iterdir() if file.is_file())
    return _products_of(path) is not None and _is_review(path)


def read(path: Path) -> Source:
    """The reviews, and the titles of their products: of a product that is there several times the last title.

    Both files are read in pieces, of each object the few fields in use. Reviews of products without a title, which
    every release has, are dropped, and their number is warned of.
    """
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and reads(file))
        if len(found) > 1:
            raise problem(path, f"expected the reviews once, found {listed(file.name for file in found)}")
        path = found[0]
    products = _products_of(path)
    assert products is not None
    refuse_too_large([path])
    items = _with_titles(_read(products, _PRODUCT))
    return Source(_of_items(_read(path, _REVIEW), items), ("",), items)


def _products_of(path: Path) -> Path | None:
    """The file of the products that belongs to a file of reviews, if it is there."""
    suffix = suffix_of(path, _SUFFIXES)
    if suffix is None or path.name.startswith("meta_") or not path.is_file():
        return None
    name = path.name[: -len(suffix)]
    beside = [path.with_name(f"meta_{one}{end}") for one in (name, name.removesuffix("_5")) for end in _SUFFIXES]
    return next((file for file in beside if file.is_file()), None)


def _is_review(path: Path) -> bool:
    try:
        with open_text(path, "utf-8", "\n") as text:
            first = json.loads(next((line for line in text if line.strip()), ""))
    except (ValueError, RecursionError, OSError, EOFError, zlib.error):
        return False
    return isinstance(first, dict) and first.keys() >= {field.name for field in _REVIEW.values()}


def _read(file: Path, fields: Mapping[str, _Field]) -> Rows:
    """The fields of a file with one JSON object a line, by our names."""
    lines = Lines()
    chunks: dict[str, list[pa.Array]] = {ours: [] for ours in fields}
    with reading(file):
        found = ((line, [one.get(field.name) for field in fields.values()]) for line, one in objects(file))
        while piece := list(islice(found, _PIECE)):
            places = [line for line, _ in piece]
            lines.add(places)
            columns = zip(*(cells for _, cells in piece), strict=True)
            for (ours, field), cells in zip(fields.items(), columns, strict=True):
                wrong = next((row for row, cell in enumerate(cells) if not field.is_right(cell)), None)
                if wrong is not None:
                    where = f"{shown_path(file)}, line {places[wrong]}"
                    raise problem(where, f"{field.name} {field.expected}, got {shown(cells[wrong])}")
                column = pa.array(cells, field.type)
                chunks[ours].append(coded_chunk(column) if field.type == pa.large_string() else column)
    names = {ours: field.name for ours, field in fields.items()}
    if not any(chunks.values()):
        raise problem(file, "the file is empty")
    whole = {ours: pa.chunked_array(pieces) for ours, pieces in chunks.items()}
    table = pa.table({ours: coded(one) if pa.types.is_dictionary(one.type) else one for ours, one in whole.items()})
    return Rows(table, names, (file,), (len(table),), (lines.joined(),), False)


def _with_titles(products: Rows) -> Rows:
    """Each product once, with its last title, if it has one."""
    titles, of_row = distinct(products.column("title"))
    has_title = np.array([*map(is_visible, titles.to_pylist()), False])[of_row]
    ids, item = distinct(products.column("item_id"))
    last = np.full(len(ids), -1)
    last[item[has_title]] = np.flatnonzero(has_title)
    return _taken(products, np.sort(last[last >= 0]))


def _of_items(reviews: Rows, items: Rows) -> Rows:
    """The reviews of these items."""
    known = set(items.column("item_id").to_pylist())
    ids, item = distinct(reviews.column("item_id"))
    kept = np.array([one in known for one in ids.to_pylist()])[item]
    if not kept.all():
        where = f"{shown_path(reviews.files[0])}: {int((~kept).sum())} of {len(reviews)} reviews"
        warnings.warn(f"{where} are of items without a title in {items.files[0].name} and are dropped", stacklevel=5)
    return _taken(reviews, np.flatnonzero(kept))


def _taken(rows: Rows, kept: np.ndarray) -> Rows:
    lines = np.asarray(rows.lines[0])[kept]
    return Rows(rows.table.take(pa.array(kept)), rows.names, rows.files, (len(kept),), (lines,), rows.is_text)
