"""Policies and the sequential recommenders they are compared with."""
