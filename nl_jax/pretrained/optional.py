"""Imports packages that only reading pre-trained models needs."""

import importlib
from typing import Any

from nl_jax.errors import InputError


def needed(name: str, purpose: str) -> Any:
    """The module ``name``; raises `InputError`, which says how to install it, where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{purpose} needs the package {package!r}: pip install {package}") from error
