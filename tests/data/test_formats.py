"""Files in exactly the forms in which people download them, a few rows of each."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from rayrec.data import load
from rayrec.data.settings import DataConfig

#: User u meets items a b c a b c at rising times.
PLAYS = [(f"u{n // 6}", "abc"[n % 3], 1 + n % 5, 1_000_000_000 + 86_400 * n) for n in range(6)]


def put(folder: Path, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return DataConfig(data=str(folder), history=2)


def lines(rows, write=json.dumps):
    return "".join(write(row) + "\n" for row in rows)


def by_time(made):
    """The targets of all splits, in order, and their ratings."""
    rows = [row for split in (made.train, made.valid, made.test) for row in split.to_pylist()]
    return [row["target"] for row in rows], [row["target_rating"] for row in rows]


def table(rows, mark, quote=str):
    return "".join(mark.join(map(quote, row)) + "\n" for row in rows)


U_ITEM = "a|A é (1995)|01-Jan-1995||http://x|0|1|0|0|0|1|" + "|".join("0" * 13) + "\n"
U_ITEM += "".join(f"{i}|{i.upper()}|||http://x|1|" + "|".join("0" * 18) + "\n" for i in "bc")
MOVIES = "movieId,title,genres\na,A é (1995),Action|Comedy\nb,B,(no genres listed)\nc,C,(no genres listed)\n"
RATINGS = "userId,movieId,rating,timestamp\n" + table(PLAYS, ",")
MOVIES_DAT = "a::A é (1995)::Action|Comedy\nb::B::\nc::C::\n"


@pytest.mark.parametrize(
    ("source", "files"),
    [
        (
            "movielens-100k",
            {"u.data": table(PLAYS, "\t"), "u.item": U_ITEM.encode("latin-1"), "u.genre": "unknown|0\n"},
        ),
        ("movielens-dat", {"ratings.dat": table(PLAYS, "::"), "movies.dat": MOVIES_DAT.encode("latin-1")}),
        ("movielens-dat", {"ratings.dat": table(PLAYS, "::"), "movies.dat": MOVIES_DAT, "tags.dat": ""}),
        ("movielens", {"ratings.csv": RATINGS, "movies.csv": MOVIES, "links.csv": "", "tags.csv": ""}),
        ("movielens", {"ratings.csv.gz": RATINGS, "movies.csv.gz": MOVIES}),
    ],
    ids=["100k", "1M", "10M", "20M", "packed"],
)
def test_movielens_of_every_size(tmp_path, source, files):
    made = load(put(tmp_path, files))
    assert made.source == source
    assert made.catalogue.titles == ["A é (1995)", "B", "C"]
    assert made.catalogue.genres == [["Action", "Comedy"], [], []]
    assert made.catalogue.ids == [["a"], ["b"], ["c"]]
    assert by_time(made) == (["C", "A é (1995)", "B", "C"], [3, 4, 5, 1])


def reviews(year):
    if year == 2023:
        names = ("user_id", "parent_asin", "rating", "timestamp")
        more = {"title": "Nice", "text": "…", "images": [], "asin": "z", "verified_purchase": True}
        return [dict(zip(names, (u, i, float(r), t * 1000), strict=True)) | more for u, i, r, t in PLAYS]
    names = ("reviewerID", "asin", "overall", "unixReviewTime")
    more = {"reviewerName": "n", "helpful": [0, 0], "summary": "It's", "reviewTime": "01 30, 2014"}
    return [dict(zip(names, (u, i, float(r), t), strict=True)) | more for u, i, r, t in PLAYS]


META = {
    2014: [{"asin": i, "title": f"It's {i}", "price": 1.0, "categories": [["All", "x"], ["All", "y"]]} for i in "abcd"],
    2018: [{"asin": i, "title": f"It's {i}", "category": ["All", "x", "y"], "also_buy": []} for i in "abcda"],
    2023: [{"parent_asin": i, "title": f"It's {i}", "categories": ["All", "x", "y"], "price": None} for i in "abcd"],
}
HEADER = "user_id,parent_asin,rating,timestamp\n"


@pytest.mark.parametrize(
    ("year", "meta", "name", "rows"),
    [
        (2014, "meta_Beauty.json.gz", "reviews_Beauty_5.json.gz", lines(reviews(2014))),
        (2014, "meta_Beauty.json.gz", "ratings_Beauty.csv", table(PLAYS, ",")),
        (2018, "meta_All_Beauty.json.gz", "All_Beauty_5.json.gz", lines(reviews(2018))),
        (2018, "meta_All_Beauty.json.gz", "All_Beauty.csv", table([(i, u, r, t) for u, i, r, t in PLAYS], ",")),
        (2023, "meta_All_Beauty.jsonl.gz", "All_Beauty.jsonl.gz", lines(reviews(2023))),
        (
            2023,
            "meta_All_Beauty.jsonl",
            "All_Beauty.csv.gz",
            HEADER + table([(*r[:3], r[3] * 1000) for r in PLAYS], ","),
        ),
    ],
    ids=["2014", "2014-ratings", "2018", "2018-ratings", "2023", "2023-ratings"],
)
def test_amazon_reviews_of_every_year(tmp_path, year, meta, name, rows):
    write = repr if year == 2014 else json.dumps  # the metadata of 2014 is Python
    made = load(put(tmp_path, {meta: lines(META[year], write), name: rows}))
    assert made.source == "amazon-reviews"
    assert made.catalogue.titles == ["It's a", "It's b", "It's c"]
    assert made.catalogue.genres == [["x", "y"]] * 3
    assert by_time(made) == (["It's c", "It's a", "It's b", "It's c"], [3, 4, 5, 1])
    assert (made.counts["items_without_reviews"], made.counts["items_again"]) == (1, year == 2018)
    assert made.train["timestamp"].to_pylist()[0] == PLAYS[2][3]


def test_amazon_reviews_want_one_file(tmp_path):
    files = {"meta_A.json": lines(META[2018]), "A.json": lines(reviews(2018)), "A.csv": table(PLAYS, ",")}
    with pytest.raises(ValueError, match=r"found \['A.json', 'A.csv'\] beside meta_A.json, wanted one .*Leave one"):
        load(put(tmp_path, files))


def test_goodreads(tmp_path):
    books = [{"book_id": i, "title": i.upper(), "isbn": "", "popular_shelves": [{"count": "3"}]} for i in "abcd"]
    genres = [{"book_id": "a", "genres": {"fantasy, paranormal": 31, "fiction": 2}}, {"book_id": "d", "genres": {}}]
    days = [
        f"{day} Sep {9 + n:02d} 01:46:40 +0000 2001" for n, day in enumerate(("Sun", "Mon", "Tue", "", "Thu", "Fri"))
    ]
    days[3] = "Tue Sep 11 18:46:40 -0700 2001"
    shelves = [
        {"user_id": "u", "book_id": i, "is_read": n > 3, "rating": n, "date_added": day, "read_at": ""}
        for n, (i, day) in enumerate(zip("abcabc", days, strict=True))
    ]
    files = {"goodreads_books_poetry.json.gz": lines(books), "goodreads_interactions_poetry.json.gz": lines(shelves)}
    made = load(put(tmp_path, files | {"goodreads_book_genres_initial.json.gz": lines(genres)}))
    assert made.source == "goodreads" and made.catalogue.titles == ["A", "B", "C"]
    assert made.catalogue.genres == [["fantasy, paranormal", "fiction"], [], []]
    assert by_time(made) == (["C", "A", "B", "C"], [2, 3, 4, 5])
    assert made.counts["rows_unrated"] == 1  # rating 0
    assert [made.train["timestamp"].to_pylist()[n] for n in (0, 1)] == [PLAYS[2][3], PLAYS[3][3]]


def test_steam_reviews(tmp_path):
    def python2(row):
        return "{" + ", ".join(f"u'{k}': {'u' if isinstance(v, str) else ''}{v!r}" for k, v in row.items()) + "}"

    games = [{"id": i, "title": f"It's {i}", "genres": ["Action", "RPG"], "early_access": False} for i in "abc"]
    games += [{"id": "d", "app_name": "D"}]
    played = [
        {"username": "u", "hours": 1.5 + n, "product_id": i, "date": f"2017-12-{17 + n}", "text": 'says "no"'}
        for n, i in enumerate("abcabc")
    ]
    del played[5]["hours"]
    made = load(
        put(tmp_path, {"steam_reviews.json.gz": lines(played, python2), "steam_games.json.gz": lines(games, repr)})
    )
    assert made.source == "steam-reviews" and made.catalogue.titles == ["It's a", "It's b", "It's c"]
    # two plays of a and b: 5 (1 - 0.5) / 2 = 1.25, 5 (2 - 0.5) / 2 = 3.75, whole part and 1; one of c: 5 * 0.5 = 2.5
    assert by_time(made) == (["It's c", "It's a", "It's b", "It's c"], [3, 4, 4, None])
    assert made.counts["items_without_reviews"] == 1


def test_yelp(tmp_path):
    shops = [{"business_id": i, "name": i.upper(), "city": "X", "categories": "Food, Tea & Coffee"} for i in "abc"]
    shops[1]["categories"] = None
    rows = [
        {"review_id": str(n), "user_id": u, "business_id": i, "stars": float(r), "date": f"2018-07-07 22:09:1{n}"}
        for n, (u, i, r, _) in enumerate(PLAYS)
    ]
    name = "yelp_academic_dataset_{}.json".format
    made = load(put(tmp_path, {name("business"): lines(shops), name("review"): lines(rows)}))
    assert made.source == "yelp" and made.catalogue.genres == [["Food", "Tea & Coffee"], [], ["Food", "Tea & Coffee"]]
    assert by_time(made) == (["C", "A", "B", "C"], [3, 4, 5, 1])
    assert made.told["genres"] == "separated by ','"


def test_hetrec(tmp_path):
    files = {
        "artists.dat": "id\tname\turl\tpictureURL\n" + "".join(f"{i}\t{i.upper()}\thttp://x\t\n" for i in "abc"),
        "user_artists.dat": "userID\tartistID\tweight\n" + table([(u, i, 900 - t) for u, i, _, t in PLAYS], "\t"),
        "tags.dat": "tagID\ttagValue\n1\tchillout\n2\té\n3\tpop\n4\trare\n".encode("latin-1"),
        "user_taggedartists.dat": "userID\tartistID\ttagID\tday\tmonth\tyear\n"
        + "".join(f"{n}\ta\t{tag}\t1\t4\t2009\n" for n, tag in enumerate((2, 2, 3, 1, 4))),
    }
    files["tags.dat"] += b"5\ttoo\tmany\n"
    made = load(replace(put(tmp_path, files), bad_rows="drop"))
    assert (made.counts["rows_read"], made.counts["rows_rejected"]) == (len(PLAYS), 1)
    assert made.source == "hetrec" and made.catalogue.genres == [["é", "chillout", "pop"], [], []]
    assert by_time(made)[0] == ["C", "A", "B", "C"]
    assert "no known scale: rows count as unrated" in made.told["ratings"]


def test_minionerec(tmp_path):
    header = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"

    def rows(split, target):
        good = f"""{split},"['A, ""x""', 'B']","C","['1', '2']",{target},"['<a_1>', '<a_2>']",<a_3>\n"""
        return header + good + f"""{split},"['A']",C,[1],{target},"['<a_1>']",<a_3>\n"""

    name = "Industrial_and_Scientific_5_2016-10-2018-11"
    files = {f"{split}/{name}.csv": rows(split, item) for split, item in (("train", 3), ("valid", 2))}
    files[f"test/{name}.csv"] = rows("test", 1) + "v,[],A,[],1,[],x\nv,['Z'],A,['9'],1,[],x\n"
    files[f"info/{name}.txt"] = '<a_1><b_2>\tA, "x"\t1\n<a_2>\tB\t2\n<a_3>\tC\t3\nbad\n'
    config = put(tmp_path, files)
    with pytest.raises(ValueError, match="found 3 bad rows"):
        load(config)
    made = load(DataConfig(data=str(tmp_path), history=2, bad_rows="drop"))
    assert made.source == "minionerec" and made.catalogue.ids == [["1"], ["2"], ["3"]]
    assert made.train["history"].to_pylist() == [['A, "x"', "B"], ['A, "x"']]
    assert made.test["target"].to_pylist() == ['A, "x"'] * 2 and made.test["user"].to_pylist() == ["test"] * 2


def test_recbole_lists_of_genres(tmp_path):
    items = (
        "item_id:token\ttitle:token_seq\tcategories:token_seq\na\tA\t'Beauty', 'Hair Care'\nb\tB\t'Beauty'\nc\tC\t\n"
    )
    plays = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + table(PLAYS, "\t")
    made = load(put(tmp_path, {"x.item": items, "x.inter": plays}))
    assert made.catalogue.genres == [["Beauty", "Hair Care"], ["Beauty"], []]
