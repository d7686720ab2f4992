"""The flat trie against a dict of prefixes."""

import random
import time
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayrec.decoding import Trie

titles = st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=30, unique_by=tuple)


def children(trie: Trie, node: int) -> dict[int, int]:
    begin, end = trie.pointers[node], trie.pointers[node + 1]
    return dict(zip(trie.tokens[begin:end].tolist(), trie.next[begin:end].tolist(), strict=True))


@given(titles)
def test_equals_a_dict_of_prefixes(titles: list[list[int]]) -> None:
    answers = [[*title, 0] for title in titles]
    prefixes: dict[tuple[int, ...], set[int]] = {}
    for item, answer in enumerate(answers):
        for length in range(len(answer) + 1):
            prefixes.setdefault(tuple(answer[:length]), set()).add(item)
    trie, todo, seen = Trie.build(answers), [((), 0)], set()
    while todo:
        prefix, node = todo.pop()
        edges = children(trie, node)
        assert list(edges) == sorted(p[-1] for p in prefixes if len(p) == len(prefix) + 1 and p[:-1] == prefix)
        for token, to in edges.items():
            items = prefixes[*prefix, token]
            if to < 0:
                assert items == {~to}
                seen.add(~to)
            else:
                assert len(items) > 1
                todo.append(((*prefix, token), to))
    assert seen == set(range(len(answers))) and len(trie) == len(answers)
    assert [trie.answers[a:b].tolist() for a, b in zip(trie.offsets, trie.offsets[1:], strict=False)] == answers


@given(titles, st.integers(1, 5))
def test_bounds_are_the_largest_nodes_of_each_level(titles: list[list[int]], width: int) -> None:
    trie, level, found = Trie.build([[*title, 0] for title in titles]), [0], []
    while level:
        edges = [children(trie, node) for node in level]
        most = sorted(map(len, edges), reverse=True)[:width]
        found.append((len(most), sum(most)))
        level = [to for one in edges for to in one.values() if to >= 0]
    assert trie.bounds(width) == found


def test_arrays_by_hand() -> None:
    trie = Trie.build([[5, 6, 0], [5, 0], [4, 0]])
    assert trie.pointers.tolist() == [0, 2, 4]  # the root and the node after 5
    assert trie.tokens.tolist() == [4, 5, 0, 6]
    assert trie.next.tolist() == [~2, 1, ~1, ~0]
    assert trie.longest == 3


@pytest.mark.parametrize("answers", [[[5, 0], [5, 0]], [[5, 6], [5, 6, 7]], [[5, 6, 7], [4], [5, 6]]])
def test_equal_titles_and_titles_without_eos_are_refused(answers: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="equal or begin"):
        Trie.build(answers)


@pytest.mark.parametrize("answers", [[], [[]], [[5, 0], []]])
def test_empty_titles_are_refused(answers: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one title"):
        Trie.build(answers)


def test_a_large_catalogue_is_built_in_time_and_space() -> None:
    rng = random.Random(0)
    answers = [[*(rng.randrange(3, 300) for _ in range(9)), i % 300 + 3, i // 300 + 3, 2] for i in range(100_000)]
    tracemalloc.start()
    begin = time.process_time()
    Trie.build(answers)
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 3
    assert peak < 200e6


def test_reach_sums_over_the_items_behind_each_edge() -> None:
    rng = random.Random(3)
    titles = {tuple(rng.choice((3, 4, 5)) for _ in range(rng.randint(1, 6))): None for _ in range(60)}
    answers = [[*title, 2] for title in titles]
    trie = Trie.build(answers)
    value_BI = torch.rand(2, len(answers), dtype=torch.float64)
    reach_BE = trie.reach(value_BI)
    seen = 0
    stack = [(0, ())]
    while stack:
        node, prefix = stack.pop()
        for edge in range(int(trie.pointers[node]), int(trie.pointers[node + 1])):
            path = (*prefix, int(trie.tokens[edge]))
            behind = [i for i, answer in enumerate(answers) if tuple(answer[: len(path)]) == path]
            assert reach_BE[:, edge].tolist() == pytest.approx(value_BI[:, behind].sum(1).tolist())
            seen += 1
            if (to := int(trie.next[edge])) >= 0:
                stack.append((to, path))
    assert seen == len(trie.next)
