"""What a continual learner reads from files, and the one line that says what is wrong with one."""

import pytest

from nl_jax import InputError
from nl_jax.data.examples import read_examples
from nl_jax.data.library_docs import library_docs

PAIRS = [("one, two", "a"), ("three", "b")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv", 'id,text,label\n1,"one, two",a\n\n2,three,b\n'),
        ("x.tsv", "text\tlabel\none, two\ta\nthree\tb\n"),
        ("x.jsonl", '{"text": "one, two", "label": "a"}\n\n{"label": "b", "text": "three"}\n'),
    ],
)
def test_rows_are_labelled_examples(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    assert read_examples(tmp_path / name) == PAIRS
    assert read_examples(tmp_path / name, label_column="none") == [text for text, _ in PAIRS]
    assert read_examples(tmp_path / name, text_column="label", label_column="text") == [(b, a) for a, b in PAIRS]


def test_paragraphs_are_texts(tmp_path):
    (tmp_path / "x.txt").write_text("\n\none\ntwo\n \n\nthree")
    assert read_examples(tmp_path / "x.txt") == ["\n\none\ntwo"[2:], "three"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.csv", b"body,label\none,a\n", "x.csv:2: no column 'text'; there are body, label"),
        ("x.csv", b"text,label\none,a\n two\n", "x.csv:3: 1 columns; expected text, label"),
        ("x.csv", b"text,label\none,\n", "x.csv:2: column 'label' is ''; expected text"),
        ("x.csv", b'text,label\n"one', "x.csv:2: not CSV"),
        ("x.csv", b"text,label\n", "x.csv: no text"),
        ("x.jsonl", b'{"text": "a", "label": "b"}\n{"text": "c"}\n', "x.jsonl:2: column 'label' is None"),
        ("x.jsonl", b'{"text": 3}\n', "x.jsonl:1: column 'text' is 3; expected text"),
        ("x.jsonl", b"[1]\n", "x.jsonl:1: expected a JSON object, found a list"),
        ("x.jsonl", b"{\n", "x.jsonl:1: not JSON"),
        ("x.txt", b"one \xff", "x.txt: not UTF-8 at byte 4"),
        ("x.txt", b" \n", "x.txt: no text"),
    ],
)
def test_a_bad_file_is_named_with_line_and_column(name, content, problem, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_examples(tmp_path / name)
    assert problem in str(caught.value)


def test_the_library_has_documentation():
    texts = library_docs(900)
    assert len(texts) > 30
    assert all(len(text) <= 900 for text in texts)
    assert texts == library_docs(900)
