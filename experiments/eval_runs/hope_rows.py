"""Variants of Hope: Table 6 (ablation), Figure 7 (numbers of levels) and Table 5 (formal languages) of the paper."""

from typing import Any

ADAPTIVE = ("key", "value", "query", "eta", "alpha")
PAPER: dict[str, Any] = {"delta": True, "momentum": True, "adaptive": ADAPTIVE, "shrinkage": False}


def _row(fields: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    return {"model": "hope", "mixer_options": PAPER | options, **(fields or {})}


def _without(name: str) -> dict[str, Any]:
    return _row(adaptive=tuple(memory for memory in ADAPTIVE if memory != name))


ROWS = {
    "hope_paper": _row(),
    "without_dgd": _row(delta=False),
    "without_momentum": _row(momentum=False),
    "without_retention": _row(alpha=1.0),
    "without_cms": _row({"cms_periods": (1,)}),
    "without_key_memory": _without("key"),
    "without_value_memory": _without("value"),
    "without_query_memory": _without("query"),
}
TABLE_6 = ("12.24", "13.41", "13.58", "13.71", "13.04", "13.77", "13.90", "12.19")  # perplexities


def _levels(*periods: int) -> dict[str, Any]:
    """Hope with CMS blocks that learn in context, each once every so many tokens."""
    return {"model": "hope", "cms_periods": periods, "cms_regime": "meta"}


# One level is Hope's memories alone; each further one is a CMS block that learns from the text that it reads.
LEVELS = {
    "levels_1": {"model": "hope", "cms_periods": (1,)},
    "levels_2": _levels(32),
    "levels_3": _levels(32, 128),
    "levels_4": _levels(32, 128, 512),
}
# Two such blocks, the slower one ever slower
LOWEST = {f"lowest_{period}": _levels(32, period) for period in (64, 256, 512)}

SIGNED = ("hard_tanh", 0.0)  # a retention from -1 to 1
# Equal steps count exactly. Without a delta term allow_neg_eigval doubles those of the last layer, whose sums count.
HEBBIAN = {"objective": "dot_product", "adaptive": (), "eta": 1.0, "alpha": SIGNED, "allow_neg_eigval": True}
LANGUAGE_ROWS: dict[str, dict[str, Any]] = {
    "hope": {"mixer_options": HEBBIAN},
    "hope_delta": {"model": "hope", "mixer_options": {"allow_neg_eigval": True, "delta": True}},
    "linear_attention_signed": {"model": "linear_attention", "mixer_options": {"alpha": SIGNED}},
    "transformer": {"mixer_options": {"use_rope": False}},
}
