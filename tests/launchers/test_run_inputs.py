"""What a run depends on is named by digest: data, tokenizer and starting parameters, whatever their paths are."""

import functools
import gzip
import json
import shutil

import jax
import pytest
import tokenizer_cases as cases
from flax import nnx
from launcher_cases import MODEL_FIGURES, error_line, results_of

from experiments import context, generate, language_model, optimizers, stream, subjects
from experiments.common import launcher, text_runs
from experiments.common.path_flags import INPUT_FLAGS, PathParser
from experiments.eval_runs import main as eval_runs
from experiments.evals import ablation, babilong, language, levels, niah
from nl_jax import InputError
from nl_jax.data import load_tokenizer
from nl_jax.models import LanguageModel, named_config

LINES = "".join(f"hello world, hello there {'the ' * (i % 7)}\n" for i in range(120))
SIZES = ["--steps=2", "--batch_size=2", "--seq_len=16", f"--mesh=data:{jax.device_count()}"]
FIGURES = dict.fromkeys(MODEL_FIGURES, 1)


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """Launchers do everything but train."""
    monkeypatch.setattr(language_model, "train_model", lambda *_: FIGURES)
    monkeypatch.setattr(language_model, "plot_validation", lambda *_: None)

    def stop(*_):
        raise InputError("it would train now")

    for module in (context, subjects):
        monkeypatch.setattr(module, "fit_model", stop)


