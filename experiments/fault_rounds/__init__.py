"""The parts of ``experiments.faults``: the run that is disturbed, the faults, and the rounds of them."""
