"""Figures of the paper (Behrouz et al., Nested Learning, 2025), in percent, by our names of models and subtasks."""


def _table(columns: str, rows: dict[str, str]) -> dict[str, dict[str, str]]:
    return {model: dict(zip(columns.split(), row.split(), strict=True)) for model, row in rows.items()}


# Table 1, at 4K, 8K and 16K tokens. Which variant of multi-key retrieval the paper ran is not certain.
NIAH = _table(
    "s_1 s_2 s_3 mk_1 mq mv",
    {
        "transformer": "88.6/76.4/79.8 100/98.8/94.2 78.0/69.2/40.8 79.4/83.0/61.4 58.9/48.0/29.8 37.5/34.1/21.5",
        "hope_attention": "100/100/100 100/98.4/94.4 76.8/68.8/42.4 80.2/84.8/60.8 60.4/47.8/30.6 35.2/34.4/24.8",
        "rwkv7": "100/100/99.6 93.8/44.8/12.6 63.8/13.2/5.8 21.4/18.8/9.6 20.4/14.8/8.6 16.2/13.4/6.8",
        "comba": "100/100/99.4 92.6/47.2/13.4 62.4/13.8/7.4 21.4/19.4/8.2 21.8/15.2/6.4 16.5/13.5/7.2",
        "dla": "96.4/71.2/44.0 79.6/42.6/28.2 18.2/8.8/4.0 27.4/20.0/11.8 26.4/22.0/6.4 25.6/12.8/9.6",
        "titans": "100/100/100 99.6/84.6/75.4 74.2/42.8/21.2 26.4/23.6/8.2 22.8/19.8/9.4 24.6/15.1/8.2",
        "hope": "100/100/100 99.2/88.4/78.2 73.2/46.2/24.8 29.4/24.8/14.8 31.7/24.8/14.2 31.4/17.2/11.4",
    },
)

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
