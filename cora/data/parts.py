"""The files of a folder by the part of a split that they belong to, as people and programs name them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cora.data.problems import listed, problem

PARTS = ("train", "valid", "test")
_PART_NAMES = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
_NAMED = re.compile(rf"({'|'.join(_PART_NAMES)})([-_.][0-9].*)?")
_NUMBERED = re.compile(r"part[-_.]?[0-9].*|[0-9]+|.*-[0-9]+-of-[0-9]+(-.*)?")
_OF = re.compile(r".*-[0-9]+-of-([0-9]+)(-.*)?")


def part_files(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """The files of a folder by part of a split, "" for those of a source that is not split; {} if it holds none.

    A part's name is that of its file (train.csv, validation-00000-of-00002.parquet) or of its folder (train/,
    split=train/, train.parquet/); `data/`, `default/` and folders named key=value may lie between. A part may be
    several files: numbered ones of one name, or all there are in its folder. Files that are not split are those called
    by a number, with `part` or a name before it (part-00000-….snappy.parquet, 0000.parquet,
    data-00000-of-00001.parquet), or files of one name but for numbers, one alone being such, with nothing but documents
    beside them. Hidden files and those that begin with "_" (_SUCCESS) are passed over, and so are, beside numbered
    files or those of a split, all others.

    Raises ValueError, naming the folder, for a part that is there twice or lacks a numbered file, and for files of a
    split beside parts of a source that is not split.
    """
    found: dict[str, dict[Path, list[Path]]] = {}
    loose: list[Path] = []
    for file in sorted(_tables(folder, suffixes), key=_by_number):
        said = _part_of(file, folder, suffixes)
        if said is None:
            loose.append(file)
        else:
            found.setdefault(said[0], {}).setdefault(said[1], []).append(file)
    numbered = [file for file in loose if _NUMBERED.fullmatch(stem(file, suffixes))]
    if found:
        return _split(folder, found, numbered, suffixes)
    if not numbered and len({_unnumbered(file) for file in loose}) == 1:
        beside = {path.suffix for path in folder.iterdir() if path.is_file() and not _is_hidden(path)}
        numbered = loose if beside - {file.suffix for file in loose} <= {"", ".md", ".txt"} else []
    if numbered:
        _one_form(folder, numbered, suffixes, "the source")
        return {"": numbered}
    return {}


def _split(
    folder: Path, found: dict[str, dict[Path, list[Path]]], others: list[Path], suffixes: Sequence[str]
) -> dict[str, list[Path]]:
    """One place for each part, and nothing beside."""
    split: dict[str, list[Path]] = {}
    for part in (part for part in PARTS if part in found):
        split[part] = [file for files in found[part].values() for file in files]
        if len(found[part]) > 1:
            raise problem(folder, f"{part} is there twice: {_names(folder, split[part])}")
        _one_form(folder, split[part], suffixes, part)
    if others:
        names = _names(folder, (file for files in split.values() for file in files))
        raise problem(folder, f"files of a split and others that are not: {_names(folder, others)} beside {names}")
    return split


def check_training_parts(folder: Path, parts: Sequence[str], files: Sequence[Path]) -> None:
    """Raises ValueError, naming the folder, for files of a split that has no train or no valid. parts: of each file."""
    if any(parts) and not {"train", "valid"} <= set(parts):
        raise problem(folder, f"a split folder needs train and valid, found {_names(folder, files)}")


def part_of_file(file: Path) -> str | None:
    """The part of a split that the name of a file says: test.parquet, validation-00000-of-00001.csv.gz."""
    named = _NAMED.fullmatch(file.name.partition(".")[0].lower())
    return _PART_NAMES[named[1]] if named else None


def _one_form(folder: Path, files: list[Path], suffixes: Sequence[str], part: str) -> None:
    """Files of one suffix, those that count themselves all there."""
    if len({suffix_of(file, suffixes) for file in files}) > 1:
        raise problem(folder, f"{part} is there twice: {_names(folder, files)}")
    totals = {of[1] for file in files if (of := _OF.fullmatch(stem(file, suffixes)))}
    for total in totals:
        if len(totals) > 1 or int(total) != len(files):
            found = f"got {len(files)}: {_names(folder, files)}"
            raise problem(folder, f"{part}: expected {int(total)} files, as their names say, {found}")


def _names(folder: Path, files: Iterable[Path]) -> str:
    return listed(file.relative_to(folder).as_posix() for file in files)


def stem(file: Path, suffixes: Sequence[str]) -> str:
    """The name without the suffix, as short as it can be: of part-0.snappy.parquet `part-0`."""
    name = file.name[: len(file.name) - len(suffix_of(file, suffixes) or "")]
    return name.removesuffix(".snappy").removesuffix(".gz").removesuffix(".zstd")


def suffix_of(file: Path, suffixes: Sequence[str]) -> str | None:
    """The longest of the suffixes that the name of the file ends in, in whatever case."""
    return max((one for one in suffixes if file.name.lower().endswith(one)), key=len, default=None)


def _tables(folder: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    for path in folder.iterdir():
        if _is_hidden(path):
            continue
        if path.is_dir():
            if "=" in path.name or path.name in ("data", "default") or _folder_part(path, suffixes):
                yield from _tables(path, suffixes)
        elif suffix_of(path, suffixes) and path.name not in ("dataset_infos.json", "dataset_dict.json", "state.json"):
            yield path


def _is_hidden(path: Path) -> bool:
    return path.name.startswith((".", "_"))


def _part_of(file: Path, folder: Path, suffixes: Sequence[str]) -> tuple[str, Path] | None:
    """The part that the file's own name says, or else that of the nearest folder that says one; and what says it: the
    name without numbers, or the folder."""
    named = _NAMED.fullmatch(stem(file, suffixes).lower())
    if named:
        return _PART_NAMES[named[1]], file.with_name(named[1] + ("-0." if named[2] else "."))
    for parent in file.parents[: len(file.relative_to(folder).parts) - 1]:
        if part := _folder_part(parent, suffixes):
            return part, parent
    return None


def _folder_part(folder: Path, suffixes: Sequence[str]) -> str | None:
    """The part that the name of a folder says: train, split=train, or Spark's train.parquet."""
    return _PART_NAMES.get(stem(folder, suffixes).lower().removeprefix("split="))


def _unnumbered(file: Path) -> str:
    return re.sub("[0-9]+", "0", file.name)


def _by_number(file: Path) -> list[tuple[int, str]]:
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split("([0-9]+)", str(file))]
