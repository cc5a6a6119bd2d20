"""The flags --dtype, --remat and --accumulate: what a run remembers, and runs of earlier versions without them."""

import functools
import json

import jax
import pytest
from flax import nnx
from launcher_cases import MODEL_FIGURES, call, error_line, results_of

from experiments import generate, language_model
from experiments.common import text_runs
from nl_jax.evaluation import bits_by_position, evaluate
from nl_jax.models import LanguageModel, named_config
from nl_jax.parallel import batch_parts, parse_mesh

TEXT = "".join(f"hello world, hello there {'the ' * (i % 7)}\n" for i in range(120))
SIZES = ["--steps=2", "--batch_size=4", "--seq_len=16", f"--mesh=data:{jax.device_count()}", "--models=transformer"]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return functools.partial(
        call, language_model.main, f"--workdir={tmp_path / 'run'}", f"--data={tmp_path / 'text.txt'}", *SIZES
    )


@pytest.fixture
def untrained(monkeypatch):
    """The launcher does everything but train."""
    monkeypatch.setattr(language_model, "train_model", lambda *_: dict.fromkeys(MODEL_FIGURES, 1))
    monkeypatch.setattr(language_model, "plot_validation", lambda *_: None)


def test_a_run_remembers_its_dtype(run, tmp_path, untrained, capsys):
    assert run("--dtype=bfloat16", "--remat=dots", "--accumulate=2") == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert (config["models"]["transformer"]["dtype"], config["models"]["transformer"]["remat"]) == ("bfloat16", "dots")
    assert run("--dtype=bfloat16", "--remat=dots") == 0  # microbatches change rounding only
    capsys.readouterr()
    assert run("--remat=dots") == 2
    assert "dtype 'bfloat16' there, None here" in error_line(capsys)


def batches_with(accumulate, text):
    values = text_runs.define_flags()
    values(["x", "--batch_size=8", "--seq_len=16", f"--accumulate={accumulate}", f"--data={text}"])
    mesh = parse_mesh(f"data:{jax.device_count()}")
    return text_runs.batches_of(values, text_runs.text_of(values, text.parent / "run"), mesh), mesh


def test_evaluation_reads_as_many_rows_as_a_microbatch(tmp_path):
    """So what fits in training fits in evaluation, and the figures are those of whole batches."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    sizes = {"width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 8}
    model = LanguageModel(named_config("transformer", "tiny", **sizes, context_length=16), rngs=nnx.Rngs(0))
    whole, mesh = batches_with(1, text)
    parts, _ = batches_with(8 // batch_parts(mesh), text)
    assert next(parts.train(seed=0))["inputs"].shape == next(whole.train(seed=0))["inputs"].shape
    for name in ("validation", "test"):
        one, many = getattr(whole, name), getattr(parts, name)
        assert one.batches[0]["inputs"].shape == (8, 16)
        assert many.batches[0]["inputs"].shape == (batch_parts(mesh), 16)
        assert (one.num_bytes, one.num_tokens) == (many.num_bytes, many.num_tokens)
        assert evaluate(model, many, mesh) == pytest.approx(evaluate(model, one, mesh), rel=1e-6)
    positions = [bits_by_position(model, batches.validation, mesh) for batches in (whole, parts)]
    assert positions[1] == pytest.approx(positions[0], rel=1e-6)


def test_a_run_of_an_earlier_version_is_the_same_run(run, tmp_path, untrained, capsys):
    """Its flags and models have neither name, and remat was true or false."""
    assert run() == 0
    path = tmp_path / "run/config.json"
    config = json.loads(path.read_text())
    for name in ("dtype", "remat"):
        del config["flags"][name]
    del config["models"]["transformer"]["dtype"]
    config["models"]["transformer"]["remat"] = False
    path.write_text(json.dumps(config))
    before = path.read_bytes()
    assert run() == 0
    assert path.read_bytes() == before
    assert not list((tmp_path / "run").glob("results_*.json"))
    capsys.readouterr()
    assert run("--remat=block") == 2
    assert "other flags: remat None there, 'block' here" in error_line(capsys)


@pytest.mark.slow
def test_a_run_in_bfloat16_trains_and_generates(run, tmp_path, capsys):
    assert run("--dtype=bfloat16", "--accumulate=2", "--remat=block", "--preset=tiny", "--steps=30") == 0
    assert results_of(tmp_path / "run")["models"]["transformer"]["test_bits_per_byte"] < 9
    capsys.readouterr()
    assert call(generate.main, f"--workdir={tmp_path / 'run'}", "--num_tokens=4", "--prompt=hello") == 0
    assert capsys.readouterr().out.startswith("hello")
