"""The generation lane: engine actors, and what is asked of them."""
