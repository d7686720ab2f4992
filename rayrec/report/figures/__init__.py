"""The pictures of a report, as SVG text: no window, no global state, and the same bytes for the same numbers."""

from rayrec.report.figures.quality import curves, effect, genre_bars, methods, tradeoff
from rayrec.report.figures.work import lanes, training

__all__ = ["curves", "effect", "genre_bars", "lanes", "methods", "tradeoff", "training"]
