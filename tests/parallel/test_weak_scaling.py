"""A device's work stays the same on a larger mesh, and so does its memory: asserted from compiled programs."""

import json
import os
import subprocess
import sys

import pytest

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
MODELS = {
    "delta_net": "outer",
    "transformer": "outer",
    **{f"slow {name}": "outer" for name in ("hope", "titans", "hope_attention")},
    "slow delta_net": "meta",
}


@pytest.mark.parametrize(
    ("model", "regime"),
    [
        pytest.param(name.split()[-1], regime, marks=pytest.mark.slow if name.startswith("slow") else ())
        for name, regime in MODELS.items()
    ],
)
def test_temporaries_of_a_device_do_not_grow_with_the_mesh(model, regime):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", COMPILE, model, regime]
    found = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    (two, _), (eight, exchanges) = found["2"], found["8"]
    assert eight <= 1.05 * two
    if regime == "outer":
        assert exchanges == 0
