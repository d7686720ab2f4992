"""Texts of dates as programs for tables write them, turned into ISO's order: year, month, day."""

from collections.abc import Iterable

import polars as pl

from rayrec.data.settings import DateOrder

_REST = r"(\D.*)?$"
#: Two numbers and a year, such as 14.05.2025 or 5/14/2025.
_NUMBERS = r"^(\d{1,2})([./-])(\d{1,2})[./-](\d{4})" + _REST
_WEEKDAY = r"^(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+)?"
_MONTH = r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
#: 14 May 2025 or 14-May-2025, and May 14, 2025.
_DAY_MONTH = rf"(?i){_WEEKDAY}(\d{{1,2}})(?:st|nd|rd|th)?[ -]{_MONTH},?[ -](\d{{4}}){_REST}"
_MONTH_DAY = rf"(?i){_WEEKDAY}{_MONTH}\s+(\d{{1,2}})(?:st|nd|rd|th)?,?\s+(\d{{4}}){_REST}"
_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_NUMBER = {name: f"{number:02d}" for number, name in enumerate(_NAMES, 1)}


def first_of(times: Iterable[pl.Series], given: DateOrder | None, file: str) -> DateOrder | None:
    """Whether dates of two numbers and a year begin with the day or the month; None unless most texts are such dates.

    ``times`` are the parts of a column of texts. A number above 12 is a day; dates with dots begin with it.

    Raises:
        ValueError: no row shows it, and ``given``, the value of --date-order, does not say it; or it is given, and
            most are not.
    """
    example, dotted, days_first, months_first, balance = "", True, 0, 0, 0
    for part in times:
        found = part.str.extract_groups(_NUMBERS).struct.unnest().drop_nulls("1")
        balance += 2 * len(found) - len(part)
        if not len(found):
            continue
        one, other = (found[name].cast(pl.Int64) for name in ("1", "3"))
        days_first += int((one > 12).sum())
        months_first += int((other > 12).sum())
        dotted = dotted and bool((found["2"] == ".").all())
        example = example or part.filter(part.str.contains(_NUMBERS))[0]
    if not example or balance < 0:
        if given is not None:
            raise ValueError(
                f"--date-order {given} reads dates such as 03/04/2025, and most times of {file} are no such dates. "
                "Leave it out."
            )
        return None
    if given is not None:
        return given
    if not days_first and not months_first and not dotted:
        raise ValueError(
            f"{file}: dates such as {example!r} may begin with the day or the month, and no row shows which. "
            "Add --date-order day or --date-order month."
        )
    return "month" if months_first > days_first else "day"


def iso(text: pl.Expr, first: DateOrder | None) -> pl.Expr:
    """The texts with their date in the order of ISO; those of other forms stay as they are.

    Two numbers and a year are a date if ``first`` says which number the day is.
    """
    named, american = text.str.extract_groups(_DAY_MONTH).struct, text.str.extract_groups(_MONTH_DAY).struct
    forms = [
        _joined(named.field("3"), named.field("2"), named.field("1"), named.field("4")),
        _joined(american.field("3"), american.field("1"), american.field("2"), american.field("4")),
    ]
    if first is not None:
        numbers = text.str.extract_groups(_NUMBERS).struct
        day, month = ("1", "3") if first == "day" else ("3", "1")
        forms.append(_joined(numbers.field("4"), numbers.field(month), numbers.field(day), numbers.field("5")))
    return pl.coalesce(*forms, text)


def _joined(year: pl.Expr, month: pl.Expr, day: pl.Expr, rest: pl.Expr) -> pl.Expr:
    number = month.str.to_lowercase().replace(_NUMBER).str.zfill(2)
    time = rest.fill_null("").str.replace(r"^[,\s]+", " ").str.replace(r"^[Tt ](\d):", " 0${1}:")
    return pl.concat_str(year, pl.lit("-"), number, pl.lit("-"), day.str.zfill(2), time)
