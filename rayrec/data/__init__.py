"""Floor 1: raw files in, typed tables of examples out."""

from rayrec.data.dataset import Dataset, load

__all__ = ["Dataset", "load"]
