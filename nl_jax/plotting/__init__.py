"""Every figure: functions that take objects of this library and return a Matplotlib figure, drawn without a display."""

from nl_jax.plotting.curves import bits_per_byte_against_context, forgetting_curves, plot_band, plot_bits
from nl_jax.plotting.matrices import accuracy_heat_map, memory_heat_map
from nl_jax.plotting.schedules import level_timeline, nested_system
from nl_jax.plotting.shardings import array_shardings
from nl_jax.plotting.style import COLORS, GRAY, STYLE, WIDTH, label_curves, new_figure, save_figure

__all__ = [
    "COLORS",
    "GRAY",
    "STYLE",
    "WIDTH",
    "accuracy_heat_map",
    "array_shardings",
    "bits_per_byte_against_context",
    "forgetting_curves",
    "label_curves",
    "level_timeline",
    "memory_heat_map",
    "nested_system",
    "new_figure",
    "plot_band",
    "plot_bits",
    "save_figure",
]
