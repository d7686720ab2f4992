"""A language model behind an OpenAI-compatible endpoint in the place of an engine (ChatRec)."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rayrec.config import EvaluateConfig
from rayrec.generation.engine import Mode, Setup

#: Requests under way at once, times that one is tried again, and seconds that one may take.
AT_ONCE, AGAIN, SECONDS = 16, 4, 60.0


def _key() -> str:
    """The key is read where it is used: it is in no configuration, no log and no report."""
    return os.environ.get("OPENAI_API_KEY") or "none"


def _client(settings: EvaluateConfig, again: int) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=settings.endpoint, api_key=_key(), max_retries=again, timeout=SECONDS)


def _words(error: Exception) -> str:
    """What an endpoint says, without the key that some of them repeat."""
    return str(error).replace(_key(), "***")


def check_endpoint(settings: EvaluateConfig) -> None:
    """Ask the endpoint for its models.

    Raises:
        ValueError: nothing answers there, it refuses, or it does not serve the model.
    """
    from openai import OpenAIError

    try:
        served = [model.id for model in _client(settings, 0).models.list()]
    except OpenAIError as error:
        raise ValueError(
            f"--endpoint {settings.endpoint}: {_words(error)} Name the address of an OpenAI-compatible server, such as "
            "http://127.0.0.1:8000/v1, with OPENAI_API_KEY set where it wants a key."
        ) from None
    if settings.served not in served:
        raise ValueError(
            f"--served {settings.served} is not among the models of {settings.endpoint}: {served}. Name one of them."
        )


class ChatEngine:
    """Asks for one answer to each prompt, put as a user's message; it has no policies to load."""

    def __init__(self, setup: Setup):
        self.settings, self.template = setup.config.evaluate, setup.template
        self.longest = max(64, 2 * (setup.config.model.max_new_tokens or 0))
        self.client = _client(self.settings, AGAIN)

    def load(self, version: str, folder: str) -> None:
        """Nothing is loaded: the endpoint serves what it serves."""

    def answer(self, prompts: list[list[int]], mode: Mode, n: int, seed: int) -> list[list[tuple[list[int], float]]]:
        """One text for each prompt, at temperature 0; its log-probability is not known.

        Raises:
            ConnectionError: the endpoint failed more often than a request is tried again.
        """
        from openai import OpenAIError

        def ask(prompt: list[int]) -> list[tuple[list[int], float]]:
            text = self.template.tokenizer.decode(prompt, skip_special_tokens=True)
            message: Any = [{"role": "user", "content": text}]
            limits = {"temperature": 0.0, "max_tokens": self.longest, "seed": seed}
            made = self.client.chat.completions.create(model=self.settings.served, messages=message, **limits)
            return [(self.template.answer_ids((made.choices[0].message.content or "").strip()), math.nan)]

        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(ask, prompts))
        except OpenAIError as error:
            raise ConnectionError(
                f"--endpoint {self.settings.endpoint} failed, and {AGAIN} times again: {_words(error)} Finished phases "
                "are kept; the same command goes on with what is left."
            ) from None

    def sleep(self) -> None:
        """Nothing is held."""

    def wake(self) -> None:
        """Nothing is held."""
