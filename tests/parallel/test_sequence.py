"""A text split over devices: losses, gradients and states are those of one device, and so is a share's memory."""

import json
import subprocess
import sys

import jax
import pytest
from host_cases import environment

from experiments.common import text_runs
from nl_jax import InputError
from nl_jax.models import MODEL_NAMES
from nl_jax.parallel.mesh import AXES

COMPARE = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from nl_jax.models import LanguageModel, named_config
from nl_jax.models.losses import loss_and_state
from nl_jax.parallel import batch_sharding, parameter_shardings, parse_mesh
from nl_jax.trees import named_leaves

cases = json.loads(sys.argv[1])
jax.config.update("jax_enable_x64", True)

def far(expected, found):
    expected, found = (np.asarray(u, np.float64) for u in (expected, found))
    return float(np.max(np.abs(expected - found), initial=0.0) / (1e-9 + np.max(np.abs(expected), initial=0.0)))

def loss(model, batch, state):
    logits, state = model(batch["inputs"], state)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], axis=-1)
    memories = sum(jnp.sum(jnp.square(u)) for u in jax.tree.leaves(state) if u.dtype != jnp.int32)
    return 1e-3 * memories - jnp.mean(picked), state

def learns(model, batch, state):
    return loss_and_state(model, batch)  # starts a text

worst = {}
for name, mesh, options in cases:
    text, count, dtype = options.pop("time", 64), options.pop("texts", 1), options.pop("dtype", "float64")
    sizes = {"width": 16, "num_heads": 2, "mlp_hidden": 8, "num_layers": 2, "chunk_size": 4, "context_length": 24}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    config = named_config(name, "tiny", 32, **{**sizes, **options})
    model = jax.tree.map(lambda w: w.astype(dtype), LanguageModel(config, rngs=nnx.Rngs(0)))
    tokens = np.random.default_rng(0).integers(0, 32, (4, count * text + 1)).astype(np.int32)
    batches = [
        {"inputs": tokens[:, first : first + text], "targets": tokens[:, first + 1 : first + text + 1]}
        for first in range(0, count * text, text)
    ]
    def total(model, batches, run=learns if model.learns_in_context else loss):
        losses, state = [], None
        for batch in batches:
            value, state = run(model, batch, state)
            losses.append(value)
        return sum(losses), (losses, state)
    gradient = jax.value_and_grad(total, has_aux=True)
    expected = jax.jit(gradient)(model, batches)
    devices = parse_mesh(mesh)
    places = parameter_shardings(devices, model), batch_sharding(devices)
    placed = map(jax.device_put, (model, batches), places)
    with jax.set_mesh(devices):
        found = jax.jit(gradient, in_shardings=places)(*placed)
    errors = jax.tree.map(far, expected, found)
    worst[f"{name} {mesh} {options}"] = max(named_leaves(errors).items(), key=lambda item: item[1])
print(json.dumps(worst))
"""

MEMORY = """
import json, sys
import jax, jax.numpy as jnp
from flax import nnx
from nl_jax.models import LanguageModel, named_config
from nl_jax.parallel import parse_mesh
from nl_jax.training import compile_step, init_state, make_optimizer

sizes = {"width": 64, "num_heads": 2, "mlp_hidden": 64, "num_layers": 2, "context_length": 1024}
config = named_config(sys.argv[1], "tiny", **sizes)
optimizer = make_optimizer(steps=10, cms_periods=config.optimizer_periods)
state = jax.eval_shape(lambda: init_state(lambda: LanguageModel(config, rngs=nnx.Rngs(0)), optimizer))
found = []
for count in (1, 8):
    batch = {key: jax.ShapeDtypeStruct((1, count * 2**17), jnp.int32) for key in ("inputs", "targets")}
    compiled = compile_step(optimizer, parse_mesh(f"sequence:{count}", jax.devices()[:count]), state, batch)
    found.append(compiled.memory_analysis().temp_size_in_bytes)