@pytest.fixture
def files(tmp_path):
    """The same text and tokenizer under two names each, and others."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/text.txt").write_text(LINES)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "other.txt").write_text(LINES + "more\n")
    cases.saved(cases.byte_level(), tmp_path / "tokenizer.json")
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "copy.json")
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-1]
    (tmp_path / "replaced.json").write_text(json.dumps(content))  # of the same size
    return tmp_path


def call(main, *arguments):
    return main(["launcher", *map(str, arguments)])


def test_the_same_bytes_under_another_path_are_the_same_run(files, monkeypatch, capsys):
    run = functools.partial(call, language_model.main, f"--workdir={files / 'run'}", *SIZES)
    assert run(f"--data={files / 'a'}", f"--tokenizer={files / 'tokenizer.json'}") == 0
    assert "text: 1 files, 1 documents, " in capsys.readouterr().err
    before = (files / "run/config.json").read_bytes()
    compared = json.loads(before)
    assert str(files) not in json.dumps({name: compared[name] for name in launcher.COMPARED})
    assert compared["inputs"]["tokenizer"] == str(files / "tokenizer.json")
    for data, tokenizer in (("b.txt.gz", "copy.json"), ("a/text.txt", "tokenizer.json")):
        assert run(f"--data={files / data}", f"--tokenizer={files / tokenizer}") == 0
    monkeypatch.chdir(files)
    assert run("--data=a/../a", "--tokenizer=copy.json") == 0
    assert (files / "run/config.json").read_bytes() == before
    capsys.readouterr()
    for changed, problem in [
        (["--data=other.txt", "--tokenizer=copy.json"], "run with other data: bytes"),
        (["--data=a", "--tokenizer=replaced.json"], "run with other data: tokenizer"),
        (["--data=a"], "run with other data: tokenizer"),
        (["--data=a", "--tokenizer=copy.json", "--document_boundaries=reset"], "document_boundaries 'carry' there"),
    ]:
        assert run(*changed) == 2
        assert problem in error_line(capsys)


@pytest.mark.parametrize("reader", [generate, stream])
def test_a_replaced_tokenizer_is_noticed_by_what_reads_a_run(reader, files, capsys):
    workdir, tokenizer = files / "run", files / "tokenizer.json"
    assert (
        call(language_model.main, f"--workdir={workdir}", f"--data={files / 'a'}", f"--tokenizer={tokenizer}", *SIZES)
        == 0
    )
    capsys.readouterr()
    reads = functools.partial(call, reader.main, f"--workdir={workdir}", "--model=transformer")
    beyond = "no checkpoint yet" if reader is generate else "its CMS learns in pre-training only"
    assert reads() == 2
    assert beyond in error_line(capsys)
    shutil.copy(files / "replaced.json", tokenizer)
    assert reads() == 2
    line = error_line(capsys)
    assert str(tokenizer) in line
    assert "was trained with" in line
    assert reads(f"--tokenizer={files / 'copy.json'}") == 2  # where it is now
    assert beyond in error_line(capsys)
    tokenizer.unlink()
    assert reads() == 2
    assert "no such file" in error_line(capsys)


def start_of(tmp_path, name, digest="bytes", seed=0):
    """A finished run of one model, without checkpoints."""
    config = {"launcher": "context", "flags": {}, "data": {"tokenizer": digest}, "models": {"transformer": {}}}
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / name / "results.json").write_text(json.dumps({"models": {"transformer": {"seeds": [seed]}}}))
    return f"--start_from={tmp_path / name}"


def test_starting_parameters_and_their_tokenizer_are_named_by_digest(files, monkeypatch, capsys):
    config = named_config("transformer", "tiny", width=8, num_layers=1, num_heads=1, mlp_hidden=8, context_length=16)

    def restore(directory, _):
        seed = json.loads((directory.parents[2] / "results.json").read_text())["models"]["transformer"]["seeds"][0]
        return LanguageModel(config, rngs=nnx.Rngs(seed))

    monkeypatch.setattr(context, "restore", restore)
    monkeypatch.setattr(context.LanguageModelConfig, "from_json", lambda _: config)
    monkeypatch.setattr(context, "configurations", lambda *_: {"transformer": config})
    small = ["--models=transformer", "--seeds=1", f"--data={files / 'a'}", *SIZES]
    run = functools.partial(call, context.main, f"--workdir={files / 'on'}", *small)
    assert run(start_of(files, "first")) == 2
    assert "it would train now" in capsys.readouterr().err
    assert str(files) not in json.dumps(json.loads((files / "on/config.json").read_text())["data"])
    assert run(start_of(files, "moved")) == 2
    assert "it would train now" in capsys.readouterr().err
    assert run(start_of(files, "retrained", seed=1)) == 2
    assert "run with other data: start_from" in error_line(capsys)
    assert run() == 2
    assert "run with other data: start_from" in error_line(capsys)
    assert run(start_of(files, "words", digest="other")) == 2
    line = error_line(capsys)
    assert f"--start_from={files / 'words'}: trained with another tokenizer" in line


def test_subjects_are_compared_by_their_texts(files, capsys):
    (files / "c.txt").write_text("".join(f"some other text {i}\n" for i in range(900)))
    (files / "d.txt").write_text("".join(f"{i} yet another one\n" for i in range(900)))
    shutil.copy(files / "c.txt", files / "e.txt")
    sizes = ["--regimes=outer", "--part=512", "--streams=1", "--seeds=1", "--cms_levels=16,32", *SIZES]
    run = functools.partial(call, subjects.main, f"--workdir={files / 'run'}", f"--data={files / 'a'}", *sizes)
    for texts in ("c.txt,d.txt", "e.txt,d.txt"):
        assert run("--texts=" + ",".join(str(files / name) for name in texts.split(","))) == 2
        error = capsys.readouterr().err
        assert "it would train now" in error
        assert "training: 1 files" in error
    assert run(f"--texts={files / 'd.txt'},{files / 'c.txt'}") == 2
    assert "run with other data: texts" in error_line(capsys)


def test_no_launcher_compares_a_path():
    """Every flag that takes a path is an input, named by digest, or the workdir."""
    for values in (language_model.define_flags(), context.define_flags(), subjects.define_flags()):
        values(["launcher"])
        words = ("file", "director", "workdir", ".json")
        paths = {name for name in values if any(word in values[name].help.lower() for word in words)}
        assert paths <= {"workdir", *INPUT_FLAGS}, paths
        assert not paths & (set(values.flag_values_dict()) - set(text_runs.FREE_FLAGS))
    for evaluation in (ablation, babilong, language, levels, niah):
        values = evaluation.define_flags()
        paths = {name for name in values if isinstance(values[name].parser, PathParser)}
        assert len(paths) > 1
        assert paths <= set(eval_runs.FREE_FLAGS)
    values = optimizers.define_flags()
    values(["launcher"])
    assert {"images", "data"} <= set(launcher.inputs_of(values))


@pytest.mark.parametrize("inside", ["text/run", "text/deep/run", "linked"])
def test_a_run_inside_its_data_is_no_text(inside, tmp_path, capsys):
    data = tmp_path / "text"
    (data / "deep").mkdir(parents=True)
    for i in range(9):
        (data / f"{i}.txt").write_text(LINES)
    workdir = tmp_path / inside
    if inside == "linked":
        workdir.mkdir()
        (data / "link").symlink_to(workdir)
    (data / "earlier").mkdir()
    (data / "earlier/config.json").write_text('{"launcher": "context"}')  # another launcher's
    (data / "earlier/metrics.jsonl").write_text('{"loss": 1}')
    run = functools.partial(call, language_model.main, f"--workdir={workdir}", f"--data={data}", *SIZES)
    assert run() == 0
    before = results_of(workdir)
    (workdir / "results.json").unlink()  # as if it had been stopped
    capsys.readouterr()
    assert run() == 0
    assert "2 excluded (" in capsys.readouterr().err
    assert results_of(workdir)["data"] == before["data"]
    assert before["data"]["documents"] == 9
    assert call(language_model.main, f"--workdir={data}", f"--data={data}", *SIZES) == 2
    assert "the directory of a run" in error_line(capsys)


def test_what_was_read_and_skipped_is_said_and_kept(tmp_path, capsys):
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text(LINES)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "null.jsonl").write_text('{"text": null}')
    run = functools.partial(call, language_model.main, f"--workdir={tmp_path / 'run'}", f"--data={tmp_path}", *SIZES)
    assert run() == 2
    assert "latin.txt: not UTF-8" in error_line(capsys)
    assert run("--skip_bad", "--document_boundaries=reset") == 0
    line = capsys.readouterr().err.splitlines()[0]
    for part in ("9 files, 9 documents", "2 bad", "latin.txt: not UTF-8", "null.jsonl:1: expected a string"):
        assert part in line
    assert "of the training positions are padding" in line
    read = results_of(tmp_path / "run")["inputs"]["read"]
    assert (read["files"], read["documents"], read["skipped"]["bad"]["count"]) == (9, 9, 2)


def test_a_text_fed_to_a_stream_may_be_cut_within_a_character(files, monkeypatch):
    class Collects:
        chunk, position, waiting = 4, 0, 0

        def __init__(self):
            self.fed = []

        def feed(self, ids, limit=None):
            self.fed += [int(i) for i in ids]

    text = "aé日🙂" * 9
    tokenizer = load_tokenizer(str(files / "tokenizer.json"))
    blocks = [text.encode()[i : i + 5] for i in range(0, len(text.encode()), 5)] + [b""]
    monkeypatch.setattr(stream, "_next_block", lambda signals: blocks.pop(0))
    collects = Collects()
    stream.read(collects, tokenizer, every=10**6, signals=stream._Signals())
    assert tokenizer.decode(collects.fed) == text


def test_texts_of_ones_own_take_the_place_of_pythons(files):
    values = subjects.define_flags()
    given = ",".join(str(files / name) for name in ("a/text.txt", "other.txt"))
    values(["launcher", f"--texts={given}"])
    assert list(subjects.texts_of(values, files / "run")[1]) == given.split(",")
