"""Generation: a lane of phases, a pool of actors, and the engine that each actor holds.

An engine is added by
1. a class that derives from :class:`~rayrec.generation.engine.Engine`: ``modes``, ``load`` and ``answer``,
2. a row in ENGINES, whose order is that in which ``--engine auto`` asks,
3. a test. ``--help``, the checks, the plan and the pool read the class; nothing else names it.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING

from rayrec.generation.chat import ChatEngine
from rayrec.generation.engine import Engine
from rayrec.generation.torch import TorchEngine
from rayrec.generation.vllm import VllmEngine

if TYPE_CHECKING:
    from rayrec.config import Config

__all__ = ["ENGINES", "resolve_engine"]

ENGINES: dict[str, type[Engine]] = {"vllm": VllmEngine, "torch": TorchEngine, "chat": ChatEngine}


def resolve_engine(config: Config, gpu: bool) -> Config:
    """Return the settings with ``--engine auto`` resolved: the first of ENGINES that serves them and is installed.

    ``gpu``: whether generators run on GPUs.

    Raises:
        ValueError: there is no such engine, it is not installed, or it cannot serve the settings.
    """
    name = config.evaluate.engine
    if name not in (known := ["auto", *ENGINES]):
        raise ValueError(f"--engine {name}: no such engine. Take one of {', '.join(known)}.")
    name = _first_installed(config) if name == "auto" else name
    if missing := ENGINES[name].missing():
        raise ValueError(f"--engine {name}: {missing}")
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, engine=name))
    _check(config, gpu)
    return config


def _first_installed(config: Config) -> str:
    """The engine that `auto` stands for, with a warning for every engine before it that is not installed."""
    serving = [
        name
        for name, engine in ENGINES.items()
        if not engine.needs_endpoint and (engine.reads_item_vectors or not config.model.item_vectors)
    ]
    for name in serving:
        if not (missing := ENGINES[name].missing()):
            return name
        warnings.warn(f"--engine auto passes over {name}: {missing}", stacklevel=2)
    return serving[-1]


def _check(config: Config, gpu: bool) -> None:
    """Refuse settings that the engine does not declare to serve, then those that it refuses itself."""
    name, evaluate, cards = config.evaluate.engine, config.evaluate, config.placement.tensor_parallel
    engine = ENGINES[name]
    if cards > 1 and not (engine.spans_gpus and gpu):
        raise ValueError(
            f"--tensor-parallel {cards} spreads an engine's model over GPUs, and this plan has the engine {name} on "
            f"{'GPUs' if gpu else 'CPUs'}. Leave it out, or take --device gpu and --engine {_names('spans_gpus')}."
        )
    if config.model.item_vectors and not engine.reads_item_vectors:
        raise ValueError(
            f"--item-vectors has tokens that only --engine {_names('reads_item_vectors')} reads. Leave --engine out."
        )
    if len({engine.needs_endpoint, bool(evaluate.endpoint), bool(evaluate.served)}) > 1:
        raise ValueError(
            f"--engine {_names('needs_endpoint')}, --endpoint URL and --served NAME go together. Name all three, or "
            "none of them."
        )
    engine.check(config, gpu)


def _names(declared: str) -> str:
    """The engines that declare something."""
    return " or ".join(name for name, engine in ENGINES.items() if getattr(engine, declared))