print(json.dumps(found))
"""


def printed_by(script, *arguments):
    """JSON that a script prints on eight devices."""
    command = [sys.executable, "-c", script, *arguments]
    return json.loads(subprocess.run(command, env=environment(8), stdout=subprocess.PIPE, check=True).stdout)


slow = pytest.mark.slow
MESHES = ("fsdp:2,tensor:2,sequence:2", "sequence:8", "data:2,sequence:4")
OF_EACH_KIND = ("hope", "titans", "delta_net", "transformer_conv")  # on all of these meshes, others on the first
# Shards that end inside of chunks; a context longer than a shard. Then a batch in two parts; one longer than a text.
CASES = {
    "memories": ["delta_net", "data:2,sequence:4", {"time": 24, "unroll": False}],
    "attention": ["transformer_conv", "sequence:8", {"unroll": False}],
    "kernel": ["delta_net", "fsdp:2,tensor:2,sequence:2", {"kernel": "interpret"}],
    "kernel twice": ["comba", "data:2,fsdp:2,tensor:2", {"kernel": "interpret_gpu", "texts": 2}],
    "chunks in a kernel twice": ["hope", "fsdp:2,tensor:2,sequence:2", {"kernel": "interpret", "texts": 2}],
    "memories twice": ["delta_net", "data:2,sequence:4", {"texts": 2, "time": 24, "num_layers": 3}],
    "attention twice": ["transformer_conv", "sequence:8", {"texts": 2, "context_length": 100}],
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=slow) if case.endswith("twice") else case for case in CASES])
def test_devices_that_share_a_text_read_it_as_one_does(case):
    """Loss, state and all gradients, in float64; of two texts in a row also those through the state."""
    for found, (path, error) in printed_by(COMPARE, json.dumps([CASES[case]])).items():
        assert error < 1e-12, (found, path)


@slow
def test_attention_by_a_kernel_reads_a_split_text():
    """Splash attention, in float32; the first device's context has places without a token."""
    options = {"time": 256, "context_length": 256, "kernel": "interpret", "dtype": "float32"}
    case = ["transformer", "data:4,sequence:2", options]
    for found, (path, error) in printed_by(COMPARE, json.dumps([case])).items():
        assert error < 1e-4, (found, path)


@slow
@pytest.mark.parametrize("part", range(4))
def test_every_model_on_every_mesh(part):
    cases = [[name, mesh, {}] for name in MODEL_NAMES for mesh in (MESHES if name in OF_EACH_KIND else MESHES[:1])]
    cases = cases[part::4]
    found = printed_by(COMPARE, json.dumps(cases))
    assert len(found) == len(cases)
    for case, (path, error) in found.items():
        assert error < 1e-12, (case, path)


@slow
@pytest.mark.parametrize("name", ["delta_net", "hope", "transformer"])  # the last with a window of 1024
def test_a_million_tokens_take_the_memory_of_an_eighth(name):
    """Temporaries of a device that trains on an eighth of one sequence, and of one that trains on so long a text."""
    one, eight = printed_by(MEMORY, name)
    assert eight <= 1.2 * one


@slow
def test_a_model_that_learns_in_context_is_right_on_such_a_mesh():
    """It is not split: each chunk needs what the one before has taught."""
    options = {"cms_periods": [8, 16], "cms_regime": "meta", "time": 32}
    for case, (path, error) in printed_by(COMPARE, json.dumps([["hope", "data:2,sequence:4", options]])).items():
        assert error < 1e-5, (case, path)  # its losses are float32


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"seq_len": 1023}, "--seq_len=1023: expected a multiple of 2, among which the mesh splits it"),
        ({"cms_regime": "meta"}, "--mesh=sequence:2: a CMS that learns in context reads whole sequences"),
    ],
)
def test_a_launcher_says_what_does_not_fit_a_split_sequence(flags, problem, monkeypatch):
    mesh = jax.sharding.AbstractMesh((1, 1, 1, 2), AXES)
    monkeypatch.setattr(text_runs, "parse_mesh", lambda text: mesh)
    values = text_runs.define_flags()
    values(["language_model", "--mesh=sequence:2", *(f"--{name}={value}" for name, value in flags.items())])
    with pytest.raises(InputError, match=problem):
        text_runs.check(values)
