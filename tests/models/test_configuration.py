"""A model's configuration is the same after JSON: every field, and every option of every mixer."""

import dataclasses
import inspect
import json

import numpy as np
import pytest
from flax import nnx

from experiments.common import restoring
from nl_jax import InputError
from nl_jax.memory import memory_of
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.modules import MIXERS
from nl_jax.modules.mixers.attention import Attention
from nl_jax.modules.mixers.channel_retention import ChannelRetention
from nl_jax.modules.mixers.memory_mixer import MemoryMixer
from nl_jax.streaming import Stream

SIZES = {"vocab_size": 11, "width": 8, "num_layers": 1, "num_heads": 2, "mlp_hidden": 6, "chunk_size": 2}
# A value other than the default for each field.
FIELDS = {
    **{"mixer": "titans", "vocab_size": 12, "width": 16, "num_layers": 3, "num_heads": 4, "mlp_hidden": 7},
    **{"cms_periods": (4, 8), "cms_regime": "meta", "cms_variant": "nested", "cms_rate": 0.25, "chunk_size": 4},
    **{"context_length": 5, "unroll": False, "remat": "dots", "dtype": "bfloat16"},
    **{"tied_head": False, "scaled_embedding": False, "norm_epsilon": 1e-5},
    "mixer_options": (("eta", ("softplus", 2.0)), ("deep", ((1, (2, "a")), None, True, -0.5))),
}
OWN = {
    "width",
    "num_heads",
    "chunk_size",
    "context_length",
    "output_scale",
    "rngs",
    "self",
    "architecture",
    "parts",
    "learning",
}
# Values of each option; of others, by their default's type.
VALUES = {
    "objective": ["dot_product"],
    "rule": ["paper", "normalized"],
    "read": ["boundary"],
    "initial": ["zero"],
    "retention": ["zero"],
    **{name: [0.5, (0.25, 0.5), ("softplus", 2.0), ("sigmoid", np.float32(0.1))] for name in ("eta", "alpha")},
    "mu": [None, 0.5, ("sigmoid", 1.0)],
    "adaptive": [("k", "v"), ()],
}
MODULES = dict.fromkeys(("attention", "sliding_window_attention"), Attention)
MODULES |= dict.fromkeys(("gla", "rwkv7"), ChannelRetention)


def options_of(mixer):
    """Names and defaults of a mixer's options: its own and those it passes on to its module."""
    function = MIXERS[mixer]
    module = function if inspect.isclass(function) else MODULES.get(mixer, MemoryMixer)
    sources = [module] if "learning" not in inspect.signature(module.__init__).parameters else [module, memory_of]
    found = {}
    for source in (s.__init__ if inspect.isclass(s) else s for s in (*sources, function)):
        found |= {p.name: p.default for p in inspect.signature(source).parameters.values() if p.name not in OWN}
    return found


def values_of(name, default):
    if name in VALUES:
        return VALUES[name]
    if isinstance(default, bool):
        return [not default]
    return [2, 3] if default is None or isinstance(default, int) else [0.75, 1]


CASES = [
    (mixer, name, value)
    for mixer in MIXERS
    for name, default in options_of(mixer).items()
    for value in values_of(name, default)
]


def again(config):
    return LanguageModelConfig.from_json(json.loads(json.dumps(config.to_json())))


def test_every_field_survives():
    runs = {"kernel"}  # how a model runs, not what it is: not written
    assert set(FIELDS) == {field.name for field in dataclasses.fields(LanguageModelConfig)} - runs
    config = LanguageModelConfig(**FIELDS)
    assert again(config) == config
    assert again(LanguageModelConfig("oja", **SIZES)) == LanguageModelConfig("oja", **SIZES)


def test_configurations_of_earlier_versions_load():
    """They have no dtype, and remat is true or false."""
    fields = LanguageModelConfig("titans", **SIZES).to_json()
    del fields["dtype"]
    for before, now in ((True, "block"), (False, "none")):
        config = LanguageModelConfig.from_json(fields | {"remat": before})
        assert (config.remat, config.dtype) == (now, "float32")


def test_every_option_of_every_mixer_survives():
    for mixer, name, value in CASES:
        config = LanguageModelConfig(mixer, **SIZES, mixer_options=((name, value),))
        assert again(config) == config, (mixer, name, value)
        assert hash(again(config)) == hash(config)
    assert len(CASES) > 200


def test_every_reader_builds_the_model_that_was_trained(tmp_path):
    """generate, stream and context read a configuration by `restoring.restore`; here up to the checkpoint."""
    config = LanguageModelConfig("titans", **SIZES, mixer_options=(("eta", ("softplus", 2.0)),))
    with pytest.raises(InputError, match="no checkpoint yet"):
        restoring.restore(tmp_path, json.loads(json.dumps(config.to_json())))
    refused = LanguageModelConfig("titans", **SIZES, mixer_options=(("eta", "fast"),)).to_json()
    with pytest.raises(InputError, match="cannot be built by this version"):
        restoring.restore(tmp_path, refused)


def test_what_json_cannot_hold_is_refused_before_it_is_saved(tmp_path):
    sizes = {**SIZES, "cms_periods": (4, 8), "cms_regime": "online"}
    config = LanguageModelConfig("titans", **sizes, mixer_options=(("objective", lambda *_: 0),))
    with pytest.raises(ValueError, match="mixer_options: function cannot be saved"):
        config.to_json()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"depth": 3}, "unknown depth; expected mixer,"),
        ({"mixer": None}, "unknown mixer"),
        ({"vocab_size": "many"}, "vocab_size='many': expected an integer of at least 1"),
        ({"cms_rate": "fast"}, "another type"),
        ({"dtype": "float16"}, "dtype='float16': expected one of float32, bfloat16"),
        ({"remat": "all"}, "remat='all': expected one of none, block, dots"),
    ],
)
def test_another_configuration_is_one_line(change, problem):
    fields = LanguageModelConfig("titans", **SIZES).to_json()
    with pytest.raises(InputError, match=problem):
        LanguageModelConfig.from_json(fields | change)
    with pytest.raises(InputError, match="missing mixer; expected mixer,"):
        LanguageModelConfig.from_json({name: value for name, value in fields.items() if name != "mixer"})


@pytest.mark.slow
def test_a_stream_of_a_model_with_options_comes_back(tmp_path):
    sizes = {**SIZES, "cms_periods": (4, 8), "cms_regime": "online"}
    config = LanguageModelConfig("delta_net", **sizes, mixer_options=(("eta", ("softplus", np.float32(2.0))),))
    stream = Stream(LanguageModel(config, rngs=nnx.Rngs(0)))
    stream.save(tmp_path / "saved")
    model = LanguageModel(again(config), rngs=nnx.Rngs(0))
    assert Stream.load(tmp_path / "saved", model).position == 0
