"""The stable top-k against a full stable sort."""

import numpy as np
import pytest
import torch

from rayrec.topk import stable_topk


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_it_is_the_head_of_a_stable_sort(dtype: torch.dtype, largest: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for columns in (1, 7, 300):
        score = torch.randint(-3, 3, (5, columns), generator=generator).to(dtype)  # many ties
        if dtype.is_floating_point:
            score[1] = -torch.inf
            score[2, ::2] = torch.inf
            score[3, ::3] = -0.0
        wanted = score.sort(dim=-1, descending=largest, stable=True).indices
        for k in (1, 4, columns, columns + 3):
            assert torch.equal(stable_topk(score, k, largest), wanted[:, :k])
            assert torch.equal(stable_topk(score[0], k, largest), wanted[0, :k])


def test_nan_comes_last_and_nothing_is_asked_of_nothing() -> None:
    score = torch.tensor([np.nan, 1.0, np.nan, 2.0])
    assert stable_topk(score, 3).tolist() == [3, 1, 0]
    assert stable_topk(score, 3, largest=False).tolist() == [1, 3, 0]
    assert stable_topk(score, 0).shape == (0,) and stable_topk(torch.zeros(0, 3), 2).shape == (0, 2)
    assert stable_topk(torch.zeros(2, 0), 2).shape == (2, 0)
