"""Writes a model as a Hugging Face directory, which ``transformers`` reads."""

import json
from pathlib import Path

from nl_jax.errors import InputError, StorageError
from nl_jax.files import local_path, reason
from nl_jax.pretrained.hf_config import to_hf
from nl_jax.pretrained.llama import tensors_of
from nl_jax.pretrained.loading import Pretrained
from nl_jax.pretrained.optional import needed
from nl_jax.pretrained.safetensors_files import SINGLE


def export_pretrained(pretrained: Pretrained, directory: str | Path) -> None:
    """Writes configuration, weights in float32, tokenizer and chat template.

    Args:
      pretrained: what `load_pretrained` returns, or the same of a model that was trained here: attention with one
        feed-forward block in each layer. Scaled embeddings are written scaled, with a head of their own.
      directory: a new or empty directory.

    Raises:
      InputError: for a model that no architecture of the Llama family can compute, or a directory with other files.
      StorageError: if it cannot be written.

    Examples:
      >>> import tempfile
      >>> from flax import nnx
      >>> from tokenizers import Tokenizer, models
      >>> from nl_jax.data import HuggingFaceTokenizer
      >>> from nl_jax.models import LanguageModel, named_config
      >>> from nl_jax.pretrained import Pretrained, export_pretrained
      >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
      >>> tokenizer = HuggingFaceTokenizer.from_json(words.to_str().encode(), "words")
      >>> sizes = {"vocab_size": 3, "width": 8, "num_layers": 1, "num_heads": 1, "mlp_hidden": 8}
      >>> model = LanguageModel(named_config("transformer", "tiny", **sizes), rngs=nnx.Rngs(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     export_pretrained(Pretrained(model, tokenizer), folder)
      ...     print(*sorted(path.name for path in Path(folder).iterdir()))
      config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json
    """
    place, model = local_path(directory), pretrained.model
    config = to_hf(model.config)
    save = needed("safetensors.numpy", "export").save_file
    special = dict(pretrained.special_tokens)
    first = pretrained.tokenizer.token_id(special.get("bos_token", ""))
    ids = {"bos_token_id": first, "eos_token_id": list(pretrained.end_tokens) or None}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **special}
    if pretrained.chat_template is not None:
        settings["chat_template"] = pretrained.chat_template
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError(f"{place}: holds other files; expected a new or empty directory")
    try:
        place.mkdir(parents=True, exist_ok=True)
        files = {"config.json": config | ids, "generation_config.json": ids, "tokenizer_config.json": settings}
        for name, content in files.items():
            (place / name).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        (place / "tokenizer.json").write_bytes(pretrained.tokenizer.content)
        save(tensors_of(model), str(place / SINGLE), metadata={"format": "pt"})
    except OSError as error:
        raise StorageError(f"{place}: the model could not be written ({reason(error)})") from error
