"""experiments.generate with a pre-trained model."""

import importlib.util
import json

import pytest
from pretrained_cases import configuration, tensors_of, write_directory

from experiments import generate
from nl_jax.pretrained import load_pretrained, smollm2
from nl_jax.streaming.generation import sample

GREEDY = ["--temperature=0", "--num_tokens=6"]
TEMPLATE = "{% for m in messages %}<|im_end|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    config = configuration("llama")
    path = write_directory(tmp_path_factory.mktemp("llama"), config, tensors_of(config))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}))
    return path


def call(*arguments):
    return generate.main(["generate", *map(str, arguments)])


def test_it_continues_a_prompt(directory, capsys):
    assert call(f"--pretrained={directory}", "--prompt=def f", *GREEDY) == 0
    read = load_pretrained(directory)
    ids = read.encode("def f")
    expected = [*ids, *sample(read.model, ids, num_tokens=6, temperature=0.0)]
    assert not {0, 1} & set(expected)
    printed = capsys.readouterr().out
    assert printed == read.tokenizer.decode(expected) + "\n"
    stop = printed[len("def f") + 2]
    assert call(f"--pretrained={directory}", "--prompt=def f", f"--stop={stop}", *GREEDY) == 0
    assert capsys.readouterr().out == printed[: printed.index(stop, len("def f"))] + "\n"


def test_a_chat_prints_the_answer_alone(directory, capsys):
    assert call(f"--pretrained={directory}", "--prompt=def f", "--chat", *GREEDY) == 0
    read = load_pretrained(directory)
    ids = read.encode("<|im_end|>def f:", marked=True)
    assert ids[0] == 1
    assert read.end_tokens == (0, 1)
    answer = []
    for token in sample(read.model, ids, num_tokens=6, temperature=0.0):
        if token in read.end_tokens:
            break
        answer.append(token)
    assert capsys.readouterr().out == read.tokenizer.decode(answer) + "\n"


def test_an_empty_prompt_begins_a_document(directory, capsys):
    assert call(f"--pretrained={directory}", *GREEDY) == 0


def test_bad_input(directory, tmp_path, monkeypatch, capsys):
    assert call("--pretrained=missing") == 2
    assert "--pretrained=missing: missing: no such file or directory" in capsys.readouterr().err
    for flag in ("--workdir=run", "--model=hope", "--tokenizer=t.json"):
        assert call(f"--pretrained={directory}", flag) == 2
        assert f"{flag.split('=')[0]}: given with --pretrained" in capsys.readouterr().err
    config = configuration("llama")
    write_directory(tmp_path / "plain", config, tensors_of(config))
    assert call(f"--pretrained={tmp_path / 'plain'}", "--chat") == 2
    assert "no chat template" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert call("--pretrained=default") == 2
    assert smollm2.INSTALL in capsys.readouterr().err
