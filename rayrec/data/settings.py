"""Settings of the data."""

from dataclasses import dataclass
from typing import Annotated, Literal

from rayrec.data.sources import SOURCES
from rayrec.fields import at_least, one_of

#: What a date of two numbers and a year begins with.
DateOrder = Literal["day", "month"]
SOURCE = one_of(lambda: ("auto", "synthetic", *SOURCES))


@dataclass(frozen=True)
class DataConfig:
    """Which interactions are read and how they are cut into examples."""

    source: Annotated[str, SOURCE] = "auto"
    """Format of --data; `auto` looks at the files, and without --data takes `synthetic`."""
    data: str | None = None
    """Folder or file of interaction logs."""
    columns: tuple[str, ...] = ()
    """Columns of own tables (`csv`, `parquet`) that have other names, such as `user=customer item=asin timestamp=when`;
    obvious names are found, and told in the plan."""
    history: Annotated[int, at_least(1)] = 10
    """Most titles in a prompt."""
    min_history: int | None = None
    """Fewest titles in a prompt. Default: --history up to 10 for the split `time`, else 1."""
    k_core: Annotated[int, at_least(0)] = 0
    """Fewest interactions of a user and of a title: those with fewer are left out, until none has fewer (RecPO: 5). 0
    keeps all."""
    split: Literal["auto", "time", "leave_last_two", "sequences"] = "auto"
    """`time`: 8:1:1 by global time; `leave_last_two`: a user's last interaction is a test row, the one before it a
    validation row; `sequences`: users 8:1:1 by their last interaction; `auto`: the data's own, else `time`."""
    protocol: Literal["open", "candidates"] = "open"
    """`open`: any title is an answer (SPRec); `candidates`: prompts list 20 titles to choose from, the target and 19
    that the user never met (S-DPO, RecPO)."""
    ask: Literal["title", "title_by_liking", "liking"] = "title"
    """Question of a prompt: the title; with `--protocol candidates` also `title_by_liking`, the title, where the
    history is split into liked and other titles (S-DPO's row of TALLRec), and `liking`, for one candidate
    after the other whether the user will like it (TALLRec)."""
    ratings: bool = False
    """Prompts show the ratings of the history (RecPO)."""
    targets: Literal["last", "all"] = "last"
    """Validation and test rows of a user of the split `sequences`: the last interaction, or all."""
    bad_rows: Literal["stop", "drop"] = "stop"
    """`stop` refuses a file with bad rows; `drop` sets them aside in rejected.parquet and counts them. A test row that
    is a training row too is a bad one."""
    duplicates: Literal["drop", "keep"] = "drop"
    """Rows that are equal in user, item, rating and time: the first is kept (`drop`), or all (`keep`); they are
    counted."""
    liked_from: float | None = None
    """Least rating, as the files have it, that counts as liked. Default: 4 of 5 stars, 8 of 10, 1 of 0/1 and -1/1; rows
    of other scales are unrated without it."""
    date_order: DateOrder | None = None
    """Which of the two numbers before the year stands first in dates such as 03/04/2025. Default: as a number above 12
    shows; the day if there are dots."""
    long_prompts: Literal["trim", "drop", "stop"] = "trim"
    """Rows whose prompt and answer are longer than --max-length: their oldest titles are left out, at least
    --min-history or one stay (`trim`), the rows are left out (`drop`), or the run stops. They are counted."""
    since: str | None = None
    """First moment of the interactions that are read: a date, an ISO time (UTC) or seconds since the epoch."""
    until: str | None = None
    """Moment from which on no interaction is read."""
    test_rows: Annotated[int, at_least(1)] = 1000
    """Test examples that are evaluated, drawn with the seed."""
    valid_rows: Annotated[int, at_least(1)] = 256
    """Validation examples that are evaluated, drawn with the seed."""
    seed: Annotated[int, at_least(0)] = 0
    """Seeds every draw, initialisation and shuffle of the run."""
