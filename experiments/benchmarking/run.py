"""The argument of a subject of ``experiments.benchmark``: checked flags and the record of figures."""

import dataclasses
import os
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
from absl import flags

from experiments.benchmarking.competitors import COMPETITORS
from experiments.common import launcher
from experiments.common.compute_flags import compute_fields
from experiments.common.record import Record
from nl_jax import InputError
from nl_jax.models import MODEL_NAMES, LanguageModelConfig, count_parameters, named_config
from nl_jax.parallel import use_cpu_cores
from nl_jax.parallel.kernels import choose_backend

NAME = "benchmark"
VOCAB_SIZE = 257
LENGTHS = {
    "mixers": ["1024:4", "8192:1"],
    "scaling": [f"{1024 * 2**i}:1" for i in range(6)],
    "compile": ["1024:4"],
    "remat": ["1024:2"],
    "gradients": [f"{64 * 2**i}:1" for i in range(7)],
    "pretrained": ["512:1"],
    "gpu": ["8192:4", "32768:1"],
    "kernel": ["8192:4"],
}
# What a subject takes for flags that are not given; the other subjects measure all models, and in float32.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gpu": {
        "models": ["transformer", "delta_net", "hope", "titans", "gated_delta_net"],
        "preset": "base",
        "dtype": "bfloat16",
    },
    "kernel": {"models": ["delta_net", "gated_delta_net", "transformer"], "preset": "base", "dtype": "bfloat16"},
}
ON_ACCELERATORS = ("gpu", "kernel")  # subjects that take nearly all memory of a device
OTHERS = ("torch", "transformers", "titans-pytorch", "nested-learning")  # packages whose versions are recorded
Figures = dict[str, Any]


class Run:
    """The checked flags of a subject, and its figures, which are written as soon as they are measured.

    Attributes:
        values: the flags.
        workdir: directory of the results.
        record: the figures.
        lengths: pairs of a sequence length in tokens and a batch size.
        depths: numbers of layers.
        memory_limit: largest number of bytes that a step may need.
    """

    def __init__(self, subject: str, values: flags.FlagValues):
        self.values = values
        self.workdir = launcher.own_workdir(values)
        for name, value in ({"models": list(MODEL_NAMES)} | DEFAULTS.get(subject, {})).items():
            if values[name].value is None:
                values[name].value = value
        if subject in ON_ACCELERATORS:
            os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")  # read when JAX starts, below
        for name in ("width", "num_heads", "num_layers", "chunk_size", "repeats"):
            launcher.check_range(values, name, 1)
        launcher.check_range(values, "matrix_size", 1, 2**14)
        for name in ("max_seconds", "max_minutes"):
            launcher.check_range(values, name, 0)
        if values.memory_gib is not None:
            launcher.check_range(values, "memory_gib", 0)
        launcher.check_names("models", values.models, MODEL_NAMES, required=True)
        launcher.check_names("competitors", values.competitors, COMPETITORS)
        _check_preset(values)
        self.lengths = _parse_lengths(values.lengths or LENGTHS[subject])
        self.depths = _parse_depths(values.depths)
        if subject != "pretrained":  # one text is read by all cores together
            use_cpu_cores()
        share = 0.95 if subject in ON_ACCELERATORS else 0.75
        if values.kernel == "pallas":
            choose_backend("pallas", lambda backend: True)
        self.memory_limit = _device_memory() * share if values.memory_gib is None else values.memory_gib * 2**30

        configs = {name: self.config(name, max(self.lengths)[0]) for name in values.models}
        for name, config in configs.items():
            try:
                count_parameters(config)
            except ValueError as error:
                raise InputError(f"model {name!r} cannot be built: {error}") from error
        given = {"subject": subject, **values.flag_values_dict()}
        del given["workdir"], given["max_minutes"]  # with more minutes a run goes on
        metadata = {"flags": given, "models": {name: config.to_json() for name, config in configs.items()}}
        self.record = Record(
            self.workdir,
            {"launcher": NAME, "data": {"tokens": "random"}, **metadata},
            {"versions": launcher.versions() | _competitor_versions()},
            written=(f"{subject}.png",),
        )
        self.figures = self.record.figures

    def only_length(self) -> tuple[int, int]:
        """The length and batch size of a subject that measures at one; raises `InputError` if there are several."""
        if len(self.lengths) > 1:
            raise InputError(f"--lengths={','.join(self.values.lengths)}: expected one, as {self.values.lengths[0]}")
        return self.lengths[0]

    def config(self, model: str, length: int, num_layers: int | None = None) -> LanguageModelConfig:
        """The configuration of a model; configurations differ in the mixer only, or are those of a preset.

        Without ``num_layers`` it has as many layers as the flags say, or the preset.
        """
        values = self.values
        sizes = {"chunk_size": values.chunk_size, "context_length": length, **compute_fields(values)}
        if values.preset is not None:
            config = named_config(model, values.preset, **sizes)
            return config if num_layers is None else dataclasses.replace(config, num_layers=num_layers)
        return named_config(
            model,
            "tiny",
            vocab_size=VOCAB_SIZE,
            width=values.width,
            num_heads=values.num_heads,
            num_layers=values.num_layers if num_layers is None else num_layers,
            mlp_hidden=2 * values.width,
            cms_periods=(1,),
            **sizes,
        )


def _check_preset(values: flags.FlagValues) -> None:
    """Raises `InputError` if sizes are given beside a preset, which has its own."""
    for name in ("width", "num_heads", "num_layers"):
        if values.preset is not None and values[name].present:
            given = f"--{name}={values[name].value} --preset={values.preset}"
            raise InputError(f"{given}: expected no --{name}, since a preset has sizes of its own")


def _parse_lengths(pairs: Sequence[str]) -> list[tuple[int, int]]:
    if len(set(pairs)) < len(pairs) or not all(re.fullmatch("[1-9][0-9]{0,8}:[1-9][0-9]{0,8}", p) for p in pairs):
        raise InputError(f"--lengths={','.join(pairs)}: expected tokens:batch pairs, as 1024:4,8192:1, none twice")
    return [(int(length), int(batch_size)) for length, batch_size in (pair.split(":") for pair in pairs)]


def _parse_depths(depths: Sequence[str]) -> list[int]:
    if not depths or len(set(depths)) < len(depths) or not all(re.fullmatch("[1-9][0-9]{0,3}", d) for d in depths):
        raise InputError(f"--depths={','.join(depths)}: expected numbers of layers, as 2,12, none twice")
    return [int(depth) for depth in depths]


def _device_memory() -> int:
    """Bytes of memory of the device, or of the machine if the device does not report them."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _competitor_versions() -> dict[str, str]:
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {name: installed[name] for name in OTHERS if name in installed}
