"""Floor 1: raw files in, typed tables of examples out."""

from rayrec.data.dataset import Dataset, content_hash, load

__all__ = ["Dataset", "content_hash", "load"]
