"""Supervised losses over the catalogue's tokens in the SFT phases: what a worker reads of the catalogue, and the steps.

Shapes: B examples of a micro-batch, N answer tokens, E legal tokens of these, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rayrec.data.mapped import slices
from rayrec.objectives import Choices, SftLoss
from rayrec.objectives.settings import SupervisedConfig, make_sft_loss
from rayrec.training.batches import padding

if TYPE_CHECKING:
    from torch import Tensor

    from rayrec.data import Dataset
    from rayrec.data.catalogue import Catalogue
    from rayrec.decoding import Legal, Trie
    from rayrec.models.logprobs import Packed
    from rayrec.prompts import Template

#: A larger share of targets that are no titles wants another item file.
_MOST_OUTSIDE = 0.1


@dataclass(frozen=True)
class CatalogueLoss:
    """A loss that reads the catalogue, and what it reads: the same for every training worker."""

    loss: SftLoss
    trie: Trie
    share_E: Tensor | None
    """Share of each edge of the trie in the popularity below its node, 0 where there is none."""


def make(config: SupervisedConfig, catalogue: Catalogue, template: Template) -> CatalogueLoss | None:
    """Return the loss of the SFT phases with the catalogue's tokens, or None where it reads none.

    Raises:
        ValueError: the loss is not defined for this catalogue.
    """
    loss = make_sft_loss(config)
    if not loss.reads_catalogue:
        return None
    import torch

    from rayrec.decoding import Trie

    trie, share_E = Trie.build([template.answer_ids(title) for title in catalogue.titles]), None
    try:
        loss.check_catalogue(int(trie.pointers[1]))
    except ValueError as error:
        raise ValueError(f"--sft-loss {config.sft_loss}: {error}") from error
    if loss.reads_shares:
        reach_E = trie.reach(torch.from_numpy(catalogue.popularity.astype(np.float64))[None])[0]
        owner_E = torch.repeat_interleave(trie.pointers.diff())
        node_N = reach_E.new_zeros(len(trie.pointers) - 1).index_add(0, owner_E, reach_E)
        share_E = (reach_E / node_N.clamp(min=1)[owner_E]).float()
    return CatalogueLoss(loss, trie, share_E)


def outside(config: SupervisedConfig, catalogue: Catalogue, rows: pa.Table) -> list[str]:
    """Return the targets of rows to tune on that are no title: a loss that reads the catalogue leaves them out.

    Raises:
        ValueError: they are more than a tenth of the rows.
    """
    if not make_sft_loss(config).reads_catalogue:
        return []
    found = [title for some in slices(rows) for title in some["target"].to_pylist() if title not in catalogue.index]
    if len(found) > _MOST_OUTSIDE * len(rows):
        raise ValueError(
            f"--sft-loss {config.sft_loss} chooses among titles of the catalogue, and {len(found):,} of {len(rows):,} "
            f"rows to tune on have another target, such as {found[0]!r}. Add these titles to the item file, or take "
            "--sft-loss sft."
        )
    return found


def described(config: SupervisedConfig, data: Dataset) -> str:
    """Return all that decides the loss, for keys of what was trained with it; empty for the plain loss."""
    loss = make_sft_loss(config)
    if not loss.reads_catalogue:
        return ""
    catalogue = data.catalogue
    titles, popularity = "\n".join(catalogue.titles), np.asarray(catalogue.popularity, np.int64).tobytes()
    return f"{loss} {hashlib.sha256(titles.encode() + popularity).hexdigest()}"


class CatalogueSteps:
    """The steps of one SFT phase by a loss that reads the catalogue.

    Rows get ``item``, the number of their target; padding gets -1, as a row whose target is no title, which becomes
    padding. Where the loss counts only tokens with a choice, the answer ends with the last of these, for nothing behind
    it is trained on.
    """

    def __init__(self, catalogue: CatalogueLoss, device: Any, done: list[dict]):
        trie, self.loss = catalogue.trie, catalogue.loss
        self.trie, self.device = trie, device
        self.share_E = None if catalogue.share_E is None else catalogue.share_E.to(device)
        self.temperature = done[-1]["temperature"] if done else self.loss.start
        answers, offsets, nodes = trie.answers.tolist(), trie.offsets.tolist(), trie.nodes.numpy()
        begins, ends = offsets[:-1], offsets[1:]
        self.items = {tuple(answers[a:b]): item for item, (a, b) in enumerate(zip(begins, ends, strict=True))}
        chosen = (nodes >= 0) & (trie.pointers.diff().numpy()[nodes.clip(0)] > 1)
        place = np.arange(len(nodes)) - np.repeat(begins, np.diff(offsets))
        self.counts = np.add.reduceat(chosen, begins).tolist()
        self.lengths = (np.maximum.reduceat(np.where(chosen, place, 0), begins) + 1).tolist()

    def numbered(self, steps: Iterable[list[dict]]) -> Iterator[list[dict]]:
        """Yield the rows of each step with their ``item``, and their answers as far as they are trained on."""
        for rows in steps:
            yield [self._numbered(row) for row in rows]

    def _numbered(self, row: dict) -> dict:
        item = self.items.get(tuple(row["answers"][0])) if row["weight"] else None
        if item is None:
            return padding(row) | {"item": -1, "answers": [row["answers"][0][:1]]}
        end = None if self.loss.counts_all else self.lengths[item]
        return row | {"item": item, "answers": [row["answers"][0][:end]]}

    def count(self, row: dict) -> float:
        """Return the tokens of a row that the loss counts."""
        if not row["weight"]:
            return 0
        return len(row["answers"][0]) if self.loss.counts_all else self.counts[row["item"]]

    def losses(self, engine: Any, packed: Packed, rows: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each row of a micro-batch, summed over its tokens, and what :meth:`after` reads."""
        import torch

        legal = self.trie.legal(torch.tensor([row["item"] for row in rows])[packed.answer_N], packed.offset_N)
        found = engine(packed.to(self.device), legal.to(self.device), self._values)
        loss_B, *logged = (value_BA[:, 0] for value_BA in found)
        return loss_B, dict(zip(("gap", "variance", "first"), logged, strict=False))

    def _values(self, logits_NV: Tensor, target_N: Tensor, legal: Legal) -> tuple[Tensor, ...]:
        """Return the loss of each token, and of a title's first token z's gap, z's variance, and 1."""
        logit_N = logits_NV.gather(1, target_N[:, None])[:, 0]
        logit_E = logits_NV[legal.owner_E, legal.token_E]
        words_N = logits_NV.logsumexp(-1) if self.loss.reads_words else logit_N.detach() * 0
        share_E = None if self.share_E is None else self.share_E[legal.edge_E]
        loss_N = self.loss(Choices(logit_N, logit_E, legal, words_N, share_E), self.temperature)
        if not self.loss.adapts:
            return (loss_N,)
        z_E, first_N, count_N = logit_E.detach(), legal.node_N == 0, legal.count_N.clamp(min=1)
        mean_N = legal.sum(z_E) / count_N
        variance_N = legal.sum((z_E - mean_N[legal.owner_E]).square()) / (count_N - 1).clamp(min=1)
        logged = (logit_N.detach() - mean_N, variance_N, mean_N * 0 + 1)
        return loss_N, *(value_N.where(first_N, 0.0) for value_N in logged)

    def after(self, record: dict) -> None:
        """Take the record of a step, in which sums of the global batch stand, and set the next step's temperature."""
        if self.loss.adapts:
            gap, variance, first = (record.pop(name) for name in ("gap", "variance", "first"))
            branches = int(self.trie.pointers[1])
            if first:
                self.temperature = self.loss.following(self.temperature, gap / first, variance / first, branches)
        record["temperature"] = self.temperature
