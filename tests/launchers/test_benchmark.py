"""The benchmark at sizes where it takes seconds: what it writes, prints and survives; never how fast anything is."""

import json
import math

import pytest
from launcher_cases import no_compilation_cache, results_of
from pretrained_cases import configuration, tensors_of, write_directory

from experiments import benchmark
from experiments.benchmarking import competitors, measurements, subjects
from experiments.benchmarking import run as benchmarking_run
from experiments.benchmarking.timed_programs import Program, Sizes, Timing, Training, interleave, sizes_of
from nl_jax import InputError
from nl_jax.costs import Flops
from nl_jax.models import count_parameters, named_config

SMALL = ["--width=8", "--num_heads=2", "--num_layers=1", "--chunk_size=4", "--matrix_size=8", "--repeats=2"]
MODELS = ["transformer"]  # compiles quickly


def call(*arguments):
    return benchmark.main(["benchmark", *map(str, arguments)])


def run(subject, workdir, *flags):
    return call(subject, f"--workdir={workdir}", f"--models={','.join(MODELS)}", *SMALL, *flags)


def test_interleave_goes_round_and_survives():
    log = []

    def record(name, value=0.0, fails_at=None):
        def one():
            log.append(name)
            if log.count(name) == fails_at:
                raise ValueError("no\nmore")
            return value

        return one

    calls = {
        "a": record("a"),
        "nan": record("nan", math.nan),
        "b": record("b", fails_at=2),
        "c": record("c", fails_at=1),
    }
    timings = interleave(calls, rounds=3)
    assert log == [
        *["a", "nan", "b", "c"],
        *["a", "a", "nan", "nan", "b"],
        *["a", "a", "nan", "nan"],
        *["a", "a", "nan", "nan"],
    ]
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "nan": 3, "b": 0, "c": 0}
    assert [timings[name].problem for name in calls] == [None, "the loss is nan", "no more", "no more"]
    log.clear()
    timings = interleave({"slow": record("slow"), "b": record("b", fails_at=3)}, rounds=3, max_seconds=0)
    assert log == ["slow", "b"]
    assert all(len(timing.seconds) == 1 and timing.problem is None for timing in timings.values())


def test_figures_come_from_medians():
    program = Program(5, float, float, Flops(4_000_000_000, 8), 7)
    row = measurements.figures_of(program, Timing([1.0, 9.0, 2.0]), Timing([0.5], "the loss is inf"), num_tokens=4)
    assert (row["step_seconds"], row["tokens_per_second"], row["gflops"]) == (2.0, 2.0, 2.0)
    assert (row["matrix_flops_per_token"], row["elementwise_flops_per_token"]) == (1e9, 2.0)
    assert row["problem"] == "the loss is inf"
    assert measurements.figures_of(program, Timing([], "broke"), Timing([]), 4) == {"problem": "broke"}


