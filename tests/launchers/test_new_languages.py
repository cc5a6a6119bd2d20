"""experiments.continual.new_languages: a whole run on a small random model, on invented and on given languages."""

import numpy as np
import pytest
from launcher_cases import results_of
from pretrained_cases import configuration, tensors_of, write_directory

from experiments.continual import new_languages
from experiments.continual_methods import translation
from experiments.continual_methods.translation import (
    METHODS,
    QUESTION,
    Translator,
    chrf,
    drawn,
    generated,
    guessed,
    learned_by,
    most_pairs,
    read_pairs,
)
from nl_jax import InputError
from nl_jax.pretrained import load_pretrained


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    llama = configuration("llama") | {"max_position_embeddings": 256}
    write_directory(folder / "llama", llama, tensors_of(llama))
    (folder / "pairs.tsv").write_text("".join(f"le mot {n}\tthe word {n}\n" for n in range(8)) + "\nle mot 0\ttwice\n")
    (folder / "many.tsv").write_text("".join(f"le mot {n}\tthe word {n}\n" for n in range(20)))
    return folder


@pytest.fixture(scope="module")
def pretrained(inputs):
    return load_pretrained(inputs / "llama")


def call(inputs, workdir, *more):
    small = ["--quick", "--sentences=4", "--tests=2", "--passes=1", "--window=128"]
    arguments = [f"--workdir={workdir}", f"--pretrained={inputs / 'llama'}", *small, *more]
    return new_languages.main(["new_languages", *arguments])


def test_given_languages_are_learned_one_after_the_other(inputs, tmp_path, capsys):
    pairs = [f"--pairs_{language}={inputs / 'many.tsv'}" for language in "ab"]
    methods = "--methods=guess,without,in_context,levels_2"
    assert call(inputs, tmp_path / "run", *pairs, methods) == 0
    out = capsys.readouterr().out
    results = results_of(tmp_path / "run")
    for name in ("guess", "without", "in_context", "levels_2"):
        (found,) = results["figures"][name]
        assert np.shape(found["alone"]) == np.shape(found["sequence"]) == (2,)
        assert np.all(np.isfinite([found["alone"], found["sequence"]]))
        assert any(line.startswith(f"{name} ") for line in out.splitlines())
    assert (tmp_path / "run/languages.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run/metrics.jsonl").read_text().count("levels_2/seed_0") == 3
    assert call(inputs, tmp_path / "run", *pairs, methods) == 0
    assert capsys.readouterr().out == out


@pytest.mark.slow
def test_every_way_runs_and_settings_are_chosen_on_other_languages(inputs, tmp_path):
    assert call(inputs, tmp_path / "run", "--noquick", "--seeds=2") == 0
    results = results_of(tmp_path / "run")
    assert set(results["figures"]) == set(new_languages.NAMES)
    assert all(len(found) == 2 for found in results["figures"].values())
    assert set(results["settings"]) == {"levels_1", "levels_1_protected", "levels_3"}
    for name, chosen in results["settings"].items():
        best = max(range(2), key=lambda i: np.mean(chosen["validation"][i]["sequence"]))
        assert chosen["setting"] == METHODS[name].settings[best]


def test_each_language_is_learned_alone_and_b_after_a(pretrained, monkeypatch):
    """What was scored at which time, by the weights then: B alone is learned from the model as it was."""
    texts = generated(0, 4, 2, 10)
    scored = []

    def score(self, model, text, examples=()):
        scored.append((texts.index(text), np.asarray(model.blocks.cms.levels[0].down.kernel[...])))
        return float(len(scored))

    monkeypatch.setattr(translation.Translator, "score", score)
    losses = {}
    setting = METHODS["levels_1"].settings[0]
    found = learned_by(METHODS["levels_1"], setting, pretrained, texts, 1, 0, lambda n, row: losses.update({n: row}))
    assert [language for language, _ in scored] == [0, 0, 1, 1]
    assert (found["alone"], found["sequence"]) == ([1.0, 4.0], [2.0, 3.0])
    after_a, after_both, same, after_b = (weights for _, weights in scored)
    np.testing.assert_array_equal(after_both, same)
    assert not np.array_equal(after_a, after_both)
    only_b = learned_by(METHODS["levels_1"], setting, pretrained, texts[::-1], 1, 0, lambda *_: None)
    assert only_b["alone"][0] == 5.0
    assert np.isfinite([losses[n]["loss"] for n in (1, 2, 3)]).all()
    # B is the first language now; its sentences come in another order, in one step of the same batch
    np.testing.assert_allclose(scored[4][1], after_b, rtol=1e-4, atol=1e-5)


