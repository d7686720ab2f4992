"""Yelp's open data: yelp_academic_dataset_review.json (user_id, business_id, stars, date) and _business.json (name)."""

from pathlib import Path

from rayrec.data.sources import files
from rayrec.data.sources.objects import read_table
from rayrec.data.sources.reading import Raw, Rejects, interactions, items

_NAMES = {"user_id": "user", "business_id": "item", "stars": "rating", "date": "timestamp"}


def read(folder: Path) -> Raw:
    """Read reviews; businesses of one name are one item, and their categories are the genres."""
    rejects = Rejects()
    path = files.one(folder, "yelp_academic_dataset_business.json")
    names = {"business_id": "item", "name": "title", "categories": "genres"}
    known, item_file = items(read_table(path, rejects, names, optional=("genres",)), path.name, rejects), path.name
    path = files.one(folder, "yelp_academic_dataset_review.json")
    plays = read_table(path, rejects, _NAMES, optional=("rating",))
    return Raw(known, item_file, rejects, interactions=interactions(plays, known, path.name, rejects))
