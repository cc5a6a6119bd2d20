"""The kernel that carries a matrix through all chunks: its forms for TPU and GPU, by the interpreter and compiled."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nl_jax.costs import count_flops
from nl_jax.ops import ChunkMaps, matrix_scan
from nl_jax.ops.matrix_scan import fits

FORMS = ("interpret", "interpret_gpu")


def problem(seed, chunks, size, size_in, size_out, *, erases=True, batch=1, heads=2, dtype=jnp.float64):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(0.4 * rng.normal(size=(batch, heads, chunks, *shape)), dtype)

    of_keys = size, size_in
    keep = jnp.asarray(rng.uniform(size=(batch, heads, chunks, 1, size_in)), jnp.promote_types(dtype, jnp.float32))
    state = jnp.asarray(rng.normal(size=(batch, heads, size_in, size_out)), keep.dtype)
    erase = normal(*of_keys) if erases else None
    return state, ChunkMaps(erase, normal(size, size_out), normal(*of_keys), normal(size, size), normal(*of_keys), keep)


def plain(state, maps):
    """The same by a scan over chunks."""

    def chunk(state, maps):
        erased = 0.0 if maps.erase is None else maps.erase @ state
        written = maps.write - erased
        after = jnp.swapaxes(maps.keep, -1, -2) * state + jnp.swapaxes(maps.keys, -1, -2) @ written
        return after, maps.read @ state + maps.scores @ written

    state, answers = jax.lax.scan(chunk, state, jax.tree.map(lambda u: jnp.moveaxis(u, 2, 0), maps))
    return jnp.moveaxis(answers, 0, 2), state


def value_and_gradients(function, state, maps):
    def loss(state, maps):
        outputs = function(state, maps)
        return sum(jnp.sum(jnp.sin(u)) for u in outputs), outputs

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(state, maps)


def far(expected, found):
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / (1e-9 + jnp.max(jnp.abs(a)))) for a, b in pairs)


@settings(max_examples=3)
@given(
    seed=st.integers(0, 2**31),
    chunks=st.integers(1, 5),
    size=st.integers(1, 9),
    size_in=st.integers(1, 9),
    outputs=st.sampled_from([(1, "interpret"), (7, "interpret"), (5, "interpret_gpu"), (128, "interpret_gpu")]),
    erases=st.booleans(),
)
def test_any_shape(seed, chunks, size, size_in, outputs, erases):
    size_out, form = outputs
    with jax.enable_x64(True):
        case = problem(seed, chunks, size, size_in, size_out, erases=erases)
        expected = value_and_gradients(plain, *case)
        found = value_and_gradients(lambda *given: matrix_scan(*given, form), *case)
        assert far(expected, found) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_keeps_the_state_in_float32(form):
    state, maps = problem(0, 3, 16, 16, 16, dtype=jnp.bfloat16)
    (_, (answers, end)), _ = value_and_gradients(lambda *given: matrix_scan(*given, form), state, maps)
    assert (answers.dtype, end.dtype) == (jnp.bfloat16, jnp.float32)
    wide = jax.tree.map(lambda u: u.astype(jnp.float32), maps)
    assert far(plain(state, wide), (answers.astype(jnp.float32), end)) < 0.03


def test_operations_are_those_of_the_estimate():
    """Both kernels count as XLA's products would: three with the state and one of scores, and twice that."""
    state, maps = problem(0, 3, 4, 5, 6, dtype=jnp.float32)
    forward = 2 * 2 * 3 * 4 * 6 * (3 * 5 + 4)
    assert count_flops(lambda *given: matrix_scan(*given, "interpret"), state, maps).matrix == forward
    assert count_flops(plain, state, maps).matrix == forward
    pull = jax.grad(lambda *given: jnp.sum(matrix_scan(*given, "interpret")[0]), (0, 1))
    assert count_flops(pull, state, maps).matrix == forward + 2 * 2 * 3 * 4 * 6 * (7 * 5 + 2 * 4)


@pytest.mark.parametrize(
    ("backend", "sizes", "dtype", "expected"),
    [
        ("tpu", (128, 128, 64), jnp.float32, True),
        ("tpu", (40, 24, 12), jnp.float32, True),
        ("tpu", (512, 256, 64), jnp.float32, True),
        ("tpu", (1024, 1024, 64), jnp.float32, False),
        ("tpu", (128, 128, 64), jnp.float64, False),
        ("gpu", (128, 64, 64), jnp.float32, True),
        ("gpu", (96, 128, 64), jnp.float32, False),
        ("gpu", (128, 128, 8), jnp.float32, False),
        ("gpu", (256, 256, 64), jnp.float32, False),
        ("interpret", (1, 2, 3), jnp.float64, True),
    ],
)
def test_where_the_kernel_fits(backend, sizes, dtype, expected):
    assert fits(backend, *sizes, dtype) == expected


COMPILE = """
import json, sys
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
from nl_jax.errors import InputError
from nl_jax.ops import ChunkMaps, matrix_scan
from nl_jax.parallel import topology_devices

name, sizes = sys.argv[1], json.loads(sys.argv[2])
backend = "gpu" if name == "h100" else "tpu"
try:
    place = jax.sharding.SingleDeviceSharding(topology_devices(name)[0])
except InputError as error:
    sys.exit(print(json.dumps({"problem": str(error)})))
for dtype in (jnp.bfloat16, jnp.float32):
    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct((1, 2, *sizes), dtype, sharding=place)
    for size, size_in, size_out in sizes:
        for erase in (shape(4, size, size_in), None):
            maps = ChunkMaps(erase, shape(4, size, size_out), shape(4, size, size_in), shape(4, size, size),
                             shape(4, size, size_in), shape(4, 1, size_in, dtype=jnp.float32))
            def loss(state, maps):
                answers, end = matrix_scan(state, maps, backend)
                return jnp.sum(jnp.sin(answers.astype(jnp.float32))) + jnp.sum(end)
            state = shape(size_in, size_out, dtype=jnp.float32)
            text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(state, maps).compile().as_text()
            kernels = text.count("tpu_custom_call" if backend == "tpu" else "xla.gpu.triton")
            assert kernels >= 2, (dtype, size, size_in, size_out, kernels)
print(json.dumps({}))
"""
# The GPU compiler reads Triton programs of its own version only.
GPU = "jax_cuda13_plugin"


@pytest.mark.parametrize(
    ("topology", "sizes"),
    [
        ("v5e:2x2", [(64, 128, 128)]),
        pytest.param(
            "v5e:2x2",
            [(16, 128, 128), (128, 128, 64), (12, 40, 24), (256, 256, 256), (64, 512, 256)],
            marks=pytest.mark.slow,
        ),
        pytest.param("v6e:2x2", [(64, 128, 128)], marks=pytest.mark.slow),
        pytest.param("v5p:2x2x1", [(64, 128, 128)], marks=pytest.mark.slow),
        ("h100", [(64, 128, 128)]),
        pytest.param("h100", [(16, 16, 16), (32, 64, 128), (128, 128, 128)], marks=pytest.mark.slow),
    ],
)
def test_it_compiles_for_devices_that_are_not_here(topology, sizes):
    """Forward and backward, with and without removal, in both types; chunks of C tokens of heads with sizes in, out."""
    needed = GPU if topology == "h100" else "libtpu"
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    command = [sys.executable, "-c", COMPILE, topology, json.dumps(sizes)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # for the CPU's compiler
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stderr[-2000:]
    if problem := json.loads(found.stdout.splitlines()[-1]).get("problem"):
        pytest.skip(problem)
