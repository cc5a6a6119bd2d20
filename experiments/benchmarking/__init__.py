"""The parts of ``experiments.benchmark``: programs, measurements and subjects."""
