"""The parts of ``experiments.optimizers``: its subjects, their problems, and the optimizers."""
