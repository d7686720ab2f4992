"""The actor that holds one engine."""

from __future__ import annotations

import dataclasses
import os
import time
from functools import cached_property

from rayrec.cluster.devices import check_gpu
from rayrec.cluster.memory import held, peak
from rayrec.generation.constrained import Constrained
from rayrec.generation.engine import Answer, EngineDied, Part, Setup


class Generator:
    """Holds one engine, and loads policy versions into it in place."""

    def __init__(self, setup: Setup):
        self.setup, self.storage, self.template = setup, setup.storage, setup.template
        self.version, self.sleeps = "", False

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
        engine, begun = self.engine, time.time()
        try:
            found = self._answer(part)
        except engine.died as error:
            raise EngineDied(f"{type(error).__name__}: {error}") from None
        answers = [[Answer(ids, self.template.text(ids), *rest) for ids, *rest in one] for one in found]
        facts = {"start": begun, "end": time.time(), "generator_pid": os.getpid()}
        facts |= {"memory": held(), "peak_memory": peak()}
        facts |= {"tokens": sum(len(answer.ids) for one in answers for answer in one)}
        return answers, facts | {"proofs": engine.take_proofs()}

    def _answer(self, part: Part) -> list:
        if self.sleeps:
            self.engine.wake()
            self.sleeps = False
        if self.version != part.version:
            self.engine.load(part.version, str(self.storage.download(part.folder)))
            self.version = part.version
        if part.guide is not None:
            guide = dataclasses.replace(part.guide, folder=str(self.storage.download(part.guide.folder)))
            part = dataclasses.replace(part, guide=guide)
        return self.engine.answer(part)

    def sleep(self) -> None:
        """Free the GPU's memory for training until the next part (``--placement shared``)."""
        self.engine.sleep()
        self.sleeps = True
