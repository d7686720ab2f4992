"""Decoding on any Hugging Face causal LM: catalogue-constrained beams, and greedy, sampled and free-beam text."""

from rayrec.decoding.beam import Found, Prior, beam_search, measured_search
from rayrec.decoding.generate import Generated, generate
from rayrec.decoding.gumbel import Sample, sample_titles
from rayrec.decoding.scores import score_answers, titles_of
from rayrec.decoding.trie import Legal, Trie

__all__ = [
    "Found",
    "Generated",
    "Legal",
    "Prior",
    "Sample",
    "Trie",
    "beam_search",
    "generate",
    "measured_search",
    "sample_titles",
    "score_answers",
    "titles_of",
]
