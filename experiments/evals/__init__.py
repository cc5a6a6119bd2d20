"""Launchers of the evaluation suite: one for each table or task of the paper."""
