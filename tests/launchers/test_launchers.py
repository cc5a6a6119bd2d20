"""experiments.language_model and experiments.generate: bad data, a whole run, what goes on and how, samples."""

import html
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launcher_cases import MODEL_FIGURES, call, error_line, results_of
from launcher_table import files

from experiments import context, generate, language_model, report, stream
from experiments.common import launcher, restoring
from nl_jax.data import ByteTokenizer, decode_stream
from nl_jax.streaming.generation import sample

RUN = ["--steps=6", "--batch_size=2", "--seq_len=16", "--eval_every=2", "--checkpoint_every=2"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.txt"
    path.write_bytes(Path(launcher.__file__).read_bytes())
    return path


def test_a_workdir_below_a_file_is_refused(data, capsys):
    assert call(language_model.main, f"--workdir={data}/below", f"--data={data}", *RUN) == 2
    assert str(data) in error_line(capsys)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe broken"])
def test_bad_data_end_in_one_line(content, tmp_path, capsys):
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    assert call(language_model.main, f"--workdir={tmp_path / 'run'}", f"--data={path}") == 2
    assert str(path) in error_line(capsys)


def test_jsonl_without_the_key_ends_in_one_line(tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "one"}\n{"body": "two"}\n')
    assert call(language_model.main, f"--workdir={tmp_path / 'run'}", f"--data={path}") == 2
    assert f"{path}:2: no key 'text'" in error_line(capsys)


@pytest.fixture(scope="module")
def finished(small_models, tmp_path_factory):
    """A whole run of two models, by the launcher, and its arguments."""
    root = tmp_path_factory.mktemp("finished")
    (root / "data.txt").write_bytes(Path(launcher.__file__).read_bytes())
    # Hope-Attention compiles more quickly than Hope; the launcher treats all models alike.
    models = "--models=hope_attention,transformer"
    arguments = [f"--workdir={root / 'run'}", f"--data={root / 'data.txt'}", *RUN, models]
    assert call(language_model.main, *arguments) == 0
    return root / "run", arguments


def test_a_whole_run(finished, capsys):
    workdir, arguments = finished
    results = results_of(workdir)
    assert list(results["models"]) == ["hope_attention", "transformer"]
    for figures in results["models"].values():
        assert set(figures) == set(MODEL_FIGURES)
        assert figures["tokens"] == 6 * 2 * 16
        assert 0 < figures["validation_bits_per_byte"] < 14
        assert 0 < figures["test_bits_per_byte"] < 14
    assert {"baselines", "configuration", "data", "versions", "seed", "device"} < set(results)
    assert set(results["baselines"]) == {"gzip -9", "bigram"}
    assert (workdir / "validation.png").read_bytes().startswith(b"\x89PNG")

    before = files(workdir)
    capsys.readouterr()
    assert call(language_model.main, *arguments) == 0  # only prints the table again
    out, err = capsys.readouterr()
    assert err == ""
    for name, figures in results["models"].items():
        row = next(line for line in out.splitlines() if line.startswith(name))
        assert f"{figures['parameters']:,}" in row
        assert f"{figures['test_bits_per_byte']:.4f}" in row
    assert all(any(line.startswith(name) for line in out.splitlines()) for name in results["baselines"])
    assert str(workdir) in out.splitlines()[-1]
    assert files(workdir) == before


def test_a_finished_cosine_is_not_given_more_steps(finished, capsys):
    workdir, arguments = finished
    before = files(workdir)
    assert call(language_model.main, *arguments, "--steps=8") == 2
    assert "a run with --schedule=constant can be given more steps" in error_line(capsys)
    assert files(workdir) == before


@pytest.mark.slow
def test_generate_to_a_terminal_without_the_characters(finished):
    command = [sys.executable, "-m", "experiments.generate", f"--workdir={finished[0]}", "--prompt=é", "--num_tokens=3"]
    done = subprocess.run(
        [*command, "--model=transformer"], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"\\xe9")


@pytest.mark.slow
def test_options_of_a_mixer_come_back_from_a_checkpoint(small_models, data, tmp_path, capsys, monkeypatch):
    """A model with nested options is trained, and then read by each launcher that reads one."""
    option = '--mixer_option=eta=("softplus",2.0)'
    sizes = ["--models=delta_net", "--steps=2", "--batch_size=2", "--seq_len=16", f"--data={data}", option]
    assert call(language_model.main, *sizes, f"--workdir={tmp_path / 'run'}") == 0
    assert call(generate.main, f"--workdir={tmp_path / 'run'}", "--num_tokens=2", "--prompt=a") == 0
    assert call(context.main, *sizes, "--seeds=1", f"--workdir={tmp_path / 'first'}") == 0
    start = f"--start_from={tmp_path / 'first'}"
    assert call(context.main, *sizes, "--seeds=1", f"--workdir={tmp_path / 'more'}", start) == 0
    levels = ["--models=hope", "--cms_levels=16", "--cms_regime=online", '--mixer_option=adaptive=("key","value")']
    assert call(language_model.main, *sizes[1:5], *levels, f"--workdir={tmp_path / 'levels'}") == 0
    monkeypatch.setattr(sys, "stdin", data.open())
    assert call(stream.main, f"--workdir={tmp_path / 'levels'}", "--every=4096") == 0


def test_other_data_under_the_same_path_are_refused(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "results.json").unlink()
    arguments = [f"--workdir={workdir}", *finished[1][1:]]
    data = Path(arguments[1].removeprefix("--data="))
    text = data.read_bytes()
    try:
        data.write_bytes(text + b"more")
        assert call(language_model.main, *arguments) == 2
        assert "holds a run with other data: bytes" in error_line(capsys)
    finally:
        data.write_bytes(text)


def test_finished_models_are_kept_and_the_rest_goes_on(finished, small_models, tmp_path, capsys):
    """As after a kill between two models, with the newest checkpoint of the second one truncated."""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    expected = results_of(workdir)
    partial = {
        **expected,
        "models": {"hope_attention": {**expected["models"]["hope_attention"], "tokens_per_second": 1.0}},
    }
    (workdir / "results.json").write_text(json.dumps(partial))
    os.truncate(workdir / "transformer/checkpoints/6/about/metadata", 3)
    assert call(language_model.main, f"--workdir={workdir}", *finished[1][1:]) == 0
    results = results_of(workdir)
    assert results["models"]["hope_attention"] == partial["models"]["hope_attention"]
    for key in ("validation_bits_per_byte", "test_bits_per_byte", "tokens", "parameters"):
        assert results["models"]["transformer"][key] == expected["models"]["transformer"][key]


def test_without_a_readable_checkpoint_nothing_is_touched(finished, small_models, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "results.json").unlink()
    for file in workdir.glob("hope_attention/checkpoints/*/about/metadata"):
        os.truncate(file, 3)
    before = files(workdir)
    assert call(language_model.main, f"--workdir={workdir}", *finished[1][1:]) == 2
    assert "none of the checkpoints 6, 4 can be read" in capsys.readouterr().err.splitlines()[-1]
    assert files(workdir) == before


@pytest.mark.parametrize("flags", [[], ["--model=transformer", "--temperature=0"], ["--prompt="]])
def test_generate_continues_the_prompt(finished, flags, capsys):
    arguments = [f"--workdir={finished[0]}", "--prompt=def é", "--num_tokens=12", *flags]
    assert call(generate.main, *arguments) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert first.out.startswith("" if "--prompt=" in flags else "def é")
    assert call(generate.main, *arguments) == 0
    assert capsys.readouterr().out == first.out


def test_the_page_of_a_run_shows_what_each_model_writes(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    os.truncate(workdir / "transformer/checkpoints/6/about/metadata", 3)  # so that its newest one cannot be read
    model = restoring.restore(
        workdir / "transformer/checkpoints", results_of(workdir)["configuration"]["models"]["transformer"]
    )
    separator = ByteTokenizer().separator_id
    tokens = itertools.takewhile(lambda token: token != separator, sample(model, [separator], num_tokens=12))
    written = "".join(decode_stream(ByteTokenizer(), tokens))

    assert call(report.main, "--live", f"--workdir={workdir}", "--sample_tokens=12") == 0
    page = (workdir / "live.html").read_text(encoding="utf-8")
    assert "What the models write" in page
    assert page.count("after 6 steps:") == len(results_of(workdir)["models"]) - 1
    assert "transformer, after 4 steps:" in page
    assert html.escape(written) in page
    assert call(report.main, "--live", f"--workdir={workdir}", "--sample_tokens=0") == 0
    assert "What the models write" not in (workdir / "live.html").read_text(encoding="utf-8")


def test_generate_takes_a_prompt_longer_than_training_sequences(finished, capsys):
    prompt = "def f(x):" * 4  # 36 bytes, 16 in training
    arguments = [f"--workdir={finished[0]}", "--model=transformer", f"--prompt={prompt}", "--num_tokens=3"]
    assert call(generate.main, *arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(prompt)


def test_generate_names_what_is_missing(finished, tmp_path, capsys):
    assert call(generate.main, f"--workdir={finished[0]}", "--model=titans") == 2
    assert "--model=titans: not in this run; expected one of hope_attention, transformer" in error_line(capsys)
    workdir = tmp_path / "early"
    workdir.mkdir()
    shutil.copy(finished[0] / "config.json", workdir)
    assert call(generate.main, f"--workdir={workdir}") == 2
    assert "no checkpoint yet" in error_line(capsys)


def test_decode_stream_holds_back_what_is_not_a_character_yet():
    ids = [*list("aé€😀".encode()), 255, ord("b"), 226]
    pieces = list(decode_stream(ByteTokenizer(), ids))
    assert "".join(pieces) == "aé€😀\ufffdb\ufffd"
    assert pieces[:4] == ["a", "é", "€", "😀"]


@pytest.mark.slow
def test_sampling_with_state_is_what_the_whole_text_gives(finished):
    """Greedy tokens one by one, memory carried, against one pass over all of them."""
    config = json.loads((finished[0] / "config.json").read_text())["models"]["hope_attention"]
    model = restoring.restore(finished[0] / "hope_attention/checkpoints", config)
    prompt = np.arange(97, 117)
    ids = list(sample(model, prompt, num_tokens=6, temperature=0.0, seed=0))
    logits, _ = model(np.concatenate([prompt, ids])[None, :-1].astype(np.int32))
    predictions = logits[0, len(prompt) - 1 :]
    np.testing.assert_allclose(predictions[np.arange(6), ids], predictions.max(-1), atol=1e-3)
