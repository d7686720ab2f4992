"""The style of every picture: Okabe and Ito's colours for the colour-blind, markers for a grey print, page-wide SVG."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from rayrec.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, QUIET = "#333333", "#777777"
#: Colour and marker of the list lengths, of the decoders and so on, in order.
SERIES = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
#: Colours of the bars of policies or methods.
BARS = ("#B9C3CC", BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
STYLE = files("rayrec.report") / "templates" / "figures.mplstyle"


def draw(size: tuple[float, float], paint: Callable[[Figure], None], margins: tuple[float, float, float, float]) -> str:
    """Return the SVG of a figure of ``size`` inches that ``paint`` fills; ``margins``: left, top, right, bottom."""
    import matplotlib
    from matplotlib.figure import Figure

    # The measuring font may lack glyphs, since the reader's browser sets the text.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    (width, height), (left, top, right, bottom) = size, margins
    with as_file(STYLE) as style, matplotlib.rc_context(fname=style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size)
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        paint(figure)
        buffer = io.StringIO()
        none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=none, bbox_inches=_whole(figure))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Inside a page the picture takes the page's width, and group names would clash between pictures.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    return re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r' height="[^"]*pt"', "", text, count=1), count=1)


def _whole(figure: Figure) -> Any:
    """The canvas in inches, or more where a long name would leave it."""
    from matplotlib.transforms import Bbox

    canvas, drawn = figure.bbox_inches, figure.get_tightbbox()
    return canvas if drawn is None else Bbox.union([canvas, drawn.padded(0.06)])


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Name ``handles`` in one line above the panels, at the right."""
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=len(handles))


def value(row: Row, key: str) -> float:
    """Return a number of a row, NaN where it has none."""
    found = row.get(key)
    return math.nan if found is None else float(found)
