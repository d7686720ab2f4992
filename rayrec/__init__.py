"""Tunes language-model recommenders by self-play, and recommends with them.

`Recommender` opens a tuned policy; `tune` does the run of a `Config`, as jobs/sprec.py does.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # At first use: torch and Ray take seconds to import.
    if name == "Config":
        from rayrec.config import Config

        return Config
    if name == "Recommender":
        from rayrec.recommend import Recommender

        return Recommender
    if name == "tune":
        from rayrec.driver.session import run

        return run
    raise AttributeError(f"module 'rayrec' has no attribute {name!r}")
