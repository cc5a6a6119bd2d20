"""Launchers, one for each study, each run as ``python -m experiments.NAME``."""
