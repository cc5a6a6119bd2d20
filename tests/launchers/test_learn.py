"""experiments.learn and experiments.ask: what is learned from files and standard input is kept, gone on from, asked."""

import io
import json
import sys

import numpy as np
import pytest
from launcher_cases import error_line, results_of
from pretrained_cases import configuration, tensors_of, write_directory

from experiments import ask, learn
from nl_jax.pretrained import Pretrained, load_pretrained
from nl_jax.streaming import ContinualLearner, saved

LEVELS = "--levels=fast:blocks=1,units=0..0.5,rate=100;slow:period=2,blocks=1,units=0.5..1,rate=100"
FLAGS = ["--batch_size=2", "--chunk=32", "--save_every=2", LEVELS]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    llama = configuration("llama")
    write_directory(folder / "llama", llama, tensors_of(llama))
    (folder / "labels.csv").write_text("body,class\n" + "x,return\ny,12345\n" * 3)
    (folder / "facts.txt").write_text("the brown fox\n\nthe quick fox\n\ndef f(x)")
    return folder


def call_learn(inputs, workdir, *more):
    return learn.main(["learn", f"--workdir={workdir}", f"--pretrained={inputs / 'llama'}", *FLAGS, *map(str, more)])


def call_ask(workdir, *more):
    return ask.main(["ask", f"--workdir={workdir}", *more])


