"""Figures: they show the data of library objects, name what they show, and nothing lies outside or over each other."""

import itertools

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text

from nl_jax import Schedule
from nl_jax.evaluation import accuracy_matrix
from nl_jax.levels import Pair, from_loss, from_memory, from_optax
from nl_jax.memory import Architecture
from nl_jax.plotting import (
    COLORS,
    accuracy_heat_map,
    array_shardings,
    bits_per_byte_against_context,
    forgetting_curves,
    label_curves,
    level_timeline,
    memory_heat_map,
    nested_system,
    new_figure,
    save_figure,
)


def composed():
    """The README's example: a memory whose keys a slower level projects."""
    memory = from_memory("memory", Architecture(4, 4), period=4)
    slow = from_optax("keys", optax.adam(1e-2), jnp.eye(4), period=8)

    def flow(read, x):
        def surprise(projection):
            return jnp.sum((read("memory", (x @ projection)[None])[0] - x) ** 2)

        return {"memory": Pair(x @ read("keys"), x), "keys": jax.grad(surprise)(read("keys"))}

    return Schedule([memory, slow], flow)


def three_levels():
    def distance(w, x, answers=None):
        return jnp.sum((w - x) ** 2)

    fast = from_loss("fast", distance, jnp.zeros(4), optax.sgd(0.1), sees=("middle",))
    middle = from_loss("middle", distance, jnp.zeros(4), optax.sgd(0.1), period=4, needs=("fast",), sees=("slow",))
    return Schedule([fast, middle, from_loss("slow", distance, jnp.zeros(4), optax.sgd(0.1), period=16)])


def matrices(tasks):
    """Accuracy matrices of a learner that keeps 0.9 of what it knew at each task, and of one that forgets nothing."""
    task_of_text = np.repeat(np.arange(tasks), 10)
    right = [np.arange(10 * tasks) % 10 < 10 - (i - task_of_text) for i in range(tasks)]
    return {
        "forgets": [accuracy_matrix(right, task_of_text)],
        "keeps": [accuracy_matrix([right[0] | True] * tasks, task_of_text)],
    }


