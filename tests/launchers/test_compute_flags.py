"""The flags --dtype, --remat and --accumulate: what a run remembers, and runs of earlier versions without them."""

import functools
import json

import jax
import pytest
from launcher_cases import MODEL_FIGURES, call, error_line, results_of

from experiments import generate, language_model

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
