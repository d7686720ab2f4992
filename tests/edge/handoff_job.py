"""``jobs/sprec.py`` with an engine that keeps one matrix of the policy that it held before: a broken hand-off."""

from __future__ import annotations

import torch

from rayrec.generation import ENGINES
from rayrec.generation.torch import TorchEngine


class Stale(TorchEngine):
    """The torch engine, but for one matrix from its second load on."""

    loads = 0

    def load(self, version: str, folder: str) -> None:
        matrix = next(p for p in self.model.parameters() if p.ndim == 2)
        former, self.loads = matrix.detach().clone(), self.loads + 1
        super().load(version, folder)
        if self.loads > 1:
            with torch.no_grad():
                matrix.copy_(former)


ENGINES["stale"] = Stale

if __name__ == "__main__":
    from sprec import main

    main()
