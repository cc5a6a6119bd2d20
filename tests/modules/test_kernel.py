"""Mixers whose state a kernel carries through a text, by Pallas' interpreter: the same as XLA's scan over chunks."""

import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax import InputError
from nl_jax.models import LanguageModel, LanguageModelConfig, named_config
from nl_jax.modules import MIXERS, choose_kernel, mixer
from nl_jax.parallel.kernels import choose_backend

WIDTH, HEADS = 32, 2
IMPLICIT = {"rule": "implicit", "objective": "l2", "delta": True, "eta": ("softplus", 1.0), "alpha": ("sigmoid", 1.0)}
CASES = {
    name: (name, {})
    for name in ("linear_attention", "retnet", "mamba2", "linear_attention_pp", "delta_net", "gated_delta_net", "comba")
} | {
    "gla": ("gla", {}),
    "linear attention, signed retention": ("linear_attention", {"alpha": ("hard_tanh", 0.0)}),
    "delta_net, negative eigenvalues": ("delta_net", {"allow_neg_eigval": True}),
    "implicit": ("delta_net", {**IMPLICIT, "delta_after_retention": True}),
    "implicit, to initial weights": ("linear_attention_pp", {**IMPLICIT, "retention": "initial"}),
}
PAPER = {"delta": True, "momentum": True, "adaptive": ("key", "value", "query", "eta", "alpha")}
CHUNKED = {name: (name, {}) for name in ("titans", "self_modifying_titans", "ttt_linear", "ttt_mlp", "dla")} | {
    "self-modifying, as in the paper": ("self_modifying_titans", PAPER),
    "self-modifying, own targets": ("self_modifying_titans", {"self_targets": True, "read": "boundary"}),
    "momentum": ("delta_net", {"mu": 0.5}),
    "the paper's rule": ("delta_net", {"objective": "l2", "rule": "paper"}),
    "titans, to zero": ("titans", {"retention": "zero"}),
}  # a kernel runs the program of the scan's chunks; those of a text that begins at a boundary
OTHERS = ("rwkv7", "oja", "mesa", "lstm", "srwm")
slow = pytest.mark.slow


def make(case, chunk_size=4, dtype=jnp.float32):
    name, options = (CASES | CHUNKED).get(case, (case, {}))
    module = mixer(name, width=WIDTH, num_heads=HEADS, chunk_size=chunk_size, rngs=nnx.Rngs(0), **options)
    return jax.tree.map(lambda w: w.astype(dtype), module)


def kernels_of(function, *arguments):
    """How many kernels a function calls."""
    return str(jax.make_jaxpr(function)(*arguments)).count("pallas_call")


def read(module, x, kernel, split=0):
    """A loss of all outputs and the last state, and these; ``split`` tokens are read by a call of their own."""
    choose_kernel(module, kernel)
    first, state = module(x[:, :split])
    second, state = module(x[:, split:], state)
    y = jnp.concatenate([first, second], axis=1)
    state = [u for u in jax.tree.leaves(state) if u.dtype != jnp.int32]
    return jnp.sum(jnp.sin(y)) + sum(jnp.sum(jnp.cos(u)) for u in state), (y, state)


def check(case, time, split, chunk_size, kernel="interpret", *, dtype=jnp.float64, tolerance=1e-11, change=None):
    module, x = make(case, chunk_size, dtype), jax.random.normal(jax.random.key(1), (2, time, WIDTH), dtype)
    module = module if change is None else change(module)
    found = {}
    for choice in ("xla", kernel):
        gradient = jax.value_and_grad(
            lambda module, x, choice=choice: read(module, x, choice, split), (0, 1), has_aux=True
        )
        found[choice] = jax.jit(gradient)(module, x)
    (_, (y, state)), gradients = found["xla"]
    for name, expected, actual in (
        ("output", y, found[kernel][0][1][0]),
        ("state", state, found[kernel][0][1][1]),
        ("gradient", gradients, found[kernel][1]),
    ):
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
            assert np.all(np.isfinite(b)), (case, name)
            assert np.max(np.abs(a - b), initial=0.0) <= tolerance * (1 + np.max(np.abs(a), initial=0.0)), (case, name)
    return kernels_of(lambda module, x: read(module, x, kernel, split), module, x)


@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        pytest.param(case, form, marks=() if (case, form) == ("gated_delta_net", "interpret") else slow)
        for case in CASES
        for form in ("interpret", "interpret_gpu")
    ],
)
def test_outputs_state_and_gradients_are_those_of_the_scan(case, kernel):
    """A text of 23 tokens in chunks of 4, split inside of a chunk."""
    with jax.enable_x64(True):
        assert check(case, 23, 9, 4, kernel) == 2


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c == "titans" else slow) for c in CHUNKED])
def test_a_chunk_in_a_kernel_is_a_chunk_of_the_scan(case):
    """Whole chunks of 4 of the first 9 tokens; the scan reads the rest, and what begins inside of a chunk."""
    with jax.enable_x64(True):
        assert check(case, 23, 9, 4) == 1


