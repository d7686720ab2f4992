"""A watch on what is recommended: the metrics of lists that were shown, over time and by policy."""
