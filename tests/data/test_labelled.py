"""Labelled texts: the published files where they are there, made ones in their formats, what is wrong with others."""

import json

import numpy as np
import pytest
from labelled_cases import write_labelled
from shared_data import data_file

from nl_jax import InputError
from nl_jax.data.class_streams import class_stream, class_tasks
from nl_jax.data.labelled import LABELLED_DATA, load_labelled

SIZES = {"clinc150": (150, 15000, 4500), "banking77": (77, 10003, 3080), "dbpedia": (70, 10000, 1000)}


@pytest.mark.parametrize("name", SIZES)
def test_the_published_files_have_their_sizes(name):
    data = load_labelled(name, str(data_file(name).parent))
    found = len(data.classes), len(data.train.texts), len(data.test.texts)
    assert found == SIZES[name]
    assert all(np.bincount(split.labels, minlength=len(data.classes)).min() > 0 for split in (data.train, data.test))
    if name == "clinc150":
        assert set(np.bincount(data.train.labels)) == {100}
        assert set(np.bincount(data.test.labels)) == {30}
        assert [len(group) for group in data.domains.values()] == [15] * 10
    if name == "banking77":
        assert set(np.bincount(data.test.labels)) == {40}


@pytest.fixture
def folder(tmp_path):
    return write_labelled(tmp_path / "data")


@pytest.mark.parametrize("name", LABELLED_DATA)
def test_every_format_gives_the_same_texts(name, folder):
    data, other = (load_labelled(each, str(folder)) for each in (name, "clinc150"))
    assert data.classes == tuple(f"class_{i}" for i in range(6))
    assert data.train.texts == other.train.texts
    np.testing.assert_array_equal(data.test.labels, np.arange(30) % 6)


def test_validation_rows_are_a_fifth_of_each_class_and_the_same_every_time(folder):
    data = load_labelled("banking77", str(folder))
    fit, held_out = data.validation_rows()
    assert sorted([*fit, *held_out]) == list(range(120))
    assert set(np.bincount(data.train.labels[held_out])) == {4}
    np.testing.assert_array_equal(held_out, data.validation_rows()[1])


def test_text_with_commas_quotes_and_line_ends_is_read_whole(folder):
    for split in ("train", "test"):
        (folder / f"dbpedia/{split}.csv").write_text('text,label\n"a, ""b""\nc\u2028d",x\ne,y\n', encoding="utf-8")
    assert load_labelled("dbpedia", str(folder)).train.texts == ('a, "b"\nc\u2028d', "e")


@pytest.mark.parametrize("name", LABELLED_DATA)
def test_byte_order_marks_and_blank_lines_change_nothing(name, folder):
    before = load_labelled(name, str(folder))
    for path in folder.rglob("*.*"):
        path.write_text("\ufeff" + path.read_text(encoding="utf-8") + "\n\r\n", encoding="utf-8")
    assert load_labelled(name, str(folder)).fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("banking77/test.csv", None, "no such file"),
        ("banking77/train.csv", "text,label\na,b\n", "columns text,label; expected text,category"),
        ("banking77/train.csv", "", "columns missing; expected text,category"),
        ("banking77/train.csv", "text,category\na,b,c\n", "train.csv:2: 3 columns"),
        ("banking77/train.csv", "text,category\n", "no rows"),
        ("banking77/train.csv", "text,category\na,one\n", "one label, 'one'; expected at least two"),
        ("banking77/test.csv", "text,category\na,new\n", "label 'new' is never seen in training"),
        ("banking77/test.csv", b"text,category\n\xff,b\n", "not UTF-8 at byte 14"),
        ("clinc150/data_full.json", "{", "not JSON"),
        ("clinc150/data_full.json", '{"train": []}', "no key 'test'"),
        ("clinc150/data_full.json", '{"train": [["a"]], "test": []}', "key 'train': expected rows of [text, intent]"),
        ("clinc150/data_full.json", '{"train": null, "test": []}', "key 'train': expected rows of [text, intent]"),
        ("clinc150/data_full.json", '{"train": 3, "test": []}', "key 'train': expected rows of [text, intent]"),
        ("clinc150/data_full.json", '{"train": "ab", "test": []}', "key 'train': expected rows of [text, intent]"),
        ("clinc150/data_full.json", '{"train": {"ab": 1}, "test": []}', "key 'train': expected rows of [text, intent]"),
        ("clinc150/data_full.json", '{"train": ' + "9" * 5000, "not JSON"),
        ("clinc150/data_full.json", "[" * 100_000, "not JSON"),
        ("clinc150/domains.json", '{"all": ["class_0", "class_9"]}', "label 'class_9': expected each label"),
        ("clinc150/domains.json", '{"all": ["class_0"]}', "label 'class_1': expected each label"),
        ("clinc150/domains.json", "[]", "expected an object with a list of intents"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(file, content, problem, folder):
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        load_labelled(file.split("/")[0], str(folder))
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_is_not_known():
    with pytest.raises(InputError, match="data set 'imdb': expected one of clinc150, banking77, dbpedia"):
        load_labelled("imdb", ".")


def test_a_stream_has_every_example_once_group_by_group(folder):
    data = load_labelled("clinc150", str(folder))
    tasks = class_tasks(data, "mixed", 3, seed=0)
    stream = class_stream(data.train.labels, tasks, seed=0)
    assert sorted(label for group in tasks for label in group) == list(range(6))
    assert sorted(np.concatenate(stream.rows)) == list(range(120))
    for group, rows in zip(stream.tasks, stream.rows, strict=True):
        assert set(data.train.labels[rows]) == set(group)
        assert list(rows) != sorted(rows)
    assert tasks != class_tasks(data, "mixed", 3, seed=1)
    assert tasks == class_tasks(data, "mixed", 3, seed=0)
    shuffled = class_stream(data.train.labels, tasks, seed=0, shuffled=True)
    assert sorted(np.concatenate(shuffled.rows)) == list(range(120))
    assert [len(rows) for rows in shuffled.rows] == [40, 40, 40]
    assert all(len(set(data.train.labels[rows])) == 6 for rows in shuffled.rows)


def test_tasks_by_domain_and_tasks_that_do_not_fit(folder):
    data = load_labelled("clinc150", str(folder))
    assert sorted(class_tasks(data, "domains", 0, seed=0)) == [(0, 1, 2), (3, 4, 5)]
    with pytest.raises(InputError, match="tasks=4: expected a divisor of the 6 classes of clinc150, from 2"):
        class_tasks(data, "mixed", 4, seed=0)
    with pytest.raises(InputError, match="order=domains: dbpedia has no domains"):
        class_tasks(load_labelled("dbpedia", str(folder)), "domains", 2, seed=0)


def test_the_fingerprint_changes_with_any_text(folder):
    before = load_labelled("clinc150", str(folder)).fingerprint
    path = folder / "clinc150/data_full.json"
    content = json.loads(path.read_text())
    content["train"][0][0] += "!"
    path.write_text(json.dumps(content))
    after = load_labelled("clinc150", str(folder)).fingerprint
    assert before["train"] == after["train"]
    assert before["sha256"] != after["sha256"]