def test_exponent():
    assert measurements.exponent({n: 3.0 * n**1.5 for n in (10, 20, 80)}) == pytest.approx(1.5)
    assert measurements.exponent({10: 3.0}) is None


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A whole run of mixers with competitors that are quick: a stand-in that works, and one that is not installed."""

    def absent(sizes):
        raise ModuleNotFoundError("No module named 'absent'")

    workdir = tmp_path_factory.mktemp("mixers") / "run"
    arguments = (workdir, "--lengths=8:2,16:1", "--competitors=jax_attention,absent")
    with pytest.MonkeyPatch.context() as patch:
        quick = {"jax_attention": lambda sizes: Program(sizes.length, lambda: 1.0), "absent": absent}
        others = competitors.COMPETITORS | quick  # the patch stays for the tests of this file
        for module in (measurements, benchmarking_run):
            patch.setattr(module, "COMPETITORS", others)
        assert run("mixers", *arguments) == 0
        yield arguments


def test_mixers_measures_everything(measured, capsys):
    workdir, *_ = measured
    results = results_of(workdir)
    assert {"configuration", "versions", "device"} < set(results)
    assert list(results["figures"]) == ["8:2", "16:1"]
    for figures in results["figures"].values():
        assert figures["peak_gflops"] > 0
        assert list(figures["models"]) == [*MODELS, "jax_attention", "absent"]
        assert figures["models"]["absent"] == {"problem": "No module named 'absent'"}
        for name in MODELS:
            row = figures["models"][name]
            assert "problem" not in row
            assert len(row["all_step_seconds"]) == 2
            assert all(value > 0 for key, value in row.items() if key != "all_step_seconds")
    assert results["figures"]["16:1"]["models"]["jax_attention"]["parameters"] == 16
    assert (workdir / "mixers.png").read_bytes().startswith(b"\x89PNG")


def test_same_command_prints_again_and_goes_on(measured, capsys, monkeypatch):
    workdir, *_ = measured
    before = results_of(workdir)
    sizes = []

    def measure(run, length, batch_size, **_):
        sizes.append((length, batch_size))
        return before["figures"][f"{length}:{batch_size}"]

    monkeypatch.setattr(subjects, "measure", measure)
    assert run("mixers", *measured) == 0
    out = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("transformer ") for line in out) == 2
    assert "absent: No module named 'absent'" in out
    assert out[-1] == f"Everything is in {workdir}: results.json, mixers.png"
    assert (results_of(workdir), sizes) == (before, [])

    del before["figures"]["16:1"]  # as if it had been stopped there
    (workdir / "results.json").write_text(json.dumps(before))
    before = {**before, "figures": {**before["figures"], "16:1": before["figures"]["8:2"]}}
    assert run("mixers", *measured) == 0
    assert sizes == [(16, 1)]


def test_another_configuration_is_refused(measured, capsys):
    for subject, flags, problem in [
        ("mixers", ["--width=16"], "width 8 there, 16 here"),
        ("scaling", [], "subject 'mixers' there, 'scaling' here"),
    ]:
        assert run(subject, *measured, *flags) == 2
        assert problem in capsys.readouterr().err


def test_what_does_not_fit_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measurements, "COMPETITORS", competitors.COMPETITORS)
    assert run("mixers", tmp_path, "--lengths=8:1", "--memory_gib=1e-6", "--competitors=jax_attention") == 0
    out = capsys.readouterr().out
    for name in (*MODELS, "jax_attention"):
        assert f"{name}: a step needs" in out
        assert "problem" in results_of(tmp_path)["figures"]["8:1"]["models"][name]


def test_scaling_fits_exponents(tmp_path, capsys):
    assert run("scaling", tmp_path, "--lengths=8:1,32:1") == 0
    exponents = results_of(tmp_path)["figures"]["exponents"]
    assert set(exponents) == {"step_seconds", "peak_memory_bytes", "state_bytes"}
    assert exponents["state_bytes"]["transformer"] == pytest.approx(1, abs=0.05)  # keys and values of every token
    out = capsys.readouterr().out
    assert sum(line.endswith("exponent") for line in out.splitlines()) == 3
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_compile_by_depth(tmp_path, capsys):
    with no_compilation_cache():
        assert run("compile", tmp_path, "--lengths=8:1", "--depths=3") == 0
    figures = results_of(tmp_path)["figures"]
    assert list(figures) == ["transformer, 3 layers"]
    row = figures["transformer, 3 layers"]
    assert 0 < row["compile_seconds"] < row["first_step_seconds"]
    assert "compile s" in capsys.readouterr().out


@pytest.mark.slow  # the same of models, traced: tests/models/test_models.py
def test_remat_by_policy(tmp_path, capsys):
    assert run("remat", tmp_path, "--lengths=64:2", "--dtype=bfloat16") == 0
    figures = results_of(tmp_path)["figures"]
    assert list(figures) == [f"transformer, {policy}" for policy in ("none", "block", "dots")]
    none, block, dots = (row["matrix_flops_per_token"] for row in figures.values())
    assert none < dots < block
    assert all(row["temporary_bytes"] > 0 for row in figures.values())
    assert "MiB of temporaries" in capsys.readouterr().out


@pytest.mark.parametrize(  # jax_attention trains in the next test, too
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "jax_attention" else n for n in competitors.COMPETITORS]
)
def test_competitors_train(name, tmp_path):
    if name != "jax_attention":
        pytest.importorskip("torch" if name == "torch_transformer" else name)
    sizes = Sizes(vocab_size=257, width=16, num_heads=2, num_layers=2, mlp_hidden=32, batch_size=2, length=24)
    program = competitors.COMPETITORS[name](sizes)
    losses = [program.step() for _ in range(20)]
    assert program.forward() < losses[0]
    if name in ("jax_attention", "torch_transformer"):
        config = named_config("transformer", "tiny", width=16, num_heads=2, num_layers=2, mlp_hidden=32)
        assert program.parameters == count_parameters(config)


def sizes_given(workdir, monkeypatch, *flags):
    """What a competitor gets, and the configuration of our Transformer beside it."""
    given = []

    def stand_in(sizes):
        given.append(sizes)
        return Program(sizes.length, lambda: 1.0)

    def ours(config, *_, **options):
        given.append(config)
        return Program(config.context_length, lambda: 1.0)

    for module in (measurements, benchmarking_run):
        monkeypatch.setattr(module, "COMPETITORS", {"jax_attention": stand_in})
    monkeypatch.setattr(measurements, "our_program", ours)
    few = ["--models=transformer", "--competitors=jax_attention", "--lengths=8:2", "--matrix_size=8", "--repeats=1"]
    assert call("mixers", f"--workdir={workdir}", *few, *flags) == 0
    config, sizes = given
    return config, sizes


@pytest.mark.parametrize("flags", [["--preset=small", "--dtype=bfloat16"], ["--width=16", "--num_layers=3"]])
def test_competitors_have_the_sizes_of_our_transformer(flags, tmp_path, monkeypatch):
    config, sizes = sizes_given(tmp_path / "run", monkeypatch, *flags)
    for name in ("vocab_size", "width", "num_heads", "num_layers", "mlp_hidden", "dtype", "remat"):
        assert getattr(sizes, name) == getattr(config, name), name
    assert (sizes.length, sizes.batch_size) == (config.context_length, 2) == (8, 2)


def test_jax_attention_computes_as_our_transformer(monkeypatch):
    monkeypatch.setattr(competitors, "our_program", lambda config, *_, **options: config)
    config = named_config("transformer", "base", context_length=64, dtype="bfloat16")
    assert competitors.jax_attention(sizes_of(config, 2)) == config


@pytest.mark.parametrize("name", ["titans_pytorch", "nested_learning"])
def test_a_competitor_in_float32_refuses_another_type(name):
    sizes = sizes_of(named_config("transformer", "tiny", context_length=8, dtype="bfloat16"), 1)
    with pytest.raises(InputError, match=f"--dtype=bfloat16: {name} computes in float32; expected --dtype=float32"):
        competitors.COMPETITORS[name](sizes)


@pytest.mark.parametrize(
    ("subject", "flags", "problem"),
    [
        ("mixers", ["--preset=small", "--width=128"], "--width=128 --preset=small: expected no --width"),
        ("scaling", ["--preset=tiny", "--num_heads=2"], "--num_heads=2 --preset=tiny: expected no --num_heads"),
        ("gpu", ["--num_layers=2"], "--num_layers=2 --preset=base: expected no --num_layers"),
        ("remat", ["--lengths=8:1,16:1"], "--lengths=8:1,16:1: expected one, as 8:1"),
        ("compile", ["--lengths=8:1,16:1"], "--lengths=8:1,16:1: expected one, as 8:1"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(subject, flags, problem, tmp_path, capsys):
    with no_compilation_cache():
        assert call(subject, f"--workdir={tmp_path / 'run'}", "--models=transformer", *flags) == 2
    assert problem in capsys.readouterr().err


def test_depths_are_those_of_the_rows_also_with_a_preset(tmp_path, monkeypatch):
    seen = {}

    def compile_time(title, config, *_):
        seen[title] = config
        return {"compile_seconds": 1.0, "first_step_seconds": 2.0}

    monkeypatch.setattr(subjects, "compile_time", compile_time)
    flags = ["--preset=small", "--depths=2,12", "--lengths=8:1", "--models=transformer"]
    with no_compilation_cache():
        assert call("compile", f"--workdir={tmp_path / 'run'}", *flags) == 0
    assert {title: config.num_layers for title, config in seen.items()} == {
        "transformer, 2 layers": 2,
        "transformer, 12 layers": 12,
    }
    (sizes,) = {(config.width, config.mlp_hidden) for config in seen.values()}
    preset = named_config("transformer", "small")
    assert sizes == (preset.width, preset.mlp_hidden)


@pytest.mark.slow
def test_jax_attention_is_our_transformer():
    shape = {"vocab_size": 257, "width": 16, "num_heads": 2, "num_layers": 2, "mlp_hidden": 32}
    batch_size, length = 2, 150
    other = competitors.jax_attention(Sizes(**shape, batch_size=batch_size, length=length))
    config = named_config("transformer", "tiny", **shape, context_length=length)
    ours = Training(config, batch_size, length)
    ours.start()
    assert [other.step() for _ in range(5)] == pytest.approx([ours.step() for _ in range(5)], rel=1e-5)
    assert other.peak_memory_bytes > ours.check_memory(math.inf)  # it holds all scores


def test_ratios_are_to_both_transformers_where_measured(measured, capsys):
    workdir, *_ = measured
    assert run("mixers", *measured) == 0  # prints again
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines()[1:4])
    assert header[2:8] == ["tokens/s", "x", "transformer", "x", "jax_attention", "step"]
    assert [row[0] for row in rows] == ["transformer", "jax_attention"]
    assert [rows[0][3], rows[1][4]] == ["1.00", "1.00"]
    models = results_of(workdir)["figures"]["8:2"]["models"]
    speeds = [models[name]["tokens_per_second"] for name in ("transformer", "jax_attention")]
    assert float(rows[1][3]) == pytest.approx(speeds[1] / speeds[0], abs=0.01)


@pytest.mark.slow
def test_gradients(tmp_path, capsys):
    workdir = tmp_path / "run"
    flags = ["--models=transformer,linear_attention_pp", *SMALL, "--lengths=8:1,16:1"]
    assert call("gradients", f"--workdir={workdir}", *flags) == 0
    figures = results_of(workdir)["figures"]
    for length in ("8:1", "16:1"):
        assert list(figures[length]) == ["linear_attention_pp"]  # attention has no memories to start somewhere
        assert 0 < figures[length]["linear_attention_pp"] < math.inf
    assert (workdir / "gradients.png").stat().st_size > 0
    assert "gradient's norm" in capsys.readouterr().out


def test_pretrained(tmp_path, capsys):
    config = configuration("llama")
    path = write_directory(tmp_path / "model", config, tensors_of(config))
    flags = [f"--pretrained={path}", "--repeats=1", "--lengths=8:2", "--models=transformer"]
    assert call("pretrained", f"--workdir={tmp_path / 'run'}", *flags) == 0
    figures = results_of(tmp_path / "run")["figures"]["8:2"]
    assert figures["nl_jax"]["prefill"] > 0
    assert figures["nl_jax"]["decode"] > 0
    assert figures["transformers"]  # its figures, or what is missing
    assert "prefill tokens/s" in capsys.readouterr().out
    assert call("pretrained", f"--workdir={tmp_path / 'other'}", "--pretrained=missing", "--models=transformer") == 2
    assert "missing: no such file or directory" in capsys.readouterr().err
