"""RecBole atomic files: a `.inter` file of events and beside it a `.item` file with the titles."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from cora.data.choosing import event_columns, item_columns
from cora.data.memory import refuse_too_large
from cora.data.parts import PARTS
from cora.data.problems import listed, problem, shown_path
from cora.data.rows import Rows, Source, together
from cora.data.text import Choose, read_separated

FORMS = "one .inter file, or NAME.train.inter and NAME.valid.inter"
_TYPES = ("token", "token_seq", "float", "float_seq")


def reads(path: Path) -> bool:
    """A `.inter` file, or a folder with any."""
    return bool(_inters(path)) if path.is_dir() else path.suffix == ".inter"


def read(path: Path) -> Source:
    """One `.inter` file, or those of a split (NAME.train.inter, NAME.valid.inter and maybe NAME.test.inter), fields
    separated by tabs and without quotes, and the `.item` file of that name; each header says `name:type`."""
    files = _files(path)
    first = next(iter(files.values()))
    item = first.with_suffix(".item") if "" in files else first.with_suffix("").with_suffix(".item")
    if not item.exists():
        raise FileNotFoundError(f"{shown_path(first)}: the titles are missing, expected them in {item.name} beside it")
    refuse_too_large(list(files.values()))
    events = [_atomic(file, lambda file, names: event_columns(file, names, titled=False)) for file in files.values()]
    return Source(together(events), tuple(files), _atomic(item, item_columns))


def _files(path: Path) -> dict[str, Path]:
    found = _inters(path) if path.is_dir() else [path]
    if len(found) == 1:
        return {"": found[0]}
    parts = {file.with_suffix("").suffix.removeprefix("."): file for file in found}
    names = {file.with_suffix("").stem for file in found}
    if len(parts) < len(found) or len(names) > 1 or not {"train", "valid"} <= parts.keys() <= set(PARTS):
        raise problem(path, f"expected {FORMS}, found {listed(file.name for file in found)}")
    return {part: parts[part] for part in PARTS if part in parts}


def _inters(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.inter") if not file.name.startswith("."))


def _atomic(path: Path, choose: Choose) -> Rows:
    """The columns chosen by their names without `:type`, which each name in the header has."""

    def choose_typed(file: Path, found: Sequence[str]) -> Mapping[str, str]:
        untyped = [name for name in found if name.rpartition(":")[2] not in _TYPES]
        if untyped:
            raise problem(file, f"a header of `name:type` expected ({', '.join(_TYPES)}), found {listed(untyped)}")
        bare = [name.rpartition(":")[0] for name in found]
        return {ours: found[bare.index(name)] for ours, name in choose(file, bare).items()}

    rows = read_separated(path, choose_typed, "\t", quoted=False)
    bare = {ours: name.rpartition(":")[0] for ours, name in rows.names.items()}
    return Rows(rows.table, bare, rows.files, rows.sizes, rows.lines, rows.is_text)
