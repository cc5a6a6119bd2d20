"""The launcher of a stream: what a signal or bad input leaves behind, and levels that are frozen for one run."""

import select
import signal
import sys

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx

from experiments import language_model
from experiments import stream as launcher
from nl_jax.data import ByteTokenizer, HuggingFaceTokenizer
from nl_jax.models import LanguageModel, named_config
from nl_jax.streaming import Stream
from nl_jax.streaming import stream as stream_module

SIZES = {"vocab_size": 257, "width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 6, "chunk_size": 2}


def learned(stream):
    return [np.asarray(x) for x in jax.tree.leaves(stream.snapshot()[0])]


def levels(stream):
    return {name: jax.tree.map(np.asarray, level) for name, level in stream.snapshot()[0].levels.items()}


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


TEXT = bytes(range(65, 91)) * 2


@pytest.fixture(autouse=True)
def interruptible():
    """Signals interrupt this process, though a shell that starts it in the background lets it ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the launcher with a small model that was not trained: a function of text, flags and a tokenizer."""
    fields = named_config("hope_attention", "tiny", **SIZES, cms_periods=(4, 8), cms_regime="online")
    model = LanguageModel(fields, rngs=nnx.Rngs(0))
    config = {"cms_regime": "online"}

    def run(text, *flags, tokenizer=None):
        chosen = (tmp_path, config, tokenizer or ByteTokenizer())
        monkeypatch.setattr(launcher, "chosen_model", lambda values: chosen)
        monkeypatch.setattr(launcher, "restore", lambda *_: model)
        (tmp_path / "text").write_bytes(text)
        with monkeypatch.context() as patch, (tmp_path / "text").open() as file:
            patch.setattr(sys, "stdin", file)
            code = launcher.main(["x", *flags])
        return code, capsys.readouterr()

    run.saved = lambda: Stream.load(tmp_path / "stream", model)
    return run


def letters():
    """A tokenizer that knows words of ASCII letters and é, and says where text is not UTF-8."""
    words = tokenizers.models.WordLevel({chr(c): c for c in range(65, 91)} | {"é": 0}, unk_token="A")
    whole = tokenizers.Tokenizer(words)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    return HuggingFaceTokenizer.from_json(whole.to_str().encode(), "letters")


def interrupt_at(monkeypatch, owner, name, call, signum):
    """Sends a signal to this process at the start of the call with this number."""
    original, calls = getattr(owner, name), []

    def interrupted(*args, **options):
        calls.append(name)
        if len(calls) == call:
            signal.raise_signal(signum)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, interrupted)


MOMENTS = {
    "while a chunk is learned": (stream_module, "learn_chunk", 3, 8),
    "while text is encoded": (ByteTokenizer, "encode", 1, 0),
    "while it waits for text": (select, "select", 2, 52),
    "while it saves": (Stream, "save", 1, 52),
}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_loses_no_text_and_gives_the_code_of_a_shell(moment, signum, command, monkeypatch):
    *where, position = MOMENTS[moment]
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        interrupt_at(patch, *where, signum)
        code, said = command(TEXT)
    assert code == 128 + signum
    assert said.err.startswith("error: ")
    assert "resumes from what was saved" in said.err
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    stopped = command.saved()
    assert (stopped.position, stopped.waiting) == (position, 53 - position)
    assert command(b"")[0] == 0
    whole = Stream(stopped.model)
    whole.feed([256, *TEXT])
    assert same(learned(command.saved()), learned(whole))


@pytest.mark.parametrize("text", [b"caf\xe9 au lait", b"abc\xc3"])
def test_input_that_fails_replaces_no_learner_by_one_that_has_learned_nothing(text, command):
    assert command(TEXT)[0] == 0
    code, said = command(text, "--fresh", tokenizer=letters())
    assert code == 2
    assert "UTF-8" in said.err
    assert command.saved().position == 52
    assert command(b"", "--fresh")[0] == 0
    assert command.saved().position == 0


def test_a_signal_keeps_the_learner_that_a_fresh_one_would_replace_before_it_has_learned(command, monkeypatch):
    assert command(TEXT)[0] == 0
    interrupt_at(monkeypatch, ByteTokenizer, "encode", 1, signal.SIGINT)
    assert command(TEXT, "--fresh")[0] == 130
    assert command.saved().position == 52


def test_text_that_ends_inside_a_character_is_learned_up_to_there(command):
    code, said = command(TEXT + "é".encode()[:1], tokenizer=letters())
    assert code == 2
    assert "ends inside a UTF-8 character" in said.err
    assert command.saved().position == 52
    assert command("é".encode()[:1])[0] == 0  # to bytes it is a token
    assert (command.saved().position, command.saved().waiting) == (52, 2)


def test_freezing_is_for_one_run(command):
    assert command(b"")[0] == 0
    start = levels(command.saved())
    assert command(TEXT, "--freeze=cms_0")[0] == 0
    frozen = levels(command.saved())
    assert same(frozen["cms_0"], start["cms_0"])
    assert command(TEXT, "--freeze=cms_1")[0] == 0
    thawed = levels(command.saved())
    assert not same(thawed["cms_0"], frozen["cms_0"])
    assert same(thawed["cms_1"], frozen["cms_1"])


@pytest.mark.slow
def test_launcher_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "texts"
    corpus.mkdir()
    for i in range(12):
        (corpus / f"{i}.txt").write_text(f"{i} and so on, again and again. " * 40)
    run = f"--workdir={tmp_path / 'run'}"
    sizes = ["--models=hope_attention", "--steps=2", "--batch_size=2", "--seq_len=32", f"--data={corpus}"]
    assert language_model.main(["x", run, *sizes, "--cms_levels=16,32", "--cms_regime=meta"]) == 0
    capsys.readouterr()

    def feed(text, *flags):
        (tmp_path / "text").write_bytes(text)
        monkeypatch.setattr(sys, "stdin", (tmp_path / "text").open())
        code = launcher.main(["x", run, *flags])
        return code, capsys.readouterr()

    code, first = feed(b"one two three four five six, " * 4)
    assert code == 0
    assert "bits  surprise cms_0" in first.out
    assert "updated cms_0 cms_1 mixers" in first.out
    assert "112 tokens learned, 5 wait for their chunk" in first.out
    assert "128 tokens learned" in feed(b"another text to read")[1].out
    assert "16 tokens learned" in feed(b"another text to read", "--fresh")[1].out
    for flags, message in (
        (["--freeze=cms_9"], "--freeze=cms_9: level 'cms_9': unknown"),
        (["--every=10"], "--every=10: expected a multiple of the chunk, 16 tokens"),
        (["--model=hope"], "--model=hope: not in this run"),
    ):
        code, said = feed(b"", *flags)
        assert code == 2
        assert message in said.err
