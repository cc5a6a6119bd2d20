"""What ``experiments.benchmark`` times."""
