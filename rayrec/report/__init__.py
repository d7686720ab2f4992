"""Output for people: the terminal, the report and the trackers."""
