"""The subject gpu of the benchmark at sizes where it takes seconds, on whatever device there is."""

import time

import jax
import pytest
from launcher_cases import results_of

from experiments import benchmark
from experiments.benchmarking import gpu
from experiments.benchmarking.timed_programs import Program, Sizes
from experiments.benchmarking.torch_models import torch_transformer
from nl_jax.models import named_config

SMALL = ["--preset=tiny", "--matrix_size=16", "--repeats=1", "--models=transformer"]


def call(workdir, *flags):
    return benchmark.main(["benchmark", "gpu", f"--workdir={workdir}", *SMALL, *flags])


def torch_stand_in(sizes, *, compiled=False):
    """As if PyTorch were here: plain programs work, compiled ones do not."""
    assert sizes.dtype == "bfloat16"
    if compiled:
        raise RuntimeError("CUDA out of memory.\nTried to allocate")
    return Program(sizes.width, lambda: 1.0)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A whole run with PyTorch's Transformer by a stand-in."""
    workdir = tmp_path_factory.mktemp("gpu") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "torch_transformer", torch_stand_in)
        patch.setattr(gpu, "device_memory", no_memory)
        assert call(workdir, "--lengths=16:2,32:1") == 0
    return workdir


class no_memory:  # a context manager, named like the function that it stands for
    def __enter__(self):
        return lambda: 2**30

    def __exit__(self, *problem):
        pass


def test_everything_is_measured_and_problems_are_kept(measured):
    results = results_of(measured)
    figures = results["figures"]
    assert list(figures) == [
        *("torch_transformer 16:2", "torch_transformer 32:1"),
        *("torch_transformer compiled 16:2", "torch_transformer compiled 32:1"),
        "matrix product",
        *("transformer 16:2", "transformer 32:1", "transformer in blocks 16:2"),
    ]
    assert figures["torch_transformer compiled 32:1"] == {"problem": "CUDA out of memory. Tried to allocate"}
    assert figures["matrix product"]["device"] == jax.devices()[0].device_kind
    assert figures["matrix product"]["flops_per_second"] > 0
    assert figures["torch_transformer 16:2"]["peak_memory_bytes"] == 2**30
    for key in ("transformer 16:2", "transformer 32:1", "transformer in blocks 16:2"):
        row = figures[key]
        assert row["parameters"] > 900_000
        assert row["remat"] == "none"
        for name in ("tokens_per_second", "model_flops_per_second", "peak_memory_bytes", "compile_seconds"):
            assert row[name] > 0
    flags = results["configuration"]["flags"]
    assert (flags["preset"], flags["dtype"], "max_minutes" in flags) == ("tiny", "bfloat16", False)
    assert results["configuration"]["models"]["transformer"]["dtype"] == "bfloat16"


def test_tables_have_ratios_to_pytorch_and_say_what_failed(measured, capsys):
    before = results_of(measured)
    assert call(measured, "--lengths=16:2,32:1", "--max_minutes=0") == 0  # prints again
    lines = capsys.readouterr().out.splitlines()
    assert "TFLOP/s of bfloat16 matrix products" in lines[0]
    header = next(line for line in lines if line.startswith("model "))
    assert "x torch_transformer" in header
    assert "x torch_transformer compiled" not in header
    assert sum(line.startswith("transformer ") for line in lines) == 3  # one of them in blocks
    assert lines.count("torch_transformer compiled: CUDA out of memory. Tried to allocate") == 2
    assert results_of(measured) == before


def test_when_the_minutes_are_over_the_rest_is_left_and_measured_later(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert call(workdir, "--lengths=16:2", "--max_minutes=0") == 0
    assert list(results_of(workdir)["figures"]) == ["matrix product"]
    assert "transformer: not measured: the minutes were over" in capsys.readouterr().out
    assert call(workdir, "--lengths=16:2", "--competitors=torch_transformer", "--max_minutes=0") == 2
    assert "competitors" in capsys.readouterr().err


def test_utilisation_is_given_on_a_known_device():
    row = {"step_seconds": 0.5, "tokens_per_second": 8.0, "model_flops_per_second": 98.9e12, "parameters": 5}
    row |= {"peak_memory_bytes": 2**31, "compile_seconds": 7.0}
    header, one = gpu.table({"hope": row, "absent": {"problem": "no"}}, peak=197.8e12, nominal=989e12)
    cells = dict(zip(header, one, strict=True))
    assert (cells["of nominal"], cells["of measured"], cells["GiB"], cells["step ms"]) == (
        *("10.0%", "50.0%", "2.00", "500.0"),
    )


def test_other_settings_are_measured_at_the_first_length():
    class run:
        class values:
            models = ("transformer", "delta_net", "hope")

        lengths = ((64, 2), (128, 1))

        @staticmethod
        def config(model, length):
            return named_config(model, "tiny", context_length=length)

    waves = gpu.waves_of(run)
    assert [[row.key for row in wave] for wave in waves] == [
        ["transformer 64:2", "delta_net 64:2", "hope 64:2"],
        [
            *("transformer 128:1", "delta_net 128:1", "hope 128:1"),
            *("hope chunk 128 64:2", "delta_net chunk 128 64:2", "hope chunk 256 64:2", "delta_net chunk 256 64:2"),
            "transformer in blocks 64:2",
        ],
    ]
    assert [row.config.chunk_size for row in waves[1][3:]] == [128, 128, 256, 256, 64]


class small_memory:
    """A training whose step needs 3, 2 and 1 bytes under the three policies."""

    def __init__(self, config, batch_size, length, init_model):
        self.need = 3 - gpu.POLICIES.index(config.remat)

    def check_memory(self, limit):
        if self.need > limit:
            raise MemoryError(f"a step needs {self.need}")
        return self.need


def test_the_first_policy_that_fits_into_memory_is_taken(monkeypatch):
    monkeypatch.setattr(gpu, "Training", small_memory)
    row = gpu.Row("transformer", named_config("transformer", "tiny", context_length=8), 1)
    assert [gpu.build(row, limit).remat for limit in (3, 2, 1)] == list(gpu.POLICIES)
    with pytest.raises(MemoryError, match="a step needs 1"):
        gpu.build(row, 0)


def test_what_does_not_compile_in_time_is_left(monkeypatch, capsys):
    row = gpu.Row("late", named_config("transformer", "tiny", context_length=8), 1)
    monkeypatch.setattr(gpu, "build", lambda row, limit, end: time.sleep(0.5))

    class run:
        memory_limit = 0

        class record:
            get = staticmethod(lambda key: None)

    gpu.measure_wave(run, [row], time.monotonic() + 0.1)
    assert "not compiled in time: late 8:1" in capsys.readouterr().err


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pytorch_trains_in_bfloat16(compiled):
    pytest.importorskip("torch")
    shape = {"vocab_size": 257, "width": 16, "num_heads": 2, "num_layers": 2, "mlp_hidden": 32}
    sizes = Sizes(**shape, batch_size=2, length=24, dtype="bfloat16")
    program = torch_transformer(sizes, compiled=compiled)
    losses = [program.step() for _ in range(20)]
    assert program.forward() < losses[0]
