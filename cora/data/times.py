"""Times as seconds since 1970: from ISO 8601, from numbers of any unit, from columns of dates."""

import datetime
import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cora.data.problems import problem, shown
from cora.data.rows import Rows, kind

_UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EXPECTED = "must be a date such as 2014-07-18 10:00:00, or a number since 1970"
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_ISO = re.compile(
    r"(?P<date>[0-9]{4}(?:(-?)[0-9]{2}\2[0-9]{2}|(-?)W[0-9]{2}\3[1-7]|-?[0-9]{3}))"
    r"(?:[Tt ](?P<hour>[0-9]{2})(?:(:?)(?P<minute>[0-9]{2})(?:\5(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]+))?)?)?"
    r" ?(?:[Zz]|UTC|(?P<sign>[+-])(?P<hours>[0-9]{2}):?(?P<minutes>[0-9]{2})?)?)?"
)


def times(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The column `timestamp` as seconds since 1970, rounded down, and the nanoseconds beyond them, int64 [rows] each.

    Text: ISO 8601, row by row: calendar, week and ordinal dates, extended or basic, with or without a time (hours,
    minutes, seconds, a fraction of any length) behind a T or a blank, and a zone (Z, UTC, +02, +0200, +02:00; none is
    UTC). Numbers, as such or as text: seconds, milli-, micro- or nanoseconds, all rows in one unit, which is told by
    the size: below 10^11, 10^14 and 10^17 (seconds below 10^11 end in 5138, milliseconds from there on begin in 1973).

    Raises ValueError, naming file, row and value: for a missing time and all other text; for numbers of two units or
    beyond int64; for a column in which all read as dates without separators too, such as 20140718 or 2014.
    """
    column = rows.column("timestamp")
    if column.null_count:
        raise rows.wrong(_first(pc.is_null(column)), "timestamp", _EXPECTED)
    of_kind = kind(column)
    if of_kind == "time":
        whole, per_second = column.cast(pa.int64()).to_numpy(), _PER_SECOND[column.type.unit]
        return whole // per_second, whole % per_second * (10**9 // per_second)
    if of_kind == "integer" and column.type == pa.int64():
        return _in_seconds(rows, column.to_numpy(), np.zeros(len(rows)))
    if of_kind == "float":
        return _of_floats(rows, column.to_numpy())
    if of_kind == "text":
        column = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        is_number = pc.match_substring_regex(column, f"^({_NUMBER})$")
        if not pc.any(is_number).as_py():
            return _of_dates(rows, column.to_pylist())
        if not pc.all(is_number).as_py():
            raise rows.wrong(_first(pc.invert(is_number)), "timestamp", "must be a number, as in other rows")
    if of_kind in ("text", "integer", "decimal"):
        return _of_text(rows, column.cast(pa.large_string()))
    raise rows.wrong(0, "timestamp", f"{_EXPECTED}, not of the type {of_kind}")


def _first(mask: pa.ChunkedArray) -> int:
    return int(pc.index(mask, True).as_py())


def _of_text(rows: Rows, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Of numbers in decimal digits, which no float has rounded."""
    whole = pc.replace_substring_regex(column, r"^(-?[0-9]{1,18})\.0*$", r"\1")
    if pc.all(pc.match_substring_regex(whole, "^-?[0-9]{1,18}$")).as_py():
        return _in_seconds(rows, whole.cast(pa.int64()).to_numpy(), np.zeros(len(rows)))
    floors, fractions = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    for row, text in enumerate(column.to_pylist()):
        value = Decimal(text)
        if value.adjusted() > 18 or not -(2**63) <= (floor := value.__floor__()) < 2**63:
            raise rows.wrong(row, "timestamp", "must be within int64")
        floors[row], fractions[row] = floor, float(value - floor)
    return _in_seconds(rows, floors, fractions)


def _of_floats(rows: Rows, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bad = ~(np.abs(values) < 2.0**63)
    if bad.any():
        raise rows.wrong(int(bad.argmax()), "timestamp", "must be a finite number within int64")
    floors = np.floor(values)
    return _in_seconds(rows, floors.astype(np.int64), values - floors)


def _in_seconds(rows: Rows, whole: np.ndarray, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of numbers of one unit: their whole parts and what is beyond, from 0 up to, not including, 1."""
    size = np.where(whole < 0, ~whole, whole)  # not abs: that of the least int64 does not exist
    units = np.searchsorted([10**11, 10**14, 10**17], size, side="right")
    told = np.flatnonzero((whole != 0) | (fractions != 0))  # a zero is the same moment in every unit
    unit = int(units[told[0]]) if len(told) else 0
    other = told[units[told] != unit]
    if len(other):
        expected = f"must be in one unit, and it is {_UNITS[unit]} in {rows.place(int(told[0])).rpartition(', ')[2]}"
        raise rows.wrong(int(other[0]), "timestamp", expected)
    if _all_compact(whole):
        value = shown(rows.cell(0, "timestamp"))
        raise problem(
            rows.place(0),
            f"timestamp {value} may be a date without separators or {_UNITS[unit]}; write 2014-07-18",
        )
    per_second = 10 ** (3 * unit)
    nanoseconds = (whole % per_second + fractions) * (10**9 // per_second)
    return whole // per_second, np.minimum(nanoseconds.astype(np.int64), 10**9 - 1)


def _of_dates(rows: Rows, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    seconds, nanoseconds = np.empty(len(rows), dtype=np.int64), np.empty(len(rows), dtype=np.int64)
    days: dict[str, int] = {}
    for row, text in enumerate(texts):
        found = _ISO.fullmatch(text)
        if found is None:
            raise rows.wrong(row, "timestamp", _EXPECTED)
        try:
            date = found["date"]
            if date not in days:
                days[date] = _day(date.replace("-", ""))
            seconds[row] = 86400 * days[date] + _second_of_day(found)
        except ValueError:  # the 30th of February, the 25th hour
            raise rows.wrong(row, "timestamp", _EXPECTED) from None
        nanoseconds[row] = int(((found["fraction"] or "") + "000000000")[:9])
    return seconds, nanoseconds


def _day(date: str) -> int:
    """Days since 1970 of YYYYMMDD, YYYYWwwD or YYYYDDD."""
    year = int(date[:4])
    if "W" in date:
        day = datetime.date.fromisocalendar(year, int(date[5:7]), int(date[7:]))
    elif len(date) == 7:
        day = datetime.date(year, 1, 1) + datetime.timedelta(int(date[4:]) - 1)
        if day.year != year:
            raise ValueError("day of the year out of range")
    else:
        day = datetime.date(year, int(date[4:6]), int(date[6:]))
    return day.toordinal() - datetime.date(1970, 1, 1).toordinal()


def _second_of_day(found: re.Match[str]) -> int:
    """Of the time in UTC, which may be on the day before or after. 24:00 is the end of the day."""
    hour, minute, second, hours, minutes = (
        int(found[name] or 0) for name in ("hour", "minute", "second", "hours", "minutes")
    )
    whole_day = hour == 24 and minute == second == 0 and not (found["fraction"] or "").strip("0")
    if (hour > 23 and not whole_day) or minute > 59 or second > 59 or hours > 23 or minutes > 59:
        raise ValueError("time out of range")
    zone = 3600 * hours + 60 * minutes
    return 3600 * hour + 60 * minute + second - (-zone if found["sign"] == "-" else zone)


def _all_compact(whole: np.ndarray) -> bool:
    """Whether every number has the digits of a year from 1900 to 2100, of a month, day, hour, minute, second in it."""
    for digits in (4, 6, 8, 10, 12, 14, 17):
        if not ((whole >= 10 ** (digits - 1)) & (whole < 10**digits)).all():
            continue
        rest = whole // 1000 if digits == 17 else whole
        for least, most in list(_FIELDS)[: (min(digits, 14) - 4) // 2][::-1]:
            if not ((rest % 100 >= least) & (rest % 100 <= most)).all():
                return False
            rest = rest // 100
        return bool(((rest >= 1900) & (rest <= 2100)).all())
    return False


_FIELDS = ((1, 12), (1, 31), (0, 23), (0, 59), (0, 59))  # month, day, hour, minute, second
