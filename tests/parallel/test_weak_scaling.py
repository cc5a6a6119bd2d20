"""A device's work stays the same on a larger mesh, and so does its memory: asserted from compiled programs."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from host_cases import environment

from nl_jax.models import LanguageModel, named_config
from nl_jax.parallel import parse_mesh

COMPILE = """
import json, re, sys
import nl_jax
import jax, jax.numpy as jnp
from flax import nnx
from nl_jax.models import LanguageModel, named_config
from nl_jax.parallel import parse_mesh
from nl_jax.training import compile_step, init_state, make_optimizer

model, regime = sys.argv[1:]
periods = {"outer": (1, 4), "meta": (64, 128)}[regime]
sizes = {"width": 64, "num_heads": 2, "mlp_hidden": 64, "num_layers": 2, "context_length": 256}
config = named_config(model, "tiny", **sizes, cms_periods=periods, cms_regime=regime)
optimizer = make_optimizer(steps=10, cms_periods=config.optimizer_periods)
state = jax.eval_shape(lambda: init_state(lambda: LanguageModel(config, rngs=nnx.Rngs(0)), optimizer))
found = {}
for count in (2, 8):
    batch = {key: jax.ShapeDtypeStruct((2 * count, 256), jnp.int32) for key in ("inputs", "targets")}
    mesh = parse_mesh(f"fsdp:{count}", jax.devices()[:count])
    compiled = compile_step(optimizer, mesh, state, batch)
    exchanges = len(re.findall(r" all-to-all(?:-start)?\\(", compiled.as_text()))
    found[count] = compiled.memory_analysis().temp_size_in_bytes, exchanges
print(json.dumps(found))
"""
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "regime"),
    [
        ("delta_net", "outer"),
        pytest.param("transformer", "outer", marks=slow),
        pytest.param("hope", "outer", marks=slow),
        pytest.param("titans", "outer", marks=slow),
        pytest.param("hope_attention", "outer", marks=slow),
        pytest.param("delta_net", "meta", marks=slow),
    ],
)
def test_temporaries_of_a_device_do_not_grow_with_the_mesh(model, regime):
    command = [sys.executable, "-c", COMPILE, model, regime]
    found = json.loads(subprocess.run(command, env=environment(8), stdout=subprocess.PIPE, check=True).stdout)
    (two, _), (eight, exchanges) = found["2"], found["8"]
    assert eight <= 1.05 * two
    if regime == "outer":
        assert exchanges == 0


@pytest.mark.parametrize("axis", ["x", "data"])
def test_a_mesh_of_the_users_own_is_left_to_the_partitioner(axis):
    """A model runs under any mesh that is set; it is constrained under those of `parse_mesh` only."""
    model = LanguageModel(named_config("delta_net", "tiny", width=16, num_heads=1, mlp_hidden=8), rngs=nnx.Rngs(0))
    tokens = jnp.arange(16).reshape(2, 8)
    expected, _ = model(tokens)
    auto = (jax.sharding.AxisType.Auto,)
    for mesh in (
        jax.make_mesh((1,), (axis,), axis_types=auto, devices=jax.devices()[:1]),
        parse_mesh(devices=jax.devices()[:1]),
    ):
        with jax.set_mesh(mesh):
            np.testing.assert_allclose(jax.jit(lambda model, x: model(x)[0])(model, tokens), expected, atol=1e-5)
