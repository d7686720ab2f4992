"""An extension of vLLM's own workers: it loads policies in place and states a digest of the weights."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from rayrec.generation.engine import set_threads
from rayrec.models.weights import tensors


def samples(model: Any) -> Iterator[Any]:
    """Yield what a digest reads of the weights that one of vLLM's models computes with.

    On a CPU a layer computes with a packed copy, which its product with unit vectors reads exactly.
    """
    import torch

    from rayrec.models.proof import columns, sample

    seen = set[int]()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            words = getattr(module, "org_vocab_size", None)  # rows behind them are padding
            if name == "weight" and hasattr(module, "cpu_linear"):
                width = weight.shape[-1] if weight.numel() else _width(module)
                some = columns(width)
                unit = torch.zeros(len(some), width, dtype=weight.dtype)
                unit[range(len(some)), some] = 1
                yield module.cpu_linear(unit, weight, None).T[:words]
            else:
                yield sample(weight[:words])


def _width(layer: Any) -> int:
    """The inputs of a layer whose weight is packed away."""
    return int(getattr(layer, "input_size_per_partition", None) or layer.input_size)


def end_after(sentinels: Iterable[int], engine: int | None = None) -> None:
    """End this process, and that of an ``engine``, as soon as one of the processes behind ``sentinels`` has ended."""
    others = list(sentinels)

    def watch() -> None:
        multiprocessing.connection.wait(others)
        if engine is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="ends with others", daemon=True).start()


class Extension:
    """Methods that vLLM adds to its workers; the engine calls them by name, so that no code is pickled."""

    model_runner: Any
    reload_weights: Any

    def take_policy(self, folder: str) -> None:
        """Replace every weight by that of a folder."""
        # The worker's own method, which this class is mixed into: it sets vLLM's settings, that some layers ask for.
        self.reload_weights(weights_iterator=tensors(folder))
        # On a CPU every layer computes with a packed copy of its weight, and a reload renews only the copies of layers
        # that the files name. They do not name a tied head, which would go on with the old weights.
        for module in self.model_runner.get_model().modules():
            if hasattr(module, "cpu_linear") and module.weight.numel():
                module.quant_method.process_weights_after_loading(module)
                if not hasattr(module, "bias"):  # a reload forgets parameters that are None
                    module.register_parameter("bias", None)

    def digests(self, adapter: int, rank: int) -> dict[str, list[float]]:
        """The digest of the adapter of this number, with its scale, in the slot that is computed with; of 0 of the
        whole model."""
        from rayrec.models.proof import digest, sample

        if not adapter:
            return {"whole": digest(samples(self.model_runner.get_model()))}
        manager = self.model_runner.lora_manager._adapter_manager
        slot, seen = manager.lora_index_to_id.index(adapter), list[Any]()
        for layer in {id(one): one for one in manager.modules.values()}.values():
            if not isinstance(layer.lora_a_stacked, tuple):  # the embeddings and the head, which have no adapters
                continue
            seen += [a[slot, 0, :rank] for a in layer.lora_a_stacked]
            seen += [b[slot, 0, :, :rank] for b in layer.lora_b_stacked]
        return {"adapter": digest(map(sample, seen))}

    def end_with_actor(self, actor: int) -> None:
        """End this process once the process that started it, or that of the ``actor``, has ended.

        The actor has started this one, or an engine that has, which goes too. Workers that Ray has started end with it.
        """
        parent = multiprocessing.parent_process()
        if parent is None:
            return
        if parent.pid == actor or not hasattr(os, "pidfd_open"):
            return end_after([parent.sentinel])
        end_after([parent.sentinel, os.pidfd_open(actor)], parent.pid)

    def prepare_part(self, seed: int, threads: int) -> None:
        """Seed the sampler, and set the number of threads."""
        import torch

        torch.manual_seed(seed)
        set_threads(threads)
