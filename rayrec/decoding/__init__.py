"""Decoding on any Hugging Face causal LM: catalogue-constrained beams, and greedy, sampled and free-beam text."""

from rayrec.decoding.beam import Prior, beam_search
from rayrec.decoding.generate import Generated, generate
from rayrec.decoding.trie import Trie

__all__ = ["Generated", "Prior", "Trie", "beam_search", "generate"]