BITS = {"hope": np.array([[2.3, 2.1, 1.9], [2.4, 2.2, 1.8]]), "transformer": np.array([[3.3, 2.4, 2.0]])}
TEXT = "def f(x):\n    return x + 1  # read once, and again in the next line of the picture"
FIGURES = {
    "level_timeline": lambda: level_timeline(three_levels(), 32),
    "level_timeline, many steps": lambda: level_timeline(three_levels(), 4096),
    "nested_system": lambda: nested_system(composed(), jnp.ones(4)),
    "nested_system, three levels": lambda: nested_system(three_levels()),
    "memory_heat_map": lambda: memory_heat_map(np.linspace(0, 1, len(TEXT)), list(TEXT), label="η", rows=["layer 1"]),
    "memory_heat_map, square": lambda: memory_heat_map(np.eye(40), list(TEXT[:40]), label="answer", centre=0),
    "forgetting_curves": lambda: forgetting_curves(matrices(6)),
    "accuracy_heat_map": lambda: accuracy_heat_map({name: found[0] for name, found in matrices(10).items()}),
    "bits_per_byte_against_context": lambda: bits_per_byte_against_context(BITS, [64, 128, 256]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_lie_inside_of_the_figure_and_not_on_each_other(name):
    figure = FIGURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = []
    for text in texts_of(figure):
        # the box of an annotation would reach as far as its arrow
        box = (
            Text.get_window_extent(text, renderer) if isinstance(text, Annotation) else text.get_window_extent(renderer)
        )
        boxes.append((text.get_text(), box.padded(-1)))
    assert len(boxes) > 3
    for text, box in boxes:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y1 <= figure.bbox.height + 1, text
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)


def texts_of(figure):
    """All texts that are drawn: not ticks beyond the limits of their axis, nor axes that are switched off."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.texts)]
    for axes in figure.axes:
        found += axes.texts
        if axes.axison:
            found += [axes.title, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                low, high = sorted(axis.get_view_interval())
                ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                found += [label for tick in ticks for label in (tick.label1, tick.label2)]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def test_a_timeline_has_an_update_wherever_the_schedule_has_one():
    schedule = three_levels()
    (axes,) = level_timeline(schedule, 32).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "fast\nevery step",
        "middle\nevery 4 steps",
        "slow\nevery 16 steps",
    ]
    ends = [
        sorted({round(p.get_x() + p.get_width()) for p in bars if p.get_alpha() is None}) for bars in axes.containers
    ]
    drawn = [found for found in ends if found]
    assert drawn == [(1 + np.flatnonzero(due)).tolist() for due in schedule.timeline(32).T]
    assert axes.get_xlabel() == "steps"
    assert schedule.plot(8).axes[0].get_xlim() == (0, 8)


def test_arrows_are_what_the_flow_reads_and_what_levels_need():
    schedule = composed()
    assert schedule.sources(jnp.ones(4)) == {"memory": ("keys",), "keys": ("keys", "memory")}

    def heads(figure):
        return [t for t in figure.axes[0].texts if isinstance(t, Annotation) and t.xy[0] > 1]

    assert len(heads(nested_system(schedule))) == 0
    assert len(heads(nested_system(schedule, jnp.ones(4)))) == 2  # a level that reads itself has no arrow
    figure = nested_system(three_levels())
    assert len(heads(figure)) == 3
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "its state before the step is read by the other's update",
        "its state after the step is read by the other's update",
    ]


def test_without_a_flow_a_level_has_no_sources():
    assert three_levels().sources({name: jnp.ones(4) for name in ("fast", "middle", "slow")}) == {
        "fast": (),
        "middle": (),
        "slow": (),
    }


def test_curves_are_means_and_bands_reach_from_min_to_max():
    (axes,) = bits_per_byte_against_context(BITS, [64, 128, 256]).axes
    assert [line.get_label() for line in axes.lines] == list(BITS)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2.35, 2.15, 1.85])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1.8, 2.4)
    assert {text.get_text(): text.get_color() for text in axes.texts} == {
        "hope": COLORS[0],
        "transformer": COLORS[1],
    }
    assert axes.get_ylabel() == "bits per byte"


def test_curves_that_end_apart_or_are_too_many_have_a_legend():
    for ends in ([[0, 1], [0, 2]], [[0, 1]] * 60):
        _, axes = new_figure()
        for i, x in enumerate(ends):
            axes.plot(x, [0, i], label=f"line {i}")
        label_curves(axes)
        assert axes.get_legend() is not None
        assert not axes.texts
    _, axes = new_figure()
    axes.plot([0, 1], [np.nan, np.nan], label="never")
    label_curves(axes)
    _, axes = new_figure()
    label_curves(axes)
    assert axes.get_legend() is None


def test_forgetting_and_accuracies_are_those_of_the_matrices():
    found = matrices(4)
    so_far, first = forgetting_curves(found).axes
    np.testing.assert_allclose(first.lines[0].get_ydata(), [1.0, 0.9, 0.8, 0.7])
    np.testing.assert_allclose(so_far.lines[1].get_ydata(), 1.0)
    figure = accuracy_heat_map(found["forgets"][0])
    assert [text.get_text() for text in figure.axes[0].texts][:3] == ["1.00", "0.90", "1.00"]
    assert np.isnan(np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)[0, 1])
    assert [axes.get_title() for axes in accuracy_heat_map({k: v[0] for k, v in found.items()}).axes[:2]] == list(found)


def test_a_heat_map_shows_each_token_once_under_its_value():
    values = np.arange(len(TEXT), dtype=float)
    *lines, _ = memory_heat_map(values, list(TEXT), label="η", per_line=32).axes
    shown = "".join(tick.get_text() for axes in lines for tick in axes.get_xticklabels())
    assert shown == TEXT.replace(" ", "␣").replace("\n", "⏎")
    pictures = [np.ma.filled(axes.images[0].get_array().astype(float), np.nan) for axes in lines]
    np.testing.assert_array_equal(np.concatenate(pictures, axis=1)[0, : len(TEXT)], values)
    norm = memory_heat_map(np.array([-1.0, 3.0]), ["a", "b"], label="change", centre=0).axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (-3, 3)
    assert memory_heat_map(np.zeros(2), ["a", "b"], label="none", centre=0).axes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": ["a"]}, "values has 2 columns; expected one for each of 1 tokens"),
        ({"rows": ["a", "b"]}, "rows has 2 names; expected one for each of 1 rows"),
        ({"tokens": []}, "0 tokens, per_line=64: expected .* at least one token"),
        ({"per_line": 0}, "per_line=0: expected .* at least one token"),
    ],
)
def test_heat_maps_that_do_not_fit_their_text_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        memory_heat_map(np.zeros(2), **({"tokens": ["a", "b"], "label": "x"} | arguments))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: accuracy_heat_map({}), "matrices has no entries; expected one or more"),
        (lambda: forgetting_curves({"a": []}), r"learner 'a' has matrices of shapes \[\]; expected one or more"),
        (lambda: forgetting_curves({"a": [np.ones((2, 2)), np.ones((3, 3))]}), r"shapes \[\(2, 2\), \(3, 3\)\]"),
        (
            lambda: bits_per_byte_against_context({"a": np.ones((1, 3))}, [1, 2]),
            r"curve 'a' has shape \(1, 3\); expected \[seeds, 2\]",
        ),
    ],
)
def test_curves_and_matrices_that_cannot_be_drawn_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_no_global_option_of_matplotlib_changes(tmp_path):
    before = dict(matplotlib.rcParams)
    save_figure(FIGURES["forgetting_curves"](), tmp_path / "figure.png")
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_shardings_are_cut_where_devices_change():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    places = {
        "split": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")),
        "copied": jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()),
    }
    count = len(jax.devices())
    figure = array_shardings({name: jax.device_put(jnp.ones((2 * count, 3)), place) for name, place in places.items()})
    split, copied = ([text.get_text() for text in axes.texts] for axes in figure.axes)
    assert split == [str(device.id) for device in jax.devices()]
    assert copied == [", ".join(split)]
