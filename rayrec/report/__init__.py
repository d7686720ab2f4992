"""What a person sees: the terminal, the report and the trackers."""
