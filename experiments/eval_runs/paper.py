"""Figures of the paper (Behrouz et al., Nested Learning, 2025), in percent, by our names of models and subtasks."""


def _table(columns: str, rows: dict[str, str]) -> dict[str, dict[str, str]]:
    return {model: dict(zip(columns.split(), row.split(), strict=True)) for model, row in rows.items()}


# Table 4, MAD.
MAD = _table(
    "compression recall fuzzy_recall copying memorization",
    {
        "transformer": "49.4 100 47.9 96.2 83.7",
        "rwkv7": "45.1 100 32.8 95.6 82.2",
        "comba": "46.3 100 32.8 96.4 82.9",
        "titans": "49.8 100 50.0 99.4 83.4",
        "hope": "51.2 100 52.1 99.7 85.2",
    },
)

# Table 5: whole strings right of the training's lengths, and of longer ones.
FORMAL_LANGUAGES = _table(
    "parity aa abab anbn anbncn shuffle_2",
    {
        "lstm": "100/100 100/100 100/100 100/100 100/100 100/100",
        "transformer": "46.4/0.0 0/0 0/0 100/100 100/100 100/100",
        "linear_attention": "78.1/0.0 0/0 0/0 100/100 100/100 100/100",
        "delta_net": "98.2/10.1 0/0 0/0 100/100 100/100 100/100",
        "srwm": "100/100 100/100 100/100 100/100 100/100 100/100",
        "hope": "100/100 100/100 100/100 100/100 100/100 100/100",
    },
)
