"""Recommendations from a tuned policy."""

from rayrec.recommend.recommender import Recommender

__all__ = ["Recommender"]
