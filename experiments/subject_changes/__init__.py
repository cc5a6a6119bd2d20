"""The parts of ``experiments.subjects``: its texts."""
