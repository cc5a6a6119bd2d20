"""The flag --mixer_option, which sets options of the mixers of all models."""

import ast
from collections.abc import Mapping
from typing import Any

from absl import flags

from experiments.common.compute_flags import compute_fields
from nl_jax import InputError
from nl_jax.models import LanguageModelConfig, count_parameters, named_config

OWN_FLAGS = ("width", "num_heads", "chunk_size", "context_length")  # sizes that have flags of their own


def define_mixer_option(values: flags.FlagValues) -> None:
    """Adds the flag."""
    text = "An option of all models' mixers, such as eta=0.5 or 'eta=(\"sigmoid\", 1.0)'; may be given several times."
    flags.DEFINE_multi_string("mixer_option", None, text, flag_values=values)


def configuration(
    values: flags.FlagValues, model: str, preset: str, own: Mapping[str, Any] | None = None, **sizes: Any
) -> LanguageModelConfig:
    """Returns `named_config` with what this flag and those of `compute_fields` say.

    ``own`` are options of the mixer unless the flag's are.

    Raises:
        InputError: for values that a module refuses.
    """
    options = tuple((dict(own or {}) | mixer_options(values)).items())
    try:
        config = named_config(model, preset, mixer_options=options, **compute_fields(values), **sizes)
        count_parameters(config)
    except InputError:
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        given = [f"--models={model}", *(f"--mixer_option={option}" for option in values.mixer_option or ())]
        raise InputError(f"{' '.join(given)}: {error}") from error
    return config


def mixer_options(values: flags.FlagValues) -> dict[str, Any]:
    """The options given by ``--mixer_option``; raises `InputError` if one is malformed or has no plain value."""
    options: dict[str, Any] = {}
    for given in values.mixer_option or ():
        name, equals, text = (part.strip() for part in given.partition("="))
        flag = f"--mixer_option={given}"
        if not (name.isidentifier() and equals):
            raise InputError(f"{flag}: expected name=value")
        if name in OWN_FLAGS:
            raise InputError(f"{flag}: expected an option of a mixer; flags of their own decide {', '.join(OWN_FLAGS)}")
        if name in options:
            raise InputError(f"{flag}: expected every option once")
        try:
            options[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):
            options[name] = text
            if not text.isidentifier() or text.lower() in ("true", "false", "none"):  # the string "false" would be true
                raise InputError(f"{flag}: expected a Python value, such as 0.5, True or (1, 2), or a word") from None
        if not _plain(options[name]):
            raise InputError(f"{flag}: expected a number, True, False, None, a string, or a tuple of these")
    return options


def _plain(value: Any) -> bool:
    """Whether a value can be compared, hashed and saved as JSON."""
    return all(map(_plain, value)) if isinstance(value, tuple) else isinstance(value, int | float | str | None)
