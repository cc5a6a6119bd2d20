"""Scores of generated answers: values found in them (RULER), and the one right label (BABILong)."""

import re
from collections.abc import Sequence

import numpy as np


def substring_score(output: str, expected: Sequence[str]) -> float:
    """The share of the expected strings that an answer contains, from 0 to 1; case does not count.

    Examples:
        >>> from nl_jax.evaluation import substring_score
        >>> substring_score("They are 12 and 34.", ["12", "56"])
        0.5

    References:
        Hsieh et al., `RULER <https://arxiv.org/abs/2404.06654>`_, 2024: its score is the mean over samples, times 100.
    """
    return float(np.mean([text.lower() in output.lower() for text in expected]))


def label_is_right(output: str, target: str, labels: Sequence[str], question: str) -> bool:
    """Whether the first sentence of an answer names the target and no other label, those of the question aside.

    Labels are found as strings; case does not count.

    Examples:
        >>> from nl_jax.evaluation import label_is_right
        >>> label_is_right("In the garden. Or the office.", "garden", ["garden", "office"], "Where is Mary?")
        True

    References:
        Kuratov et al., `BABILong <https://arxiv.org/abs/2406.10149>`_, 2024, and its code.
    """
    first = re.split(r"[.!?\n]", output.strip().lower())[0]
    asked = question.lower()
    found = {label.lower() for label in labels if label.lower() in first and label.lower() not in asked}
    return found == {target.lower()}
