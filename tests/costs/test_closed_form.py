"""FLOPs in closed form against those counted from the jaxpr."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from nl_jax.costs import count_flops, forward_flops
from nl_jax.models import MODEL_NAMES, LanguageModel, named_config
from nl_jax.modules.mixers.self_modifying_titans import PAPER_FORM

SIZES = {"width": 32, "num_heads": 2, "num_layers": 2, "mlp_hidden": 24, "chunk_size": 16}
WIDE = {"width": 96, "num_heads": 3, "num_layers": 1, "mlp_hidden": 8, "chunk_size": 36}


def counted(config, batch_size, length, transform=lambda loss: loss):
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    loss = transform(lambda model, tokens: model(tokens)[0].sum())
    return count_flops(loss, model, jax.ShapeDtypeStruct((batch_size, length), jnp.int32)).matrix


@pytest.mark.parametrize(("sizes", "batch_size", "length"), [(SIZES, 2, 96), (WIDE, 1, 275)])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_model(name, sizes, batch_size, length):
    config = named_config(name, "tiny", **sizes)
    parts = forward_flops(config, batch_size, length)
    assert sum(parts.values()) == pytest.approx(counted(config, batch_size, length), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hope", PAPER_FORM),
        ("hope", {"projection_chunk_size": 4}),
        ("hope", {"adaptive": ("value", "query"), "momentum": True, "rule": "normalized"}),
        ("hope", {"rule": "normalized"}),
        ("hope", {"adaptive": (), "delta": True}),
        ("hope_frozen", {"adaptive": ("query",)}),
        ("titans", {"rule": "paper", "depth": 3, "delta": True}),
        ("ttt_mlp", {"read": "boundary"}),
        ("ttt_linear", {"rule": "implicit", "objective": "huber", "window": 3}),
        ("gated_delta_net", {"mu": ("sigmoid", 1.0)}),
        ("linear_attention", {"rule": "normalized"}),
        ("mesa", {"iterations": 3}),
        ("atlas", {"degree": 1, "newton_schulz_steps": 0}),
        ("sliding_window_memory", {"memory": "atlas", "window": 17}),
        ("attention", {"convolution": True}),
        ("sliding_window_attention", {"window": 17}),
    ],
)
def test_options(name, options):
    config = named_config(name, "tiny", **SIZES, mixer_options=tuple(options.items()))
    parts = forward_flops(config, 1, 150)
    assert sum(parts.values()) == pytest.approx(counted(config, 1, 150), rel=1e-6)


def test_parts_are_what_they_say():
    width, hidden, chunk = SIZES["width"], SIZES["mlp_hidden"], SIZES["chunk_size"]
    tokens, layers, head_dim = 2 * 96, 2, 16
    parts = forward_flops(named_config("linear_attention", "tiny", **SIZES), 2, 96)
    assert parts == {
        "feed_forward": 2 * layers * tokens * 3 * width * hidden,
        "projections": 2 * layers * tokens * 4 * width**2,
        "unembedding": 2 * tokens * width * 257,
        "decay": 2 * layers * (tokens // chunk) * (width // head_dim) * 2**2 * 8**3,  # 2 × 2 blocks, times ones
        "writes": 2 * layers * tokens * width * head_dim,
        "reads": 2 * layers * tokens * width * (head_dim + 2 * chunk),
    }
    solved = forward_flops(named_config("delta_net", "tiny", **SIZES), 2, 96)
    assert solved["gram"] == 2 * layers * tokens * width * chunk
    # two 8 × 8 blocks of four products each, two products more to merge them; answers and solution
    inverse = (2 * 4 + 2) * 8**3 / (chunk * head_dim)  # per token and channel
    assert solved["solve"] == 2 * layers * tokens * width * (inverse + chunk + head_dim)


@pytest.mark.parametrize("window", [None, 40])
def test_training_step_of_attention(window):
    options = (("window", window),) if window else ()
    name = "sliding_window_attention" if window else "attention"
    config = named_config(name, "tiny", **SIZES, mixer_options=options)
    parts = forward_flops(config, 2, 200)
    training = counted(config, 2, 200, jax.grad)
    assert training == pytest.approx(3 * sum(parts.values()) + parts["attention"] / 2, rel=1e-3)
