"""Methods side by side: one table from many runs."""
