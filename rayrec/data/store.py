"""Folders in object stores, as pyarrow opens them: s3://, gs://, file:// and others."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

#: Options that an address may have; pyarrow accepts keys there as well.
_OPTIONS = {"region", "endpoint_override", "scheme", "allow_bucket_creation"}


def is_url(path: str) -> bool:
    """Whether ``path`` is an address and no path of this machine."""
    return "://" in path


def open_url(url: str) -> tuple[Any, str]:
    """Return the pyarrow filesystem of ``url``, and the path in it."""
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(url)


def check_url(flag: str, url: str) -> None:
    """Refuse an address, the value of ``flag``.

    Raises:
        ValueError: pyarrow knows no such store or cannot reach it, or the address holds a secret.
    """
    parts = urlsplit(url)
    given = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if "@" in url or given - _OPTIONS or parts.fragment:
        raise ValueError(
            f"{flag} has a user or a key in its address, or a setting that may be one, and would be written down "
            f"with it. Leave only {', '.join(sorted(_OPTIONS))} there, and give keys in the environment: "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role."
        )
    try:
        open_url(url)
    except (ValueError, OSError, NotImplementedError) as error:
        raise ValueError(
            f"{flag} {url}: {error}. Name a folder, or a store as s3://BUCKET/FOLDER, gs:// or file://."
        ) from error


def copy_of(url: str) -> Path:
    """Return the folder of this node's copies of what ``url`` has."""
    home = os.environ.get("RAYREC_COPIES") or Path.home() / ".cache" / "rayrec"
    return Path(home) / hashlib.sha256(url.encode()).hexdigest()[:16]
