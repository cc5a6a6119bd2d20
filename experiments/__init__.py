"""Launchers: one a study, each run as ``python -m experiments.NAME``."""