def give(monkeypatch, text):
    """Puts text on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.fixture(scope="module")
def learned(inputs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("learned") / "run"
    columns = ["--text_column=body", "--label_column=class", "--passes=4"]
    assert call_learn(inputs, workdir, inputs / "labels.csv", *columns) == 0
    return workdir


def test_labels_are_learned_and_told(learned, capsys, monkeypatch):
    figures = results_of(learned)["figures"]
    assert figures["examples"] == 24
    assert figures["labels"] == ["return", "12345"]
    assert figures["levels"]["fast"]["updates"] == 2 * figures["levels"]["slow"]["updates"] == 12
    rows = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    capsys.readouterr()
    give(monkeypatch, "x\n\ny\nx\n")
    assert call_ask(learned, "--classify") == 0
    assert capsys.readouterr().out.split() == ["return", "12345", "return"]
    assert call_ask(learned, "--classify", "y") == 0
    assert call_ask(learned, "--classify", "--labels=3.14,fox", "y") == 0
    first, second = capsys.readouterr().out.split()
    assert first == "12345"
    assert second in ("3.14", "fox")


def test_levels_that_protect_spare_a_file_once_it_is_learned(inputs, tmp_path, monkeypatch, capsys):
    """Also one whose protection was stopped, and never twice."""
    protect, given = ContinualLearner.protect, []

    def protected(self, texts):
        if len(given) == 1:
            given.append("stopped")
            raise KeyboardInterrupt
        given.append(list(texts))
        protect(self, texts)

    monkeypatch.setattr(ContinualLearner, "protect", protected)
    levels = "--levels=fast:blocks=1,rule=adam,protects=true"
    columns = ["--text_column=body", "--label_column=class", levels]
    assert call_learn(inputs, tmp_path / "run", inputs / "labels.csv", *columns) == 130
    for _ in range(2):
        assert call_learn(inputs, tmp_path / "run", inputs / "labels.csv", *columns) == 0
    first, stopped, *others = given
    assert (first, stopped) == (others[0], "stopped")
    assert [tuple(pair) for part in others for pair in part] == [("x", "return"), ("y", "12345")] * 3
    given.clear()
    assert (
        call_learn(inputs, tmp_path / "without", inputs / "labels.csv", *columns, levels.replace("true", "false")) == 0
    )
    assert given == []
    capsys.readouterr()


def test_an_answer_ends_at_a_stop_and_a_chat_needs_a_template(learned, capsys):
    greedy = ["--temperature=0", "--num_tokens=5", "the", "quick"]
    assert call_ask(learned, *greedy) == 0
    answer = capsys.readouterr().out
    assert call_ask(learned, f"--stop={answer[1]}", *greedy) == 0
    assert capsys.readouterr().out == answer[: answer.index(answer[1])] + "\n"
    assert call_ask(learned, "--chat", "hello") == 2
    assert "no chat template" in error_line(capsys)


def test_tomorrow_goes_on_from_the_same_workdir_without_the_path(inputs, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    assert call_learn(inputs, workdir, inputs / "facts.txt") == 0
    give(monkeypatch, "one\n\ntwo\n\nthree\n")
    assert learn.main(["learn", f"--workdir={workdir}", *FLAGS]) == 0
    figures = results_of(workdir)["figures"]
    assert figures["examples"] == 6
    assert list((workdir / "received").iterdir()) == []
    assert call_learn(inputs, workdir, inputs / "facts.txt") == 0  # known already
    assert "3 examples were learned already" in capsys.readouterr().err
    assert results_of(workdir)["figures"] == figures
    assert call_learn(inputs, workdir, inputs / "facts.txt", "--passes=2") == 0
    assert results_of(workdir)["figures"]["examples"] == 9
    give(monkeypatch, "")
    assert learn.main(["learn", f"--workdir={workdir}", *FLAGS]) == 2
    assert "files: missing, and nothing is on standard input" in capsys.readouterr().err
    assert call_learn(inputs, workdir, "--batch_size=3", inputs / "facts.txt") == 2
    assert "batch_size 2 there, 3 here" in capsys.readouterr().err


def test_what_was_interrupted_is_learned_to_the_same_end(inputs, tmp_path, monkeypatch):
    """Also what came on standard input, which nobody has any more."""
    text = "".join(f"line {i}\n\n" for i in range(9))
    give(monkeypatch, text)
    assert call_learn(inputs, tmp_path / "whole") == 0
    original, calls = ContinualLearner.learn, []

    def interrupted(self, examples):
        result = original(self, examples)  # the state has changed already
        calls.append(examples)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return result

    give(monkeypatch, text)
    monkeypatch.setattr(ContinualLearner, "learn", interrupted)
    assert call_learn(inputs, tmp_path / "run") != 0
    monkeypatch.setattr(ContinualLearner, "learn", original)
    assert len(list((tmp_path / "run/received").iterdir())) == 1
    assert call_learn(inputs, tmp_path / "run", inputs / "facts.txt") == 0  # first what was left
    assert call_learn(inputs, tmp_path / "whole", inputs / "facts.txt") == 0
    ours, theirs = (results_of(tmp_path / name)["figures"] for name in ("run", "whole"))
    for figures in (ours, theirs):
        figures["files"] = sorted(entry["done"] for entry in figures["files"].values())
    assert ours == theirs
    metadata = saved.read_metadata(tmp_path / "run/learned")
    assert metadata["notes"]["examples"] == 12
    assert np.isfinite(ours["loss"])


def test_a_file_that_is_given_twice_is_learned_once(inputs, tmp_path, capsys):
    assert call_learn(inputs, tmp_path / "run", inputs / "facts.txt", inputs / "facts.txt") == 0
    assert results_of(tmp_path / "run")["figures"]["examples"] == 3
    assert capsys.readouterr().err.count("3 examples were learned already") == 1


def test_levels_come_from_json_too(inputs, tmp_path, capsys):
    levels = [{"name": "only", "blocks": [0, 1], "matrices": ["up", "down"], "rule": "adam", "learning_rate": 0.01}]
    (tmp_path / "levels.json").write_text(json.dumps(levels))
    flags = ["--batch_size=2", "--chunk=16", f"--levels={tmp_path / 'levels.json'}"]
    arguments = [f"--workdir={tmp_path / 'run'}", f"--pretrained={inputs / 'llama'}", *flags]
    assert learn.main(["learn", *arguments, str(inputs / "facts.txt")]) == 0
    assert list(results_of(tmp_path / "run")["figures"]["levels"]) == ["only"]
    capsys.readouterr()
    (tmp_path / "levels.json").write_text('[{"name": "only", "pace": 1}]')
    assert learn.main(["learn", *arguments, str(inputs / "facts.txt")]) == 2
    assert "level 'only': unknown key 'pace'" in error_line(capsys)


@pytest.fixture
def asked(monkeypatch):
    """What the model asks itself, in place of a model that could; keeps the texts that it was asked about."""
    calls = []

    def questions(model, tokenizer, texts, *, told):
        calls.append(list(texts))
        told(len(texts))
        return [("x?", "quick"), ("y?", "brown")] if texts else []

    monkeypatch.setattr(learn, "self_questions", questions)
    return calls


def test_a_model_asks_itself_once_and_learns_its_answers(inputs, tmp_path, asked, capsys, monkeypatch):
    text, workdir = tmp_path / "notes.txt", tmp_path / "run"
    text.write_text("The fox is quick. The dog is brown!\n\nIs it?")
    flags = ["learn", f"--workdir={workdir}", f"--pretrained={inputs / 'llama'}", "--ask_itself", "--batch_size=2"]
    assert learn.main([*flags, str(text)]) == 0
    assert asked == [["The fox is quick.", "The dog is brown!", "Is it?"]]
    figures = results_of(workdir)["figures"]
    assert figures["examples"] == 8  # in four passes
    assert figures["labels"] == ["quick", "brown"]
    assert list(figures["levels"]) == ["middle"]
    assert "2 questions about 3 sentences" in capsys.readouterr().err
    assert learn.main([*flags, "--passes=30", str(text)]) == 0
    assert len(asked) == 1
    assert results_of(workdir)["figures"]["examples"] == 60
    capsys.readouterr()
    assert call_ask(workdir, "--temperature=0", "x?") == 0
    assert call_ask(workdir, "--temperature=0", "y?") == 0
    assert capsys.readouterr().out == "quick\nbrown\n"
    monkeypatch.setattr(ask, "sample", lambda model, ids, **options: iter(lines))
    monkeypatch.setattr(Pretrained, "chat", lambda self, messages, **options: "hello")
    lines = load_pretrained(inputs / "llama").encode("brown\nquick")
    assert call_ask(workdir, "--chat", "hello") == 0
    assert capsys.readouterr().out == "brown\nquick\n"  # a chat may have more than a line
    assert call_ask(workdir, "x?") == 0
    assert capsys.readouterr().out == "brown\n"
    assert learn.main([*flags[:3], "--batch_size=2", str(text)]) == 2
    assert "ask_itself" in error_line(capsys)


def test_rows_with_labels_are_questions_too(inputs, tmp_path, asked):
    workdir = tmp_path / "run"
    flags = [f"--pretrained={inputs / 'llama'}", "--ask_itself", "--text_column=body", "--label_column=class"]
    assert learn.main(["learn", f"--workdir={workdir}", *flags, "--passes=1", str(inputs / "labels.csv")]) == 0
    assert results_of(workdir)["figures"]["examples"] == 6
    assert asked == []


def test_questions_that_were_asked_are_kept_when_it_is_stopped(inputs, tmp_path, monkeypatch):
    text, workdir, calls = tmp_path / "notes.txt", tmp_path / "run", []
    text.write_text("One. Two. Three.")

    def questions(model, tokenizer, texts, *, told):
        calls.append(texts)
        if len(calls) == 2:
            raise KeyboardInterrupt
        told(len(texts))
        return [(f"{texts[0]}?", "quick")]

    monkeypatch.setattr(learn, "self_questions", questions)
    monkeypatch.setattr(learn, "ASKED_TOGETHER", 1)
    flags = ["learn", f"--workdir={workdir}", f"--pretrained={inputs / 'llama'}", "--ask_itself", "--passes=1"]
    assert learn.main([*flags, str(text)]) != 0
    assert learn.main([*flags, str(text)]) == 0
    assert calls == [["One."], ["Two."], ["Two."], ["Three."]]
    (notes,) = results_of(workdir)["figures"]["files"].values()
    assert notes["asked"] == [["One.?", "quick"], ["Two.?", "quick"], ["Three.?", "quick"]]
    assert notes["done"] == 3


def test_a_text_about_which_nothing_is_asked_is_kept(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(learn, "self_questions", lambda *given, told: [])
    give(monkeypatch, "Nothing.")
    workdir = tmp_path / "run"
    flags = ["learn", f"--workdir={workdir}", f"--pretrained={inputs / 'llama'}", "--ask_itself"]
    assert learn.main(flags) == 0
    assert "finds nothing to ask there" in capsys.readouterr().err
    assert len(list((workdir / "received").iterdir())) == 1
    (notes,) = results_of(workdir)["figures"]["files"].values()
    assert "asked" not in notes
    (kept,) = saved.read_metadata(workdir / "learned")["notes"]["files"].values()
    assert "asked" not in kept  # so the next command asks anew


def test_a_table_says_whether_it_has_labels_and_other_columns_are_other_examples(inputs, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert call_learn(inputs, workdir, inputs / "labels.csv", "--text_column=body") == 0
    assert "6 texts without labels; --label_column names their column" in capsys.readouterr().err
    assert results_of(workdir)["figures"]["labels"] == []
    assert call_learn(inputs, workdir, inputs / "labels.csv", "--text_column=body", "--label_column=kind") == 2
    assert "no column 'kind'" in error_line(capsys)
    assert call_learn(inputs, workdir, inputs / "labels.csv", "--text_column=body", "--label_column=class") == 0
    assert results_of(workdir)["figures"]["labels"] == ["return", "12345"]


def test_what_came_on_standard_input_needs_its_columns_once(inputs, tmp_path, monkeypatch):
    workdir, learn_batch = tmp_path / "run", learn._learn_batch
    give(monkeypatch, "body,class\nx,return\ny,12345\n")

    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(learn, "_learn_batch", stopped)
    columns = ["--form=csv", "--text_column=body", "--label_column=class"]
    flags = ["learn", f"--workdir={workdir}", f"--pretrained={inputs / 'llama'}", *FLAGS]
    assert learn.main([*flags, *columns]) != 0
    monkeypatch.setattr(learn, "_learn_batch", learn_batch)
    assert learn.main([*flags, str(inputs / "facts.txt")]) == 0
    assert results_of(workdir)["figures"]["labels"] == ["return", "12345"]
    assert list((workdir / "received").iterdir()) == []


def test_a_question_keeps_its_commas_and_a_line_its_separators(learned, monkeypatch, capsys):
    read = []
    monkeypatch.setattr(ask, "_answer", lambda learner, pretrained, text, *given: read.append(text))
    assert call_ask(learned, "--question=Hello, how are you?") == 0
    assert read == ["Hello, how are you?"]
    give(monkeypatch, "x\u2028y\x0cz\r\ny\n")
    capsys.readouterr()
    assert call_ask(learned, "--classify") == 0
    assert len(capsys.readouterr().out.split()) == 2
