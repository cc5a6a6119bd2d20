"""What the launchers of the evaluation suite share."""
