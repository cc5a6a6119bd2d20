"""How tokens are drawn, and where a text stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nl_jax.data import until_stop
from nl_jax.models import LanguageModel, named_config
from nl_jax.streaming import Stream
from nl_jax.streaming.generation import ROOM, checked_sampling, draw, sample, with_room

SHARES = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
SIZES = {"width": 8, "num_heads": 1, "mlp_hidden": 8}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.6}, [1, 3]),
        ({"top_p": 0.66}, [1, 3, 4]),
        ({"top_p": 1e-6}, [1]),
        ({"top_k": 3, "top_p": 0.7}, [1, 3]),  # 0.4 and 0.25 of 0.85
        ({"top_k": 1}, [1]),
    ],
)
def test_only_likely_tokens_are_drawn_and_in_proportion(options, kept):
    sampling = checked_sampling(1.0, options.get("top_k"), options.get("top_p", 1.0), 5)
    logits = jnp.broadcast_to(jnp.log(SHARES), (20_000, 5))
    counts = np.bincount(jax.jit(draw)(logits, jax.random.key(0), sampling), minlength=5) / len(logits)
    expected = np.where(np.isin(np.arange(5), kept), SHARES, 0)
    np.testing.assert_allclose(counts, expected / expected.sum(), atol=0.015)
    assert set(np.flatnonzero(counts)) == set(kept)


def test_temperature_comes_before_the_cut():
    logits = jnp.log(SHARES)[None]
    cold = checked_sampling(0.25, None, 0.6, 5)  # the likeliest token has 0.4⁴ of 0.031 then
    assert {int(draw(logits, jax.random.key(i), cold)[0]) for i in range(50)} == {1}
    greedy = checked_sampling(0.0, 3, 0.5, 5)
    assert int(draw(logits, jax.random.key(0), greedy)[0]) == 1


@pytest.mark.parametrize("regime", ["online", "outer"])
def test_one_token_to_draw_from_is_the_likeliest_for_models_and_streams(regime):
    periods = {"chunk_size": 4, "cms_periods": (4,), "cms_regime": regime} if regime == "online" else {}
    model = LanguageModel(named_config("attention", "tiny", **SIZES, **periods), rngs=nnx.Rngs(0))
    readers = [lambda *given, **options: list(sample(model, *given, **options))]
    if regime == "online":
        readers.append(Stream(model).generate)
    for read in readers:
        greedy = read(b"nested", num_tokens=9, temperature=0.0)
        assert read(b"nested", num_tokens=9, temperature=5.0, top_k=1) == greedy
        assert read(b"nested", num_tokens=9, temperature=5.0, top_p=1e-9) == greedy
        assert read(b"nested", num_tokens=9, temperature=5.0) != greedy


def test_room_for_the_text_alone_changes_nothing():
    model = LanguageModel(named_config("attention", "tiny", **SIZES, num_layers=1), rngs=nnx.Rngs(0))
    small = with_room(model, 3)
    assert small.init_state(1).keys.shape[2] == ROOM
    assert model.init_state(1).keys.shape[2] == model.config.context_length > ROOM
    assert with_room(model, 10**6) is model
    tokens = np.arange(ROOM)[None]
    last, expected = (m(tokens[:, -1:], m(tokens[:, :-1])[1])[0] for m in (small, model))
    np.testing.assert_allclose(last, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["a b", "c"], [], ["a b", "c"]),
        (["one. ", "two"], ["."], ["one"]),
        (["User", " says", "\nUse", "r: no"], ["\nUser:"], ["User", " says"]),
        (["\nUse", "ful"], ["\nUser:"], ["\nUseful"]),
        (["ends \n"], ["\n\n"], ["ends ", "\n"]),
        (["ab", "abc"], ["abc", "bab"], ["a"]),
    ],
)
def test_a_text_stops_before_a_stop_string(pieces, stops, expected):
    taken = []
    assert list(until_stop((taken.append(p) or p for p in pieces), stops)) == expected
    assert "".join(taken).startswith("".join(expected))


def test_nothing_is_read_after_a_stop_string():
    def pieces():
        yield "stop here"
        raise AssertionError("read on")

    assert list(until_stop(pieces(), ["here"])) == ["stop "]
