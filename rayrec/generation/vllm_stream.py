"""Requests of several threads in one engine of vLLM, which batches them by itself."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Sequence
from typing import Any


class _Call:
    """The requests of one thread: what they ask, under which ids, and what came of each."""

    def __init__(self, ids: list[str], prompts: Sequence[list[int]], sampling: Sequence[Any], adapter: Any):
        self.ids, self.asked, self.adapter = ids, list(zip(prompts, sampling, strict=True)), adapter
        self.found: dict[str, Any] = {}
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or len(self.found) == len(self.ids)


class Stream:
    """Answers calls from any thread: one of those that wait makes the engine's next step, for all of them.

    ``LLM.generate`` is for one thread, and its batch runs dry while the longest answer of a call is made.
    """

    def __init__(self, engine: Any):
        self._engine, self._turn, self._stepping = engine, threading.Condition(), False
        self._new, self._running, self._numbers = list[_Call](), list[_Call](), itertools.count()

    def generate(self, prompts: Sequence[list[int]], sampling: Sequence[Any], adapter: Any = None) -> list[Any]:
        """Return vLLM's outputs of prompts of token ids, in their order.

        Raises:
            VLLMValidationError: vLLM refuses a request of this call.
            Exception: a step failed, in every call that waits, such as EngineDeadError.
        """
        from vllm.sampling_params import RequestOutputKind

        for one in sampling:
            one.output_kind = RequestOutputKind.FINAL_ONLY
        call = _Call([f"rayrec-{next(self._numbers)}" for _ in prompts], prompts, sampling, adapter)
        with self._turn:
            self._new.append(call)
        while True:
            with self._turn:
                self._turn.wait_for(lambda: call.done or not self._stepping)
                if call.done:
                    break
                self._stepping = True
            try:
                self._step()
            finally:
                with self._turn:
                    self._stepping = False
                    self._turn.notify_all()
        if call.error is not None:
            raise call.error
        return [call.found[one] for one in call.ids]

    def _step(self) -> None:
        """Hand new calls to the engine, and give what its next step has finished to the calls that it is of."""
        with self._turn:
            new, self._new = self._new, []
        for call in new:
            self._begin(call)
        self._running = [call for call in [*self._running, *new] if not call.done]
        if not self._running:
            return
        owners = {one: call for call in self._running for one in call.ids}
        try:
            outputs = self._engine.step()
        except Exception as error:  # the tokens of a step are lost: requests that wait for them would wait forever
            for call in self._running:
                call.error = error
            with contextlib.suppress(Exception):  # a dead engine takes no call
                self._engine.abort_request([*owners], internal=False)
            return
        for output in outputs:
            if output.finished:
                owners[output.request_id].found[output.request_id] = output

    def _begin(self, call: _Call) -> None:
        from vllm.inputs.engine import tokens_input

        begun = list[str]()
        try:
            for one, (prompt, sampling) in zip(call.ids, call.asked, strict=True):
                begun.append(self._engine.add_request(one, tokens_input(prompt), sampling, lora_request=call.adapter))
        except Exception as error:  # of this call; the others go on
            self._engine.abort_request(begun, internal=True)
            call.error = error
