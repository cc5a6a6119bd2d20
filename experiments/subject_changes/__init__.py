"""The texts of ``experiments.subjects``."""
