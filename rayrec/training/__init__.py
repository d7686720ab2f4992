"""The training lane: one group of workers, phase after phase."""
