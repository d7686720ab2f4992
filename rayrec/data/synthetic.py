"""A made-up film log whose true next-item probabilities are known, so that a method's claims can be checked.

Films come in series and alone, in eight genres whose words stand in the titles. A user leaves the last film for its
sequel with probability :data:`FOLLOW`; else popularity (a power law) times the user's taste decides. Nothing is watched
twice within ``history`` films, and nothing before them matters: the process is exactly as long-sighted as a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from rayrec.data import schema
from rayrec.data.sources.reading import Raw, Rejects

ITEMS, USERS = 600, 1300
FOLLOW = 0.5
#: Seconds: users join within three years and watch a film about every two weeks.
YEARS, PAUSE = 3 * 365 * 86400, 14 * 86400
#: Interactions of a user, from and to; the shortest pasts give no window of ten.
LENGTHS = (8, 28)
#: Exponents of the power laws of popularity over items, and concentration of the tastes over genres.
POPULARITY, TASTE = 0.8, 0.3

WORDS = {
    "Drama": "Letter Daughter Winter Orchard Silence Harvest Promise Window",
    "Comedy": "Wedding Cousin Landlord Vacation Pancake Neighbour Parrot Honeymoon",
    "Action": "Strike Bullet Convoy Commando Pursuit Blaze Siege Vengeance",
    "Thriller": "Witness Alibi Cipher Stranger Ransom Shadow Verdict Hostage",
    "Romance": "Kiss Garden Serenade Summer Waltz Valentine Moonlight Heart",
    "Sci-Fi": "Orbit Android Nebula Signal Colony Starship Quantum Reactor",
    "Fantasy": "Dragon Crown Wizard Prophecy Enchanter Griffin Amulet Kingdom",
    "Horror": "Crypt Scream Haunting Coffin Revenant Cellar Nightmare Fog",
}
FORMS = ("The {a} {n}", "{a} {n}", "{a} {n}, The", "My {a} {n}", "Last {n}", "{n} of the {m}")
FORMS += ("The {n} and the {m}", "{n}, {m} & Co.")
ADJECTIVES = "Silver Broken Hidden Golden Distant Crimson Quiet Endless Lost Secret Burning Frozen Little Blue"
#: Titles as hard as real ones: quotes, line breaks, separators of file formats, letters of other scripts.
ODD = ('The "Silent" {n}', '"{a}", She Said: {n}', "Café {n}", "{n} à la Carte", "Девушка и {n}", "東京 {n}")
ODD += ("{n}: Part | Whole", "{a}\n{n}", "Straße nach {n}", "¿Dónde está {n}?")
SEQUELS = ("{t} 2", "{t} 3", "{t} 4"), ("{t} Returns", "{t} Forever", "{t}: The End"), ("{t} II", "{t} III", "{t} IV")


@dataclass(frozen=True, eq=False)
class Truth:
    """The process: ``sequel`` (I,), the next film of a series or -1; ``weights`` (U, I), preferences without a past."""

    titles: list[str]
    users: list[str]
    sequel: np.ndarray
    weights: np.ndarray
    history: int

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        """Items by title, and rows by user."""
        items, users = ({name: number for number, name in enumerate(names)} for names in (self.titles, self.users))
        return items, users

    def step(self, users: np.ndarray, past: np.ndarray) -> np.ndarray:
        """Return p(next item) (B, I) for user rows (B,) and their last items (B, ≤ history), oldest first."""
        rows = np.arange(len(users))
        p_BI = self.weights[users].copy()
        p_BI[rows[:, None], past] = 0.0
        p_BI /= p_BI.sum(axis=1, keepdims=True)
        if past.shape[1]:
            following = self.sequel[past[:, -1]]
            follows = (following >= 0) & ~(past == following[:, None]).any(axis=1)
            p_BI[follows] *= 1 - FOLLOW
            p_BI[rows[follows], following[follows]] += FOLLOW
        return p_BI

    def probabilities(self, history_titles: Sequence[str], user: str) -> np.ndarray:
        """Return the true p(next item) (I,) of ``user`` after ``history_titles``, oldest first; ValueError: unknown."""
        past, (items, users) = list(history_titles)[-self.history :], self._numbers
        if user not in users or any(title not in items for title in past):
            raise ValueError(f"Found user {user!r} and history {past}, wanted both from this synthetic data set.")
        return self.step(np.array([users[user]]), np.array([[items[title] for title in past]], np.int64))[0]


def _series(rng: np.random.Generator, number: int) -> tuple[list[str], list[str]]:
    """Return the titles of one series (or one film) and its genres; ``number`` makes the odd forms take turns."""
    main = rng.choice(len(WORDS), p=np.array([24, 20, 14, 12, 10, 8, 7, 5]) / 100)
    names = list(WORDS)
    genres = [names[main]]
    if rng.random() < 0.35:
        genres.append(names[rng.choice(np.delete(np.arange(len(names)), main))])
    noun, other = rng.choice(WORDS[genres[0]].split(), 2, replace=False)
    form = ODD[number % len(ODD)] if number < 2 * len(ODD) else rng.choice(FORMS)
    first = form.format(a=rng.choice(ADJECTIVES.split()), n=noun, m=other)
    parts = int(rng.choice([1, 2, 3, 4], p=[0.55, 0.2, 0.15, 0.1]))
    titles = [first, *(form.format(t=first) for form in SEQUELS[rng.integers(len(SEQUELS))][: parts - 1])]
    if rng.random() < 0.5:
        years = rng.integers(1950, 2015) + np.cumsum(rng.integers(1, 4, parts))
        titles = [f"{title} ({year})" for title, year in zip(titles, years, strict=True)]
    return titles, genres


def _catalogue(rng: np.random.Generator) -> tuple[list[str], list[list[str]], np.ndarray, np.ndarray]:
    """Return titles, genres, the sequel of each item or -1 (I,), and base popularity (I,)."""
    titles: list[str] = []
    genres: list[list[str]] = []
    sequel, part = [], []
    number = 0
    while len(titles) < ITEMS:
        names, kinds = _series(rng, number)
        number += 1
        if len(titles) + len(names) > ITEMS or set(names) & set(titles):
            continue
        sequel += [*range(len(titles) + 1, len(titles) + len(names)), -1]
        part += range(len(names))
        titles += names
        genres += [kinds] * len(names)
    popularity = (1.0 + rng.permutation(ITEMS)) ** -POPULARITY * 0.4 ** np.array(part)
    return titles, genres, np.array(sequel), popularity


def generate(history: int = 10, seed: int = 0) -> Raw:
    """Make 600 films, 1,300 users and about 23,000 interactions; the process remembers ``history`` films."""
    rng = np.random.default_rng(seed)
    titles, genres, sequel, popularity = _catalogue(rng)
    member = np.array([[genre in kinds for genre in WORDS] for kinds in genres], float)
    member /= member.sum(axis=1, keepdims=True)
    taste = rng.dirichlet(np.full(len(WORDS), TASTE), USERS)
    liking = taste @ member.T
    users = [f"user-{row:04d}" for row in range(USERS)]
    truth = Truth(titles, users, sequel, (liking + 0.02) * popularity, history)
    lengths = rng.integers(LENGTHS[0], LENGTHS[1] + 1, USERS)
    seen = np.empty((USERS, 0), np.int64)  # the items that every user watches
    for _ in range(LENGTHS[1]):
        cumulative = truth.step(np.arange(USERS), seen[:, -history:]).cumsum(axis=1)
        draw = rng.random((USERS, 1)) * cumulative[:, -1:]
        seen = np.concatenate([seen, (cumulative <= draw).sum(axis=1, keepdims=True)], axis=1)
    time = rng.uniform(0, YEARS, (USERS, 1)) + rng.exponential(PAUSE, seen.shape).cumsum(axis=1)
    row, place = np.nonzero(np.arange(seen.shape[1]) < lengths[:, None])
    item = seen[row, place]
    stars = np.clip(np.round(2.5 + 3 * liking[row, item] + rng.normal(0, 0.7, len(row))), 1, 5)
    frame = pl.DataFrame(
        {
            "user": np.array(users)[row],
            "title": np.array(titles, object)[item],
            "rating": stars.astype(np.float32),
            "timestamp": 1_500_000_000 + time[row, place].astype(np.int64),
        },
        schema_overrides={"title": pl.String},
    )
    frame = frame.sort("timestamp", maintain_order=True)
    table = schema.check(frame.to_arrow(), schema.INTERACTIONS, "synthetic interactions")
    films = pl.DataFrame({"item": [str(number) for number in range(ITEMS)], "title": titles, "genres": genres})
    return Raw(films, "synthetic items", Rejects(), interactions=table, truth=truth)