def test_what_is_protected_is_known_when_b_is_learned(pretrained, monkeypatch):
    """A is the same with and without; B moves the weights less where A's sentences are their inputs."""
    texts, weights = generated(0, 8, 2, 10), {}
    for name in ("levels_1", "levels_1_protected"):
        seen = weights[name] = []

        def score(self, model, text, examples=(), seen=seen):
            seen.append(np.asarray(model.blocks.cms.levels[0].up.kernel[...]))
            return 1.0

        monkeypatch.setattr(translation.Translator, "score", score)
        learned_by(METHODS[name], {"rate": 1e-3}, pretrained, texts, 1, 0, lambda *_: None, b_alone=False)
    plain, protected = weights["levels_1"], weights["levels_1_protected"]
    np.testing.assert_allclose(protected[0], plain[0], atol=1e-6)
    moved = [np.linalg.norm(each[1] - each[0]) for each in (plain, protected)]
    assert 0 < moved[1] < 0.9 * moved[0]


def test_the_window_holds_the_newest_sentences(pretrained):
    texts = generated(0, 6, 2, 10)
    translator = Translator(pretrained, texts)
    both = [*texts[0].learned, *texts[1].learned]
    shown = pretrained.tokenizer.decode(np.asarray(translator.examples(both, 10**6)))
    assert shown.strip() == "\n\n".join(f"{QUESTION.format(text=s)} {english}" for s, english in both)
    few = translator.examples(both, 128)
    assert len(few) == 128
    shown = pretrained.tokenizer.decode(np.asarray(few)).strip()
    assert shown.endswith(f"{both[-1][0]}\nEnglish: {both[-1][1]}")
    assert both[0][0] not in shown


def test_invented_texts_share_no_meaning():
    texts = generated(0, 20, 10, 20)
    english = [pair[1] for text in texts for part in text for pair in part]
    assert len(set(english)) == len(english) == 60
    assert [len(part) for text in texts for part in text] == [20, 10, 20, 10]


def test_chrf_and_guesses():
    assert chrf(["the old dog"], ["the old dog"]) == pytest.approx(100.0)
    assert chrf(["xyz"], ["the old dog"]) == 0.0
    found = guessed(generated(0, 20, 10, 20), 0)
    assert found["alone"] == found["sequence"]
    assert all(5 < value < 60 for value in found["alone"])


def test_pairs_are_read_once_and_drawn_by_seed(inputs, tmp_path):
    pairs = read_pairs(str(inputs / "pairs.tsv"), 8)
    assert pairs[0] == ("le mot 0", "the word 0")
    assert len(pairs) == 8
    (text,) = drawn([pairs], 0, 5, 3)
    assert sorted(text.learned + text.tested) == sorted(pairs)
    assert drawn([pairs], 0, 5, 3) == [text] != drawn([pairs], 1, 5, 3)
    (tmp_path / "bad.tsv").write_bytes(b"a\tb\nc\t\n")
    with pytest.raises(InputError, match=r"bad.tsv:2: 2 columns; expected a sentence, a tab"):
        read_pairs(str(tmp_path / "bad.tsv"), 1)
    (tmp_path / "bad.tsv").write_bytes(b"\xff\tb\n")
    with pytest.raises(InputError, match="not UTF-8 at byte 0"):
        read_pairs(str(tmp_path / "bad.tsv"), 1)


def test_no_tested_sentence_of_a_file_is_learned_in_the_other_language():
    languages = [[(f"{name} {i}", f"word {i}") for i in range(20 + 3 * place)] for place, name in enumerate("ab")]
    for seed in range(5):
        texts = drawn(languages, seed, 6, 4)
        learned = {english for text in texts for _, english in text.learned}
        assert [(len(text.learned), len(text.tested)) for text in texts] == [(6, 4), (6, 4)]
        assert not learned & {english for text in texts for _, english in text.tested}
    with pytest.raises(InputError, match=r"--tests=9: \d sentences are left whose English no language learns"):
        drawn([languages[0][:12], languages[0][:12]], 0, 6, 9)


def test_more_pairs_than_invented_languages_have_are_tuned_on_what_these_have(inputs, tmp_path, monkeypatch):
    """Rates are chosen on invented languages, before which nothing may fail that a flag cannot mend."""
    sizes, choices = [], []
    monkeypatch.setattr(new_languages, "generated", lambda seed, *given: sizes.append(given))
    monkeypatch.setattr(new_languages, "choose_settings", lambda names, *given: choices.append(names))
    given = {"methods": ["levels_1"], "quick": False, "words": 10, "sentences": 1000, "tests": 20, "passes": 1}
    new_languages.Comparison(given | {"seeds": 1}, [], tmp_path)._choose(None, {"settings": {}})
    assert choices == [["levels_1"]]
    assert sizes == [(most_pairs(10) - 20, 20, 10)]
