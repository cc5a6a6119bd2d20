"""Chat templates: the text that a model was trained to read for a list of messages."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from nl_jax.errors import InputError
from nl_jax.pretrained.optional import needed


def apply_template(
    template: str, messages: Sequence[Mapping[str, Any]], special_tokens: Mapping[str, str], *, answer: bool = True
) -> str:
    """Renders a Jinja chat template as ``transformers`` does, in a sandbox.

    Args:
      template: the template of the model's files.
      messages: each with ``role`` ("system", "user" or "assistant") and ``content``.
      special_tokens: what templates may use, such as ``bos_token``.
      answer: whether the text ends with what begins the assistant's answer (``add_generation_prompt``).

    Raises:
      InputError: for messages that the template refuses, or a template that is none.
    """
    jinja2 = needed("jinja2", "a chat template")
    sandbox = needed("jinja2.sandbox", "a chat template")
    for message in messages:
        if not {"role", "content"} <= message.keys():
            raise InputError(f"message {dict(message)!r}: expected a role and a content")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
        rendered = environment.from_string(template).render(
            messages=list(messages), add_generation_prompt=answer, **special_tokens
        )
    except jinja2.TemplateError as error:
        raise InputError(f"chat template: {error}") from error
    return rendered


def _refuse(message: str) -> NoReturn:
    raise InputError(f"chat template: {message}")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
