"""The process that a user starts: it checks, plans, and runs the loop."""
