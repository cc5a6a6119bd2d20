"""The launchers from their command lines: bad input, a whole run, going on after a kill, samples."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from launcher_cases import MODEL_FIGURES, call, error_line, results_of

from experiments import context, generate, language_model, stream
from experiments.common import launcher, restoring
from nl_jax.data import ByteTokenizer, decode_stream
from nl_jax.streaming.generation import sample

RUN = ["--steps=6", "--batch_size=2", "--seq_len=16", "--eval_every=2", "--checkpoint_every=2"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.txt"
    path.write_bytes(Path(launcher.__file__).read_bytes())
    return path


def files(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


BAD_FLAGS = [
    (["--stepz=3"], "Unknown command line flag 'stepz'"),
    (["--steps=many"], "flag --steps=many"),
    (["--steps=0"], "--steps=0: expected at least 1"),
    (["--batch_size=-1"], "--batch_size=-1: expected at least 1"),
    (["--seq_len=0"], "--seq_len=0: expected at least 1"),
    (["--eval_every=0"], "--eval_every=0: expected at least 1"),
    (["--checkpoint_every=0"], "--checkpoint_every=0: expected at least 1"),
    (["--seed=-1"], "--seed=-1: expected 0 to"),
    (["--seed=99999999999"], "--seed=99999999999: expected 0 to"),
    (["--learning_rate=nan"], "--learning_rate=nan: expected"),
    (["--learning_rate=0"], "--learning_rate=0.0: expected"),
    (["--learning_rate=-1"], "--learning_rate=-1.0: expected"),
    (["--models="], "--models: none given; expected some of"),
    (["--models=hope,hope"], "--models=hope,hope: expected some of"),
    (["--models=hope,hopeless"], "hopeless"),
    (["--preset=enormous"], "enormous"),
    (["--mesh=data:3"], "mesh 'data:3' asks for 3 devices, but there are"),
    (["--mesh=pipeline:2"], "mesh 'pipeline:2': unknown axis"),
    (["--data=missing.txt"], "missing.txt"),
    (["--tokenizer=missing.json"], "missing.json"),
    (["--seq_len=1000000"], "--seq_len=1000000 is longer than"),
    (["stray"], "argument 'stray': expected flags only"),
]


@pytest.mark.parametrize(("flags", "problem"), BAD_FLAGS)
def test_bad_flags_end_in_one_line(flags, problem, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(language_model, "fit", None)  # nothing may come this far
    workdir = tmp_path / "run"
    assert call(language_model.main, f"--workdir={workdir}", f"--data={data}", *RUN, *flags) == 2
    assert problem in error_line(capsys)
    assert not workdir.exists()


def test_workdir_is_asked_for(data, tmp_path, capsys):
    assert call(language_model.main) == 2
    assert "--workdir: missing" in error_line(capsys)
    assert call(language_model.main, f"--workdir={data}") == 2
    assert f"--workdir={data}: expected a directory" in error_line(capsys)
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


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", "{"), ("config.json", "[]"), ("config.json", '{"launcher": "other"}'), ("results.json", "{}")],
)
def test_a_workdir_of_something_else_is_left_alone(name, content, data, tmp_path, capsys):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / name).write_text(content)
    assert call(language_model.main, f"--workdir={workdir}", f"--data={data}", *RUN) == 2
    assert str(workdir / name) in error_line(capsys)
    assert files(workdir) == {Path(name): content.encode()}


@pytest.mark.parametrize("launcher", [language_model, generate])
def test_help_explains_itself(launcher, capsys):
    assert call(launcher.main, "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith(launcher.__doc__.strip())
    for name in launcher.define_flags():
        assert f"--{name}: " in text


@pytest.fixture(scope="module")
def finished(small_models, tmp_path_factory):
    """A whole run of two models, by the launcher, and its arguments."""
    root = tmp_path_factory.mktemp("finished")
    (root / "data.txt").write_bytes(Path(launcher.__file__).read_bytes())
    arguments = [f"--workdir={root / 'run'}", f"--data={root / 'data.txt'}", *RUN]
    assert call(language_model.main, *arguments) == 0
    return root / "run", arguments


def test_a_whole_run(finished, capsys):
    workdir, arguments = finished
    results = results_of(workdir)
    assert list(results["models"]) == ["hope", "transformer"]
    for figures in results["models"].values():
        assert set(figures) == set(MODEL_FIGURES)
        assert figures["tokens"] == 6 * 2 * 16
        assert 0 < figures["validation_bits_per_byte"] < 10
        assert 0 < figures["test_bits_per_byte"] < 10
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


def test_another_configuration_is_refused(finished, capsys):
    workdir, arguments = finished
    before = files(workdir)
    assert call(language_model.main, *arguments, "--seed=1", "--learning_rate=0.5") == 2
    line = error_line(capsys)
    assert "learning_rate 0.003 there, 0.5 here" in line
    assert "seed 0 there, 1 here" in line
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
def test_options_of_a_mixer_come_back_from_a_checkpoint(data, tmp_path, capsys, monkeypatch):
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
    partial = {**expected, "models": {"hope": {**expected["models"]["hope"], "tokens_per_second": 1.0}}}
    (workdir / "results.json").write_text(json.dumps(partial))
    os.truncate(workdir / "transformer/checkpoints/6/about/metadata", 3)
    assert call(language_model.main, f"--workdir={workdir}", *finished[1][1:]) == 0
    results = results_of(workdir)
    assert results["models"]["hope"] == partial["models"]["hope"]
    for key in ("validation_bits_per_byte", "test_bits_per_byte", "tokens", "parameters"):
        assert results["models"]["transformer"][key] == expected["models"]["transformer"][key]


def test_without_a_readable_checkpoint_nothing_is_touched(finished, small_models, tmp_path, capsys):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "results.json").unlink()
    for file in workdir.glob("hope/checkpoints/*/about/metadata"):
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


def test_generate_takes_a_prompt_longer_than_training_sequences(finished, capsys):
    prompt = "def f(x):" * 4  # 36 bytes, 16 in training
    arguments = [f"--workdir={finished[0]}", "--model=transformer", f"--prompt={prompt}", "--num_tokens=3"]
    assert call(generate.main, *arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(prompt)


def test_generate_names_what_is_missing(finished, tmp_path, capsys):
    for flags, problem in [
        ([], "--workdir: missing"),
        ([f"--workdir={tmp_path}"], f"--workdir={tmp_path}: no run there"),
        (
            [f"--workdir={finished[0]}", "--model=titans"],
            "--model=titans: not in this run; expected one of hope, transformer",
        ),
        ([f"--workdir={finished[0]}", "--num_tokens=0"], "--num_tokens=0: expected at least 1"),
        ([f"--workdir={finished[0]}", "--temperature=-1"], "--temperature=-1.0: expected at least 0"),
        ([f"--workdir={finished[0]}", "--prompt=\udcff"], "--prompt: not UTF-8"),
    ]:
        assert call(generate.main, *flags) == 2
        assert problem in error_line(capsys)
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
    config = json.loads((finished[0] / "config.json").read_text())["models"]["hope"]
    model = restoring.restore(finished[0] / "hope/checkpoints", config)
    prompt = np.arange(97, 117)
    ids = list(sample(model, prompt, num_tokens=6, temperature=0.0, seed=0))
    logits, _ = model(np.concatenate([prompt, ids])[None, :-1].astype(np.int32))
    predictions = logits[0, len(prompt) - 1 :]
    np.testing.assert_allclose(predictions[np.arange(6), ids], predictions.max(-1), atol=1e-3)


@pytest.mark.slow
def test_kill_and_resume_gives_the_same_results(tmp_path):
    """The default models by command line, killed a few times wherever it hits, against a run never killed."""
    (tmp_path / "data.txt").write_bytes(Path(launcher.__file__).read_bytes())
    command = [sys.executable, "-m", "experiments.language_model", f"--data={tmp_path / 'data.txt'}", *RUN]
    start = time.perf_counter()
    subprocess.run([*command, f"--workdir={tmp_path / 'whole'}"], check=True)
    duration = time.perf_counter() - start
    random = np.random.default_rng()
    kills = 0
    while True:
        process = subprocess.Popen([*command, f"--workdir={tmp_path / 'killed'}"])
        try:
            process.wait(timeout=600 if kills == 3 else random.uniform(0.2, 0.7) * duration)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:
            break
    whole, killed = (results_of(tmp_path / name) for name in ("whole", "killed"))
    for name, figures in whole["models"].items():
        for key in ("parameters", "tokens", "validation_bits_per_byte", "test_bits_per_byte", "peak_memory_bytes"):
            assert killed["models"][name][key] == figures[key]
