"""The subjects of ``experiments.optimizers``."""
