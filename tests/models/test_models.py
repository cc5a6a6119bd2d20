"""The language model and its named configurations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nl_jax import InputError
from nl_jax.costs import count_flops
from nl_jax.models import MODEL_NAMES, PRESETS, LanguageModel, LanguageModelConfig, count_parameters, named_config
from nl_jax.models.language_model import UNROLLED_LAYERS
from nl_jax.models.remat import POLICIES
from nl_jax.modules import MIXERS
from nl_jax.training import TrainingDiverged, finite_outputs, init_state, train_step

apply = jax.jit(lambda model, tokens, state=None: model(tokens, state))


def small(name, **options):
    return named_config(
        name, "tiny", **{"width": 16, "mlp_hidden": 8, "chunk_size": 4, "context_length": 16, **options}
    )


DIFFERENT = ("hope", "hope_attention", "transformer_conv", "delta_net")  # every kind of state; mixers: test_mixers.py


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_parameter_counts(name, preset):
    assert abs(count_parameters(named_config(name, preset)) / PRESETS[preset].parameters - 1) < 0.015  # so ± 3 % apart


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_vocabulary_keeps_the_blocks(name):
    assert named_config(name, "tiny", 5000).mlp_hidden == named_config(name, "tiny").mlp_hidden


def test_count_is_that_of_the_model():
    config = small("hope")
    model = nnx.eval_shape(lambda: LanguageModel(config, rngs=nnx.Rngs(0)))
    assert count_parameters(config) == sum(leaf.size for leaf in jax.tree.leaves(model))


@pytest.mark.parametrize(  # Hope's block alone is a fast test
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "hope" else name for name in DIFFERENT]
)
def test_causal_and_in_parts(name):
    model = LanguageModel(small(name), rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (2, 13), 0, 257)
    logits, _ = apply(model, tokens)
    assert logits.shape == (2, 13, 257)
    changed, _ = apply(model, tokens.at[:, 6].add(1))
    np.testing.assert_array_equal(changed[:, :6], logits[:, :6])
    assert float(jnp.max(jnp.abs(changed[:, 6:] - logits[:, 6:]))) > 1e-3
    state, parts = model.init_state(2), []
    for part in (tokens[:, :6], tokens[:, 6:7], tokens[:, 7:]):
        out, state = apply(model, part, state)
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), logits, atol=1e-4)


@pytest.mark.parametrize("name", DIFFERENT)
def test_program_does_not_grow_with_depth(name):
    def program(layers):
        model = nnx.eval_shape(lambda: LanguageModel(small(name, num_layers=layers), rngs=nnx.Rngs(0)))
        loss = jax.grad(lambda model, tokens: jnp.sum(model(tokens)[0]))
        return jax.jit(loss).lower(model, jax.ShapeDtypeStruct((1, 8), jnp.int32)).as_text().count("\n")

    assert program(12) < 1.02 * program(UNROLLED_LAYERS + 1)


@pytest.mark.parametrize("name", [pytest.param("hope", marks=pytest.mark.slow), "delta_net"])
def test_layers_written_out_are_those_of_a_scan(name):
    tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, 257)
    found = []
    for unroll in (False, True):
        model = LanguageModel(small(name, unroll=unroll), rngs=nnx.Rngs(0))

        def loss(model):
            logits, state = model(tokens)
            return jnp.sum(jnp.sin(logits)), state

        found.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(model))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "time"), [(1, 32), (2, 80)])
def test_compiled_gradient_is_right_in_float32(batch, time):
    # XLA on CPU got this wrong where its YNNPACK fusions were on (BUILD_NOTES.md, D54); they do not exist in float64
    tokens = np.random.default_rng(0).integers(0, 257, (batch, time))
    gradient = jax.jit(jax.grad(lambda m, tokens: jnp.sum(jnp.sin(m(tokens)[0])) / 257))
    model = LanguageModel(named_config("hope", "tiny"), rngs=nnx.Rngs(0))
    actual = gradient(model, tokens)
    with jax.enable_x64(True):
        expected = gradient(jax.tree.map(lambda p: np.asarray(p, np.float64), model), tokens)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-3 * float(jnp.max(jnp.abs(e))))


@pytest.mark.slow
def test_remat_changes_nothing_but_memory():
    tokens = jax.random.randint(jax.random.key(0), (1, 8), 0, 257)
    gradients = []
    for remat in POLICIES:
        model = LanguageModel(small("hope", remat=remat), rngs=nnx.Rngs(0))
        gradients.append(jax.jit(jax.grad(lambda m: jnp.sum(jnp.sin(m(tokens)[0]))))(model))
    for a, *others in zip(*map(jax.tree.leaves, gradients), strict=True):
        for b in others:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_remat_recomputes_what_it_does_not_keep():
    """Operations and kept arrays, from the traced program; "dots" lies between the two others in both."""
    tokens, found = jnp.zeros((2, 64), jnp.int32), {}
    for remat in POLICIES:
        model = jax.eval_shape(lambda remat=remat: LanguageModel(small("transformer", remat=remat), rngs=nnx.Rngs(0)))

        def loss(model):
            return jnp.sum(model(tokens)[0])

        kept = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda m, f=loss: jax.vjp(f, m)[1], model)))
        found[remat] = count_flops(jax.grad(loss), model).matrix, kept
    (flops, kept), (most, least), (more, less) = found["none"], found["block"], found["dots"]
    assert flops < more < most
    assert least < less < kept


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: named_config("hopp", "tiny"), "unknown model 'hopp'; expected one of hope, "),
        (lambda: named_config("hope", "huge"), "unknown preset 'huge'; expected one of tiny, "),
        (lambda: LanguageModelConfig("rnn", 257, 16, 2, 2, 8), "unknown mixer 'rnn'"),
        (lambda: LanguageModelConfig("attention", 257, 16, 0, 2, 8), "num_layers=0: expected an integer of at least 1"),
        (lambda: LanguageModelConfig("attention", 257, 0, 1, 2, 8), "width=0: expected an integer of at least 1"),
        (lambda: LanguageModelConfig("attention", 2.5, 16, 1, 2, 8), "vocab_size=2.5: expected an integer"),
        (
            lambda: LanguageModelConfig("attention", 9, 16, 1, 2, 8, chunk_size=0, cms_regime="meta"),
            "chunk_size=0: expected",
        ),
        (
            lambda: LanguageModelConfig("attention", 9, 16, 1, 2, 8, cms_periods=4),
            "cms_periods=4: expected one or more",
        ),
        (
            lambda: LanguageModelConfig("attention", 9, 16, 1, 2, 8, cms_periods=()),
            r"cms_periods=\(\): expected one or",
        ),
        (lambda: LanguageModelConfig("attention", 9, 16, 1, 2, 8, cms_rate=-1.0), "cms_rate=-1.0: expected a positive"),
        (
            lambda: named_config("hope", "tiny", num_layers=40),
            "parameters without feed-forward blocks; expected at most 1,0",
        ),
    ],
)
def test_bad_configurations(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.slow
def test_divergence_is_reported_with_the_first_layer():
    """Weights that are not finite, of either layer's memories; the paper's rule at a rate that is unstable stays."""
    sizes = {"vocab_size": 16, "width": 8, "num_layers": 2, "num_heads": 1, "mlp_hidden": 8, "chunk_size": 16}
    tokens = jax.random.randint(jax.random.key(0), (1, 513), 0, 16)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    optimizer = optax.sgd(0.1)

    def outputs(broken=None, **options):
        config = LanguageModelConfig(
            mixer="self_modifying_titans", **sizes, mixer_options=(*options.items(), ("eta", 10.0))
        )
        model = LanguageModel(config, rngs=nnx.Rngs(0))
        if broken is not None:
            weights = model.blocks.mixer.memories[-1].layers[0]
            weights[...] = weights[...].at[broken].set(jnp.nan)
        state = init_state(lambda: model, optimizer)
        return jax.jit(lambda state: train_step(optimizer, state, batch)[1])(state)

    names = {"loss", "grad_norm", "grad_norm/parameters", "update_norm/parameters", "state_norm/mixers"}
    assert set(finite_outputs("hope", 3, outputs())) == names
    assert set(finite_outputs("hope", 3, outputs(rule="paper", retention="zero"))) == names
    for layer in (0, 1):
        with pytest.raises(TrainingDiverged, match=f"hope diverged at step 3, the memories of layer {layer} first"):
            finite_outputs("hope", 3, outputs(layer))


def test_a_mixer_added_to_the_table_has_a_configuration(monkeypatch):
    monkeypatch.setitem(MIXERS, "mine", MIXERS["linear_attention"])
    config = named_config("mine", "tiny", width=64, mlp_hidden=8)
    assert config.mixer == "mine"
    LanguageModel(config, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="unknown model 'nobody'"):
        named_config("nobody", "tiny")


@pytest.mark.parametrize("mixer", ["attention", "delta_net", "self_modifying_titans", "lstm"])
def test_the_state_of_another_number_of_texts_is_refused(mixer):
    model = LanguageModel(small(mixer), rngs=nnx.Rngs(0))
    tokens = jnp.zeros((3, 4), jnp.int32)
    for call in (model, model.last_logits):
        with pytest.raises(ValueError, match="state is of 2 texts; expected that of 3, as tokens are"):
            jax.eval_shape(call, tokens, model.init_state(2))
        jax.eval_shape(call, tokens, model.init_state(3))


@pytest.mark.parametrize(
    ("tokens", "given"),
    [
        (np.arange(8), r"shape \(8,\) and type int64"),
        (np.zeros((1, 8), np.float32), r"shape \(1, 8\) and type float32"),
        ([[1, 2]], "a list"),
    ],
)
def test_tokens_that_are_no_integers_of_two_axes_are_refused(tokens, given):
    model = LanguageModel(small("transformer"), rngs=nnx.Rngs(0))
    for call in (model, model.last_logits):
        with pytest.raises(
            ValueError, match=rf"tokens (has|is) {given}; expected an array of integers \[batch, time\]"
        ):
            call(tokens)
