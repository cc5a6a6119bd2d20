"""experiments.continual.incorporate: a whole run on a small random model, on generated and on given text."""

import jax
import numpy as np
import pytest
from launcher_cases import error_line, results_of
from pretrained_cases import configuration, tensors_of, write_directory

from experiments.continual import incorporate
from experiments.continual_methods.incorporation import Exam, OtherText, generated, read_document, read_document_by
from nl_jax.pretrained import load_pretrained
from nl_jax.streaming import ContinualLearner


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    llama = configuration("llama") | {"max_position_embeddings": 2048}
    write_directory(folder / "llama", llama, tensors_of(llama))
    (folder / "text.txt").write_text("The fox is brown. It is quick!\n\nf returns x.")
    (folder / "questions.jsonl").write_text(
        '{"question": "What color?", "answer": "brown"}\n{"question": "What is f?", "answer": "x"}\n'
    )
    return folder


def call(inputs, workdir, *more):
    small = ["--quick", "--passes=2", "--other_texts=1"]
    return incorporate.main(["incorporate", f"--workdir={workdir}", f"--pretrained={inputs / 'llama'}", *small, *more])


def test_levels_see_protected_texts_once_and_learn_as_if_each_time(inputs, monkeypatch):
    pretrained, calls, protect = load_pretrained(inputs / "llama"), [], ContinualLearner.protect
    monkeypatch.setattr(ContinualLearner, "protect", lambda *given: calls.append(protect(*given)))
    shared, said = OtherText(1), lambda *_: None
    learned = {"levels": [("f?", "x")], "levels_text": ["The fox."]}
    found = [
        read_document_by(name, {"learning_rate": 1.0}, pretrained, learned[name], other, 1, 0, said)[0]
        for name, other in (("levels", shared), ("levels_text", shared), ("levels", shared), ("levels", OtherText(1)))
    ]
    assert len(calls) == 2
    for model in found[2:]:
        for one, other in zip(jax.tree.leaves(found[0]), jax.tree.leaves(model), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_given_text_is_read_and_asked(inputs, tmp_path, capsys):
    files = [f"--text={inputs / 'text.txt'}", f"--questions={inputs / 'questions.jsonl'}"]
    assert call(inputs, tmp_path / "run", *files, "--methods=without,in_context,levels_text") == 0
    out = capsys.readouterr().out
    results = results_of(tmp_path / "run")
    for name in ("without", "in_context", "levels_text"):
        (found,) = results["figures"][name]
        assert len(found["exact"]) == len(found["chosen"]) == 2
        assert np.isfinite(found["nats"])
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
    assert results["figures"]["without"][0]["perplexity_rise"] == 0.0
    assert results["figures"]["levels_text"][0]["perplexity_rise"] != 0.0
    assert (tmp_path / "run/incorporation.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run/metrics.jsonl").read_text().count("levels_text/document_0") == 2
    assert call(inputs, tmp_path / "run", *files, "--methods=without,in_context,levels_text") == 0
    assert capsys.readouterr().out == out


def test_a_document_that_the_model_does_not_see_whole_is_refused(inputs, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("The fox is brown. " * 2000)
    files = [f"--text={tmp_path / 'long.txt'}", f"--questions={inputs / 'questions.jsonl'}"]
    assert call(inputs, tmp_path / "run", *files, "--methods=without,in_context") == 2
    assert "tokens with a question; the model sees" in error_line(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_every_way_runs_and_rates_are_chosen_on_another_document(inputs, tmp_path):
    assert call(inputs, tmp_path / "run", "--noquick", "--facts=3", "--seeds=2") == 0
    results = results_of(tmp_path / "run")
    assert set(results["figures"]) == set(incorporate.NAMES)
    assert all(len(found) == 2 for found in results["figures"].values())
    for name, chosen in results["settings"].items():
        best = max(range(3), key=lambda i: incorporate._preference(chosen["validation"][i]))
        assert chosen["setting"] == incorporate.METHODS[name].settings[best]


def test_a_document_is_cut_into_sentences(inputs):
    document = read_document(str(inputs / "text.txt"), str(inputs / "questions.jsonl"))
    assert document.texts == ("The fox is brown.", "It is quick!", "f returns x.")
    assert document.questions[1] == ("What is f?", "x", ("brown", "x"))


def test_questions_are_equally_long_and_the_document_stands_before_them_only_in_context(inputs):
    pretrained = load_pretrained(inputs / "llama")
    exam = Exam(pretrained, generated(0, 6, 2))
    assert len({len(prompt) for prompt in exam._prompts}) == 1
    with_it, without = (pretrained.tokenizer.decode(exam.prefix(there)) for there in (True, False))
    for text in exam.document.texts:
        assert text in with_it
        assert text not in without
    for question in exam.document.questions:
        assert question.text not in with_it


@pytest.mark.parametrize(
    ("rises", "exact", "best"), [((0.0, 0.01), (1, 2), 1), ((0.0, 0.03), (1, 2), 0), ((0.05, 0.03), (3, 2), 1)]
)
def test_a_setting_must_keep_other_knowledge(rises, exact, best):
    found = [{"perplexity_rise": r, "exact": [1] * e + [0] * 3, "nats": 1.0} for r, e in zip(rises, exact, strict=True)]
    assert max((0, 1), key=lambda i: incorporate._preference(found[i])) == best