@slow
@pytest.mark.parametrize("case", CHUNKED)
def test_chunks_in_float32_are_as_near(case):
    check(case, 17, 0, 8, dtype=jnp.float32, tolerance=1e-3)


@slow
@settings(max_examples=6)
@given(case=st.sampled_from(list(CHUNKED)), time=st.integers(1, 30), chunk_size=st.integers(1, 9), data=st.data())
def test_chunks_of_any_length_and_any_split(case, time, chunk_size, data):
    with jax.enable_x64(True):
        check(case, time, data.draw(st.integers(0, time)), chunk_size)


@slow
@settings(max_examples=12)
@given(
    case=st.sampled_from(list(CASES)),
    kernel=st.sampled_from(["interpret", "interpret_gpu"]),
    time=st.integers(1, 40),
    chunk_size=st.integers(1, 12),
    data=st.data(),
)
def test_any_length_and_any_split(case, kernel, time, chunk_size, data):
    with jax.enable_x64(True):
        check(case, time, data.draw(st.integers(0, time)), chunk_size, kernel)


@slow
@pytest.mark.parametrize("case", CASES)
def test_float32_is_as_near(case):
    check(case, 17, 0, 8, dtype=jnp.float32, tolerance=2e-4)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case == "comba" else slow) for case in (*CASES, "titans", "self_modifying_titans")],
)
def test_extreme_inputs_give_no_nan(case):
    """Gates shut and wide open: α is 0 or 1, η is 0 or a hundred million."""

    def extreme(module):
        return jax.tree.map(lambda w: jnp.where(jnp.abs(w) > 0, 1e4, 1.0) * w, module)

    x = 1e4 * jax.random.normal(jax.random.key(1), (2, 17, WIDTH))
    module = make(case, 8)
    if case != "self_modifying_titans":  # weights of 1e4 make a chaotic system, of the scan as well
        module = extreme(module)
    kernel = jax.jit(jax.value_and_grad(lambda module, x: read(module, x, "interpret"), (0, 1), has_aux=True))
    scan = jax.jit(lambda module, x: read(module, x, "xla"))
    for inputs in (x, jnp.zeros_like(x), jnp.where(jnp.arange(17)[:, None] % 3 == 0, x, 0.0)):
        (_, (y, state)), gradients = kernel(module, inputs)
        plain, _ = scan(module, inputs)[1]
        np.testing.assert_allclose(y, plain, atol=1e-3 * (1 + float(jnp.max(jnp.abs(plain)))))
        assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves((y, state, gradients)))


@pytest.mark.parametrize(
    "case",
    ["delta_net", *(pytest.param(c, marks=slow) for c in ("titans", "self_modifying_titans", "ttt_mlp"))],
)
def test_bfloat16_is_near(case):
    """A matrix's kernel rounds what a token erases and writes to bfloat16 each, where the scan rounds their difference.

    A chunk's kernel keeps in float32 what products of bfloat16 give, where the scan rounds it.
    """
    module, x = make(case, 16), jax.random.normal(jax.random.key(1), (2, 64, WIDTH), jnp.bfloat16)
    for name in ("query", "key", "value", "output", "conv"):
        part = getattr(module, name)
        part.kernel[...] = part.kernel[...].astype(jnp.bfloat16)
    plain, kernel = (
        jax.jit(lambda module, x, kernel=kernel: read(module, x, kernel)[1][0])(module, x).astype(jnp.float32)
        for kernel in ("xla", "interpret")
    )
    assert float(jnp.max(jnp.abs(plain - kernel))) < 0.05 * float(jnp.max(jnp.abs(plain)))


@pytest.mark.parametrize("window", [256, 100])
def test_attention_to_a_whole_text(window):
    module = mixer("attention", width=WIDTH, num_heads=HEADS, context_length=window, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 128, WIDTH))
    found = []
    for kernel in ("xla", "interpret"):
        choose_kernel(module, kernel)
        found.append(jax.jit(jax.value_and_grad(lambda x, module=module: jnp.sum(jnp.sin(module(x)[0]))))(x))
    assert kernels_of(lambda x: module(x)[0], x) == 1
    assert kernels_of(lambda x: module(x[:, :100])[0], x) == 0  # no multiple of 128
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("window", [256, 128])
def test_attention_to_a_text_that_goes_on(window):
    """In parts, of which the first leaves places of the context without a token where the window is longer."""
    module = mixer("attention", width=WIDTH, num_heads=HEADS, context_length=window, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 384, WIDTH))

    def loss(x):
        first, state = module(x[:, :128])
        second, _ = module(x[:, 128:], state)
        return jnp.sum(jnp.sin(jnp.concatenate([first, second], axis=1)))

    found = []
    for kernel in ("xla", "interpret"):
        choose_kernel(module, kernel)
        found.append(jax.jit(jax.value_and_grad(loss))(x))
    assert kernels_of(loss, x) == 2
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_token_after_a_text_needs_no_kernel():
    module = mixer("attention", width=WIDTH, num_heads=HEADS, context_length=256, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 129, WIDTH))
    _, state = module(x[:, :128])
    module.kernel = "pallas"
    assert module(x[:, 128:], state)[0].shape == (1, 1, WIDTH)
    with pytest.raises(InputError, match="kernel=pallas"):
        module(x[:, :128], state)


