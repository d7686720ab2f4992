"""The actor that holds one engine."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from functools import cached_property
from typing import Any

from rayrec.cluster.devices import check_gpu
from rayrec.cluster.memory import held, peak
from rayrec.generation.constrained import Constrained
from rayrec.generation.engine import Answer, EngineDied, Part, Setup
from rayrec.generation.gate import Gate


class Generator:
    """Holds one engine, and loads policy versions into it in place.

    Where Ray calls it from several threads, parts of one policy in modes that the engine answers together are at the
    engine at once, and all others wait for their turn.
    """

    def __init__(self, setup: Setup):
        self.setup, self.storage, self.template = setup, setup.storage, setup.template
        self.version, self.sleeps = "", False
        self._gate, self._loading = Gate(), threading.Lock()

    @cached_property
    def engine(self) -> Constrained:
        """The engine, made by the first call: an error there is one of a call, and not the actor's death."""
        if self.setup.gpu and not self.setup.engine.needs_endpoint:
            check_gpu()
        return Constrained(dataclasses.replace(self.setup, base=str(self.storage.download(self.setup.base))))

    def ready(self) -> dict:
        """Return facts about the engine, once it is up."""
        import ray

        name = type(self.engine.engine).__name__
        return {"pid": os.getpid(), "engine": name, "nodes": [ray.util.get_node_ip_address()], "memory": held()}

    def answer(self, part: Part) -> tuple[list[list[Answer]], dict]:
        """Return answers to the prompts of a part, best first (scored ones as given), and facts for the trace.

        Raises:
            EngineDied: the engine is useless from now on.
        """
        engine = self.engine
        together = part.mode in engine.engine.together
        with self._gate.enter((part.version, part.folder) if together else None):
            begun = time.time()
            try:
                proofs = self._prepare(part)
                found: list[Any] = engine.answer(self._here(part))
            except engine.died as error:
                raise EngineDied(f"{type(error).__name__}: {error}") from None
        answers = [[Answer(ids, self.template.text(ids), *rest) for ids, *rest in one] for one in found]
        facts = {"start": begun, "end": time.time(), "generator_pid": os.getpid()}
        facts |= {"memory": held(), "peak_memory": peak()}
        facts |= {"tokens": sum(len(answer.ids) for one in answers for answer in one)}
        return answers, facts | {"proofs": proofs}

    def _prepare(self, part: Part) -> list[dict]:
        """Wake the engine and load the part's policy, where that is to be done; returns what was stated of a load."""
        with self._loading:
            if self.sleeps:
                self.engine.wake()
                self.sleeps = False
            if self.version != part.version:
                self.engine.load(part.version, str(self.storage.download(part.folder)))
                self.version = part.version
            return self.engine.prepare(part)

    def _here(self, part: Part) -> Part:
        """The part with its files on this node."""
        if part.guide is None:
            return part
        guide = dataclasses.replace(part.guide, folder=str(self.storage.download(part.guide.folder)))
        return dataclasses.replace(part, guide=guide)

    def sleep(self) -> None:
        """Free the GPU's memory for training until the next part (``--placement shared``)."""
        self.engine.sleep()
        self.sleeps = True
