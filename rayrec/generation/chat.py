"""A language model behind an OpenAI-compatible endpoint as an engine (ChatRec)."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from rayrec.generation.engine import Engine, Part, Scored, Setup

if TYPE_CHECKING:
    from rayrec.config import Config, EvaluateConfig

#: Requests at once, retries of one, and seconds that one may take.
CONCURRENT, RETRIES, SECONDS = 16, 4, 60.0
#: What the client, or a look at what it returns, fails with where an answer has another form than OpenAI's.
_MALFORMED = (AttributeError, IndexError, TypeError, ValueError)


class ChatEngine(Engine):
    """Asks for one answer to each prompt, sent as a user's message; there are no policies to load."""

    modes = frozenset({"greedy"})
    needs_endpoint = True

    def __init__(self, setup: Setup):
        self.settings, self.template = setup.config.evaluate, setup.template
        self.longest = max(64, 2 * (setup.config.model.max_new_tokens or 0))
        self.client = _client(self.settings, RETRIES)

    def load(self, version: str, folder: str) -> None:
        """Do nothing: the endpoint has its own model."""

    def answer(self, part: Part) -> list[list[Scored]]:
        """Return one answer to each prompt, at temperature 0; its log-probability is NaN, which means not known.

        Raises:
            ConnectionError: the endpoint failed more often than a request is retried, or gave no such answer.
        """
        from openai import OpenAIError

        def ask(prompt: list[int]) -> list[Scored]:
            text = self.template.tokenizer.decode(prompt, skip_special_tokens=True)
            message: Any = [{"role": "user", "content": text}]
            limits = {"temperature": 0.0, "max_tokens": self.longest, "seed": part.seed}
            try:
                made = self.client.chat.completions.create(model=self.settings.served, messages=message, **limits)
                answer = (made.choices[0].message.content or "").strip()
            except (OpenAIError, *_MALFORMED) as error:
                again = "" if isinstance(error, _MALFORMED) else f", and {RETRIES} times again"
                raise ConnectionError(
                    f"--endpoint {self.settings.endpoint} failed{again}: {_message(error)} Finished phases are kept; "
                    "the same command goes on with what is left."
                ) from None
            return [(self.template.answer_ids(answer), math.nan)]

        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(ask, part.prompts))

    @classmethod
    def check(cls, config: Config, gpu: bool) -> None:
        """Refuse runs that tune; ask the endpoint for its models.

        Raises:
            ValueError: the run tunes, nothing answers there, it refuses, or it does not serve the model.
        """
        from openai import OpenAIError

        train, settings = config.train, config.evaluate
        if train.first_rows or train.iterations or settings.decode != ("greedy",):
            raise ValueError(
                "--engine chat tunes nothing and writes one answer. Take --method ChatRec, which has --first-rows 0, "
                "--iterations 0 and --decode greedy."
            )
        try:
            served = [model.id for model in _client(settings, 0).models.list()]
        except (OpenAIError, *_MALFORMED) as error:
            raise ValueError(
                f"--endpoint {settings.endpoint}: {_message(error)} Name the address of an OpenAI-compatible server, "
                "such as http://127.0.0.1:8000/v1, with OPENAI_API_KEY set where it wants a key."
            ) from None
        if not served:
            raise ValueError(f"--endpoint {settings.endpoint} serves no model. Start its server with --served's model.")
        if settings.served not in served:
            raise ValueError(
                f"--served {settings.served} is not among the models of {settings.endpoint}: {served}. Name one of "
                "them."
            )


def _key() -> str:
    """The API key, read from the environment at each use: no configuration, log or report holds it."""
    return os.environ.get("OPENAI_API_KEY") or "none"


def _client(settings: EvaluateConfig, retries: int) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=settings.endpoint, api_key=_key(), max_retries=retries, timeout=SECONDS)


def _message(error: Exception) -> str:
    """The endpoint's message without the key, which some endpoints repeat."""
    if isinstance(error, _MALFORMED):
        return "its answer has not the form of an OpenAI-compatible server's."
    return str(error).replace(_key(), "***")
