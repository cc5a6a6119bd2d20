"""A language model as EleutherAI's ``lm-eval`` asks for one, so that it can be evaluated on the tasks of that package.

This needs the package: ``pip install nl-jax[eval]``. Nothing here needs torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nl_jax.data import Tokenizer
from nl_jax.data.tokenizer import ids_of
from nl_jax.errors import InputError
from nl_jax.models.language_model import LanguageModel
from nl_jax.pretrained import Pretrained
from nl_jax.streaming.generation import checked_sampling
from nl_jax.streaming.together import Likelihood, continued, likelihoods

try:
    from lm_eval import utils as harness
    from lm_eval.api.model import TemplateLM as Base
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
except ImportError:
    Base: Any = object  # type: ignore[no-redef]
    harness = None

MOST_TOKENS = 256  # of a continuation, where a task does not say
OPTIONS = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}  # of a continuation


class HarnessModel(Base):
    """A model for ``lm_eval.simple_evaluate(model=...)``.

    Texts are cut, tokenized and scored as by that package's Hugging Face backend. What a text gives does not depend on
    those that are read beside it, up to rounding. A model that learns in context learns from each text while it reads.

    Args:
      model: the model.
      tokenizer: its tokenizer, for a model that was trained here; the separator begins and ends texts.
      pretrained: what `load_pretrained` returned, in the place of model and tokenizer.
      max_length: largest number of tokens of a text; longer ones lose their beginning, or are scored in windows. None
        for the model's ``context_length``.
      batch_size: number of texts that are read together, at least 1.

    Raises:
      InputError: if ``lm-eval`` is not installed, or for a length or batch size out of range.
    """

    def __init__(
        self,
        model: LanguageModel | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        pretrained: Pretrained | None = None,
        max_length: int | None = None,
        batch_size: int = 8,
    ):
        check_installed()
        super().__init__()
        if pretrained is not None:
            model, tokenizer = pretrained.model, pretrained.tokenizer
        if model is None or tokenizer is None:
            raise InputError("model and tokenizer: missing; expected both, or a pre-trained model")
        self.model, self._tokenizer, self._pretrained = model, tokenizer, pretrained
        self.max_length = model.config.context_length if max_length is None else max_length
        self._batch_size = batch_size
        for name, value, low in (("max_length", self.max_length, 2), ("batch_size", batch_size, 1)):
            if value < low:
                raise InputError(f"{name}={value}: expected at least {low}")

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        ended = self._special("eos_token")
        return self._tokenizer.separator_id if ended is None else ended

    @property
    def prefix_token_id(self) -> int:
        """The id that is read before a text that is scored from its first token on."""
        begun = self._special("bos_token")
        return self.eot_token_id if begun is None else begun

    def _special(self, name: str) -> int | None:
        if self._pretrained is None or name not in self._pretrained.special_tokens:
            return None
        return self._pretrained.tokenizer.token_id(self._pretrained.special_tokens[name])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, with those that the model expects before it unless ``add_special_tokens`` is False."""
        if self._pretrained is None:
            return ids_of(self._tokenizer, string)
        if add_special_tokens is False:
            return self._pretrained.tokenizer.encode_marked(string)
        return self._pretrained.encode(string, marked=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether it is what the model would write, from ids of both parts."""
        texts = []
        for _request, begin, end in requests:
            if len(end) > self.max_length:
                raise InputError(f"a continuation of {len(end)} tokens; expected at most max_length={self.max_length}")
            texts.append((begin[-(self.max_length + 1 - len(end)) :], end))
        scored: list[Any] = [None] * len(texts)
        for i, found in self._shown(likelihoods(self.model, texts, batch_size=self._batch_size), texts, disable_tqdm):
            scored[i] = tuple(Likelihood(*found))
            if requests[i][0] is not None:  # windows of a rolling text have no request of their own
                self.cache_hook.add_partial("loglikelihood", requests[i][0], scored[i])
        return scored

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each cut into windows of ``max_length`` tokens without overlap."""
        texts = [request.args[0] for request in requests]
        windows, owners = [], []
        for owner, text in enumerate(texts):
            ids, prefix = self.tok_encode(text), self.prefix_token_id
            for window in harness.get_rolling_token_windows(ids, prefix, self.max_length, 1):
                windows.append((None, *harness.make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(texts)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += nats
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each text up to one of its stop strings, which is left out, or its largest number of tokens."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        written = [""] * len(requests)
        for members in groups.values():
            texts = [requests[i].args[0] for i in members]
            for i, text in self._continue(texts, requests[members[0]].args[1], disable_tqdm):
                written[members[i]] = text
                self.cache_hook.add_partial("generate_until", requests[members[i]].args, text)
        return written

    def _continue(self, texts: Sequence[str], given: Mapping[str, Any], disable_tqdm: bool) -> Any:
        """Yields the continuation of each text with its index; ``given`` are a task's ``generation_kwargs``."""
        options: dict[str, Any] = {**normalize_gen_kwargs(dict(given), MOST_TOKENS)}
        if set(options) - OPTIONS:
            names = ", ".join(sorted(set(options) - OPTIONS))
            raise InputError(f"generation_kwargs of a task: {names}; expected some of {', '.join(sorted(OPTIONS))}")
        most, room = options["max_gen_toks"], self.max_length - options["max_gen_toks"]
        if room < 1:
            raise InputError(f"a task asks for {most} tokens; expected fewer than max_length={self.max_length}")
        ends = {self.eot_token_id, *(() if self._pretrained is None else self._pretrained.end_tokens)}
        stops = [stop for stop in handle_stop_sequences(options["until"], None) if stop]
        vocab_size, top_k = self.model.config.vocab_size, options.get("top_k") or None
        temperature = options.get("temperature", 1.0 if options.get("do_sample") else 0.0)
        sampling = checked_sampling(temperature, top_k, options.get("top_p", 1.0), vocab_size)

        def text_of(ids: Sequence[int]) -> str:
            return self._tokenizer.decode([i for i in ids if i not in ends])  # type: ignore[arg-type]

        def stopped(ids: Sequence[int]) -> bool:
            return ids[-1] in ends or any(stop in text_of(ids) for stop in stops)

        prompts = [self.tok_encode(text)[-room:] or [self.prefix_token_id] for text in texts]
        continuations = continued(
            self.model, prompts, num_tokens=most, sampling=sampling, stopped=stopped, batch_size=self._batch_size
        )
        for i, ids in self._shown(continuations, texts, disable_tqdm):
            text = text_of(ids)
            yield i, text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]

    @staticmethod
    def _shown(items: Any, texts: Sequence[Any], disable: bool) -> Any:
        from tqdm import tqdm

        return tqdm(items, total=len(texts), disable=disable, desc="texts")

    @property
    def tokenizer_name(self) -> str:
        """What names the tokenizer in the package's caches."""
        return self._tokenizer.digest

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template by which `apply_chat_template` writes, or None."""
        return self._pretrained.chat_template if self._pretrained is not None and chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text that stands for messages; raises `InputError` for a model without a chat template."""
        if self._pretrained is None:
            raise InputError("this model has no chat template; expected one that was trained for chats")
        return self._pretrained.chat(chat_history, answer=add_generation_prompt)


def check_installed() -> None:
    """Raises `InputError`, which says what to install, if ``lm-eval`` is missing."""
    if harness is None:
        raise InputError("tasks of lm-eval need the package 'lm-eval': pip install nl-jax[eval]")
