"""Converts between the ``config.json`` of Hugging Face's Llama family and `LanguageModelConfig`."""

from collections.abc import Mapping
from typing import Any

from nl_jax.errors import InputError
from nl_jax.models import LanguageModelConfig
from nl_jax.modules.mixers.rotary import BASE

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")  # values of model_type
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
CONTEXT_LENGTH = 2048  # the default's limit: a state has room for keys and values of as many tokens


def from_hf(
    given: Mapping[str, Any], place: str, *, dtype: str = "float32", context_length: int | None = None
) -> LanguageModelConfig:
    """The configuration of the same model here.

    Args:
      given: the content of ``config.json``.
      place: its path, for messages.
      dtype: type of activations and products, as in `LanguageModelConfig`.
      context_length: tokens that each token sees; None for what the model was trained with, at most ``CONTEXT_LENGTH``.
        A model with a sliding window (Mistral) never sees more than its window.

    Raises:
      InputError: for another architecture, or a part of one that this package does not have; the message names it.
    """
    _check(given, place)
    trained = given.get("max_position_embeddings") or CONTEXT_LENGTH
    length = min(trained, CONTEXT_LENGTH) if context_length is None else context_length
    if not isinstance(length, int) or length < 1:
        raise InputError(f"context_length={length!r}: expected an integer of at least 1")
    window = _window(given, place)
    kind, heads = given["model_type"], given["num_attention_heads"]
    options: dict[str, Any] = {
        "num_kv_heads": given.get("num_key_value_heads") or heads,
        "head_dim": given.get("head_dim") or given["hidden_size"] // heads,
        "bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
        "norm_epsilon": float(given.get("rms_norm_eps") or 1e-6),
        **_rope(given, place),
    }
    if window is not None:
        options["window"] = min(window, length)
    try:
        return LanguageModelConfig(
            mixer="attention" if window is None else "sliding_window_attention",
            vocab_size=given["vocab_size"],
            width=given["hidden_size"],
            num_layers=given["num_hidden_layers"],
            num_heads=heads,
            mlp_hidden=given["intermediate_size"],
            context_length=length,
            mixer_options=tuple(sorted(options.items())),
            dtype=dtype,
            tied_head=bool(given.get("tie_word_embeddings", False)),
            scaled_embedding=False,
            norm_epsilon=options["norm_epsilon"],
        )
    except TypeError as error:
        raise InputError(f"{place}: a value of another type than expected ({error})") from error


def to_hf(config: LanguageModelConfig) -> dict[str, Any]:
    """The content of ``config.json`` for a model that Hugging Face's Llama, Mistral, Qwen2 or Qwen3 can compute.

    Raises:
      InputError: for a model that none of them can compute; the message names the field.
    """
    options = dict(config.mixer_options)
    if config.mixer not in ("attention", "sliding_window_attention") or options.get("convolution"):
        raise InputError(f"mixer={config.mixer!r}: expected attention without a convolution, as Llama has")
    if not options.get("use_rope", True):
        raise InputError("use_rope=False: expected rotary positions, as Llama has")
    if len(config.cms_periods) != 1 or config.cms_variant == "independent":
        raise InputError(
            f"cms_periods={config.cms_periods}: expected one feed-forward block in each layer, as Llama has"
        )
    bias, qk_norm = options.get("bias", False), options.get("qk_norm", False)
    windowed = config.mixer == "sliding_window_attention"
    kinds = {(False, False): "mistral" if windowed else "llama", (True, False): "qwen2", (False, True): "qwen3"}
    if (bias, qk_norm) not in kinds or (windowed and (bias or qk_norm)):
        raise InputError(f"bias={bias}, qk_norm={qk_norm}, mixer={config.mixer!r}: no architecture has them together")
    epsilon = config.norm_epsilon
    if qk_norm and options.get("norm_epsilon", 1e-6) != epsilon:
        raise InputError(f"norm_epsilon={epsilon}: expected that of the queries' and keys' norms, as Qwen3 has")
    kind = kinds[bias, qk_norm]
    scaling = {name: list(v) if isinstance(v, tuple) else v for name, v in options.get("rope_scaling", ())}
    if scaling.get("rope_type") == "factors":
        raise InputError("rope_scaling: factors of each frequency, as GGUF has them, have no place in a config.json")
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": options.get("num_kv_heads") or config.num_heads,
        "head_dim": options.get("head_dim") or config.width // config.num_heads,
        "intermediate_size": config.mlp_hidden,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": epsilon,
        "rope_theta": options.get("rope_base", BASE),
        "rope_scaling": scaling or None,
        "sliding_window": options.get("window", 64) if windowed else None,
        # a scaled embedding is written scaled, and then the head is a matrix of its own
        "tie_word_embeddings": config.tied_head and not config.scaled_embedding,
        "torch_dtype": "float32",
    }


def _check(given: Mapping[str, Any], place: str) -> None:
    """Raises `InputError` for what cannot be computed here."""
    kind = given.get("model_type")
    if kind not in ARCHITECTURES:
        raise InputError(f"{place}: model_type is {kind!r}; expected one of {', '.join(ARCHITECTURES)}")
    for name in SIZES:
        if not isinstance(given.get(name), int) or isinstance(given[name], bool) or given[name] < 1:
            raise InputError(f"{place}: {name} is {given.get(name)!r}; expected an integer of at least 1")
    if given.get("quantization_config"):
        method = given["quantization_config"].get("quant_method")
        raise InputError(f"{place}: weights quantised by {method!r}; expected F32, F16 or BF16, or a GGUF file")
    wanted: dict[str, Any] = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0}
    if kind != "qwen2":  # which has biases of queries, keys and values whatever this says
        wanted["attention_bias"] = False
    for name, value in wanted.items():
        if given.get(name, value) != value:
            raise InputError(f"{place}: {name} is {given[name]!r}; expected {value!r}")


def _window(given: Mapping[str, Any], place: str) -> int | None:
    """The sliding window of all layers; None where every layer sees the whole context."""
    window = given.get("sliding_window")
    used = given.get("use_sliding_window", given["model_type"] == "mistral")
    kinds = set(given.get("layer_types") or ())
    if not window or not used or kinds == {"full_attention"}:
        return None
    if len(kinds) > 1 or (given["model_type"] != "mistral" and given.get("max_window_layers", 0) > 0):
        raise InputError(f"{place}: sliding_window of some layers only; expected all layers alike")
    return window


def _rope(given: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Base and scaling of the rotary frequencies, from older files' two entries or newer files' one."""
    scaling = dict(given.get("rope_parameters") or given.get("rope_scaling") or {})
    base = scaling.pop("rope_theta", None) or given.get("rope_theta") or BASE
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("type", None)
    if kind not in ("default", "linear", "llama3", "factors"):
        raise InputError(f"{place}: rope_scaling of type {kind!r}; expected default, linear or llama3")
    if kind == "default":
        return {"rope_base": float(base)}
    pairs = {"rope_type": kind} | {n: tuple(v) if isinstance(v, list) else v for n, v in scaling.items()}
    return {"rope_base": float(base), "rope_scaling": tuple(sorted(pairs.items()))}