@pytest.mark.parametrize("name", OTHERS)
def test_mixers_without_a_kernel_say_so(name):
    module = mixer(name, width=8, num_heads=1, rngs=nnx.Rngs(0))
    choose_kernel(module, "auto")
    choose_kernel(module, "xla")
    with pytest.raises(InputError, match=r"kernel=pallas: .* has none; expected auto or xla"):
        choose_kernel(module, "pallas")


@pytest.mark.parametrize(
    "options",
    [{"window": 2, "delta": False, "rule": "normalized"}, {"newton_schulz_steps": 2}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_a_kernel_does_not_know(options):
    assert not mixer("delta_net", width=8, num_heads=1, rngs=nnx.Rngs(0), **options).has_kernel


def test_a_cpu_runs_the_scan():
    assert choose_backend("auto", lambda backend: True) is None
    assert choose_backend("xla", lambda backend: True) is None
    with pytest.raises(InputError, match="kernel=pallas: cpu runs no kernels; expected auto or xla"):
        choose_backend("pallas", lambda backend: True)


def test_every_mixer_with_a_kernel_is_here():
    found = {
        name for name in MIXERS if getattr(mixer(name, width=8, num_heads=1, rngs=nnx.Rngs(0)), "has_kernel", False)
    }
    assert found == {name for name, _ in (CASES | CHUNKED).values()} | {"attention", "sliding_window_attention"}


def test_a_model_knows_its_kernel_and_its_configuration_on_disk_does_not():
    sizes = {"width": 8, "num_heads": 1, "mlp_hidden": 8, "chunk_size": 4}
    config = named_config("delta_net", "tiny", kernel="interpret", **sizes)
    assert "kernel" not in config.to_json()
    assert LanguageModelConfig.from_json(config.to_json()) == named_config("delta_net", "tiny", **sizes)
    tokens = jnp.zeros((1, 12), jnp.int32)
    assert kernels_of(LanguageModel(config, rngs=nnx.Rngs(0)), tokens) == config.num_layers
    meta = named_config("delta_net", "tiny", kernel="interpret", cms_regime="meta", cms_periods=(4,), **sizes)
    assert kernels_of(LanguageModel(meta, rngs=nnx.Rngs(0)), tokens) == 0  # it is differentiated twice
    for wrong in ({"kernel": "fast"}, {"kernel": "pallas", "cms_regime": "meta", "cms_periods": (4,)}):
        with pytest.raises(InputError, match="expected"):
            named_config("delta_net", "tiny", **sizes, **wrong)


COMPILE = """
import sys
import jax, jax.numpy as jnp
from flax import nnx
from nl_jax.modules import choose_kernel, mixer
from nl_jax.parallel import parse_mesh, topology_devices

jax.config.update("jax_platforms", "cpu")
device = topology_devices(sys.argv[1])[0]
place = jax.sharding.SingleDeviceSharding(device)

def make():
    return mixer(sys.argv[2], width=256, num_heads=2, chunk_size=64, rngs=nnx.Rngs(0))

def placed(tree):
    return jax.tree.map(lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=place), tree)

module, x = jax.eval_shape(make), jax.ShapeDtypeStruct((1, 192, 256), jnp.float32)
choose_kernel(module, "pallas")
with jax.set_mesh(parse_mesh("fsdp:1", [device])):
    gradient = jax.jit(jax.grad(lambda module, x: jnp.sum(jnp.sin(module(x)[0])), (0, 1)))
    assert gradient.lower(placed(module), placed(x)).compile().as_text().count("tpu_custom_call") == 2
"""


@slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
@pytest.mark.parametrize("name", ["titans", "self_modifying_titans", "ttt_mlp"])
def test_chunks_compile_for_a_tpu_that_is_not_here(topology, name):
    """Forward and backward; Mosaic lacks some operations, so that a change of a rule can need another form there."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}  # for the CPU's compiler
    command = [sys.executable, "-c", COMPILE, topology, name]
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
