"""Small random models of the Llama family: their files, and what they compute, in NumPy and float64."""

import json
import math

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = "def f(x):\n    return x + 12345  # größer, don't\n\n\tthe quick brown fox: 3.14"
SIZES = {
    "vocab_size": 300,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "hidden_act": "silu",
    "eos_token_id": 0,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 8},
    "llama3": {"model_type": "llama", "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama_linear": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama_parameters": {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "mistral": {"model_type": "mistral", "sliding_window": 5, "num_key_value_heads": 1},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 4},
    "qwen3": {"model_type": "qwen3", "head_dim": 10},
}


def configuration(case):
    return SIZES | CASES[case]


def tensors_of(config, seed=0):
    """Random tensors of a configuration by their Hugging Face names; norms and biases are not at their start."""
    rng = np.random.default_rng(seed)
    width, heads, kv = (config[n] for n in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    d = config.get("head_dim") or width // heads
    shapes = {"model.embed_tokens": (config["vocab_size"], width), "model.norm": (width,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head"] = (config["vocab_size"], width)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm": (width,), at + "post_attention_layernorm": (width,)}
        shapes |= {at + "self_attn.q_proj": (heads * d, width), at + "self_attn.o_proj": (width, heads * d)}
        shapes |= {at + f"self_attn.{part}_proj": (kv * d, width) for part in "kv"}
        shapes |= {at + f"mlp.{part}_proj": (config["intermediate_size"], width) for part in ("gate", "up")}
        shapes[at + "mlp.down_proj"] = (width, config["intermediate_size"])
        if config["model_type"] == "qwen3":
            shapes |= {at + f"self_attn.{part}_norm": (d,) for part in "qk"}
    tensors = {}
    for name, shape in shapes.items():
        array = rng.normal(size=shape) / math.sqrt(shape[-1]) if len(shape) == 2 else rng.uniform(0.5, 1.5, shape)
        tensors[name + ".weight"] = (2 * array if len(shape) == 2 else array).astype(np.float32)
        if config["model_type"] == "qwen2" and name[-6:] in ("q_proj", "k_proj", "v_proj"):
            tensors[name + ".bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    return tensors


def frequencies(config, d):
    scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rates = scaling.get("rope_theta", config["rope_theta"]) ** (-np.arange(d // 2) / (d // 2))
    if scaling.get("type") == "linear":
        return rates / scaling["factor"]
    if scaling.get("rope_type") != "llama3":
        return rates
    original, low, high = (
        scaling[n] for n in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    scaled = []
    for rate in rates:  # as published with Llama 3.1
        wavelength = 2 * math.pi / rate
        if wavelength < original / high:
            scaled.append(rate)
        elif wavelength > original / low:
            scaled.append(rate / scaling["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * rate / scaling["factor"] + smooth * rate)
    return np.array(scaled)


def reference(config, tensors, ids):
    """Logits [time, vocab] of one sequence."""
    w = {name: array.astype(np.float64) for name, array in tensors.items()}
    heads, kv, time = config["num_attention_heads"], config["num_key_value_heads"], len(ids)
    d = config.get("head_dim") or config["hidden_size"] // heads
    angles = np.arange(time)[:, None] * frequencies(config, d)
    distance = np.arange(time)[:, None] - np.arange(time)
    seen = (distance >= 0) & (distance < (config.get("sliding_window") or time))

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config["rms_norm_eps"]) * w[name + ".weight"]

    def project(x, name):
        return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)

    def rotate(x):  # [time, heads, d]
        a, b = x[..., : d // 2], x[..., d // 2 :]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        n = norm(x, at + "input_layernorm")
        q, k, v = (project(n, at + f"self_attn.{part}_proj").reshape(time, -1, d) for part in "qkv")
        if config["model_type"] == "qwen3":
            q, k = norm(q, at + "self_attn.q_norm"), norm(k, at + "self_attn.k_norm")
        q, k = rotate(q), rotate(k)
        answers = []
        for head in range(heads):
            shared = head // (heads // kv)
            scores = np.where(seen, q[:, head] @ k[:, shared].T / math.sqrt(d), -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            answers.append(weights / weights.sum(axis=-1, keepdims=True) @ v[:, shared])
        x = x + project(np.concatenate(answers, axis=-1), at + "self_attn.o_proj")
        n = norm(x, at + "post_attention_layernorm")
        gate = project(n, at + "mlp.gate_proj")
        x = x + project(gate / (1 + np.exp(-gate)) * project(n, at + "mlp.up_proj"), at + "mlp.down_proj")
    head = "model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight"
    return norm(x, "model.norm") @ w[head].T


def tokenizer(pre=None):
    """A byte-level BPE tokenizer of 300 ids at most, with two special tokens."""
    built = tokenizers.Tokenizer(models.BPE())
    own = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([*(pre or []), own])
    built.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator([TEXT] * 3, trainer)
    return built


def write_directory(directory, config, tensors, shards=1):
    """A Hugging Face directory with the weights in one file, or in several with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(directory / "tokenizer.json"))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return directory
    weight_map, names = {}, sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory
