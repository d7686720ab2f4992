"""Bodies of requests and answers, with their limits; the OpenAPI page is made of these classes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayrec.recommend.lists import Explore

#: Bytes of a request, and of one that brings a catalogue.
BODY, CATALOGUE_BODY = 1 << 20, 64 << 20
#: Most titles of a history, of a list, and of those to allow or to exclude; characters of a title or a user.
HISTORY, K, TITLES, LENGTH = 1000, 100, 10_000, 500

#: Seeds are below it, so that programs that know no other numbers than doubles keep them.
SEEDS = 1 << 53

Title = Annotated[str, Field(min_length=1, max_length=LENGTH)]
User = Annotated[str, Field(min_length=1, max_length=LENGTH)] | int
Path = Annotated[str, Field(min_length=1, max_length=4096)]


class Refusal(Exception):
    """An answer of a status of 400 or more; ``retry`` is in seconds."""

    def __init__(self, status: int, error: str, retry: int | None = None):
        super().__init__(error)
        self.status, self.error, self.retry = status, error, retry


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _either(one: str, other: str) -> Any:
    """A check that a body has one of two fields."""

    def check(body: Any) -> Any:
        if (getattr(body, one) is None) == (getattr(body, other) is None):
            raise ValueError(f"wanted either `{one}` or `{other}`")
        return body

    return model_validator(mode="after")(check)


class Ask(_Body):
    """A request for a list. It has either a history or a user."""

    history: Annotated[list[Title], Field(max_length=HISTORY)] | None = None
    """Titles, oldest first; empty: the most popular titles."""
    user: User | None = None
    """One of the service's table of histories; others get the most popular titles."""
    k: Annotated[int, Field(ge=1, le=K)] = 10
    allow: Annotated[list[Title], Field(min_length=1, max_length=TITLES)] | None = None
    """Titles that the list may hold, by default all of the catalogue that this version allows."""
    exclude: Annotated[list[Title], Field(max_length=TITLES)] = []
    exclude_history: bool = True
    policy: Path | None = None
    """The policy that is to answer: the one that is served, or the one before it."""
    explore: Explore | None = None
    """`gumbel` draws the list by the policy's probabilities, `none` takes the best titles; default: the service's."""
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    """Of the draw, by default a new one: with the same seed the same request has the same list."""

    _one = _either("history", "user")


class Item(_Body):
    item: int
    """Number in the catalogue."""
    title: str
    rank: int
    logprob: float | None
    """log P(title + EOS | prompt) in nats, of a drawn list over the titles that it may hold; null in a fallback."""
    inclusion: float | None
    """The probability that the list holds this title, given its threshold; null unless the list was drawn."""


class Answer(_Body):
    """A list, best title first or as it was drawn, and the version that made it."""

    id: str
    """Names the list to `/outcome`."""
    items: list[Item]
    policy: str
    catalogue: str
    version: int
    fallback: bool
    """Whether these are the most popular titles, since there is no history."""
    seed: int | None
    """Of the draw; null unless the list was drawn."""
    threshold: float | None
    """The largest perturbed log-probability that is not in the drawn list; null where nothing is left out."""


class Outcome(_Body):
    """The title that a user chose after a list; the list is named by its id, or is the user's last one."""

    id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    user: User | None = None
    title: Title

    _one = _either("id", "user")


class Counted(_Body):
    """An outcome that was counted."""

    hit: bool
    """Whether the list held the title."""
    policy: str


class Row(_Body):
    title: Title
    popularity: Annotated[int, Field(ge=0, le=1 << 60)] = 0


class NewCatalogue(_Body):
    """Another catalogue, by its rows or by a Parquet or CSV file that the service can read."""

    rows: Annotated[list[Row], Field(min_length=1)] | None = None
    file: Path | None = None

    _one = _either("rows", "file")


class NewPolicy(_Body):
    """Another policy: a run's folder, a policy of a run, or a Hugging Face folder or hub id."""

    policy: Path
    template: Annotated[str, Field(pattern="^(auto|chat|instruct|compact)$")] = "auto"


class Eligible(_Body):
    """Which titles of the catalogue lists may hold from now on; by default all."""

    allow: list[Title] | None = None
    exclude: list[Title] = []


class Rollback(_Body):
    """Back to a former version, by default the one before."""

    to: Annotated[int, Field(ge=1, le=1 << 60)] | None = None


class Changed(_Body):
    """The version that is served now."""

    version: int
    policy: str
    catalogue: str
    items: int
    eligible: int


def reasons(errors: Any) -> str:
    """Return pydantic's errors as one line, without the values of the request."""
    found = [f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}"[:300] for one in errors]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
