"""Grounding: by-hand neighbours, ties, BIGRec's weight, the three embedders against what they stand for."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model2vec import StaticModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rayrec.data.catalogue import Catalogue
from rayrec.grounding import EMBEDDERS, TitleEmbedder, fold, forget, ground, neighbours
from rayrec.grounding.kept import KeptEmbedder
from rayrec.grounding.neighbours import nearest
from rayrec.grounding.sentence import SentenceEmbedder
from rayrec.runs.cache import make_once

WORDS = ["[PAD]", "[UNK]", "blue", "red", "moon", "sun"]


def _catalogue(titles: list[str], popularity: list[int] | None = None) -> Catalogue:
    popular = np.array(popularity if popularity is not None else [0] * len(titles))
    return Catalogue.from_items(titles, [[] for _ in titles]).with_training(popular, [])


def _tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")


class Points:
    """Texts are points written as numbers; counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts) -> torch.Tensor:
        self.asked += texts
        return torch.tensor([[float(x) for x in text.split()] for text in texts])

    def exact(self, text: str) -> None:
        return None


def test_nearest_points_with_ties_by_item():
    catalogue = _catalogue(["0 3", "4 0", "0 -3", "0 0"])
    # From 0 0: distances 3, 4, 3, 0. From 2 0: √13, 2, √13, 2.
    found = ground(["0 0", "2 0", " \n"], catalogue, Points(), k=3)
    assert found == [["0 0", "0 3", "0 -3"], ["4 0", "0 0", "0 3"], []]


def test_each_text_is_embedded_once_and_the_catalogue_once():
    points, catalogue = Points(), _catalogue(["0 1", "1 0"])
    first = ground(["5 5", "5 5", "6 6"], catalogue, points, k=1)
    assert points.asked == ["5 5", "6 6", "0 1", "1 0"]
    assert ground(["5 5"], catalogue, points, k=1) == first[:1]
    assert points.asked[4:] == ["5 5"]


def test_lists_are_no_longer_than_the_catalogue_and_no_shorter_than_one():
    assert ground(["0 0"], _catalogue(["1 1"]), Points(), k=5) == [["1 1"]]
    with pytest.raises(ValueError, match="k = 0"):
        ground(["0 0"], _catalogue(["1 1"]), Points(), k=0)


def test_popularity_weight_by_hand():
    # Distances from 0: 1, 2, 3; scaled 0, 1/2, 1; w = 0, 0, 1. Factors (1 + w)^-2 = 1, 1, 1/4: scores 0, 1/2, 1/4.
    catalogue = _catalogue(["1", "2", "3"], [5, 5, 9])
    assert ground(["0"], catalogue, Points(), k=3, gamma=0.0) == [["1", "2", "3"]]
    assert ground(["0"], catalogue, Points(), k=3, gamma=2.0) == [["1", "3", "2"]]
    assert ground(["0"], _catalogue(["1", "2"], [4, 4]), Points(), k=2, gamma=2.0) == [["1", "2"]]


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), min_size=1, max_size=5),
    st.integers(1, 6),
)
def test_nearest_equals_a_full_sort(items, queries, k):
    # Squared distances of integers are exact, so that ties are ties in both computations.
    expected = [
        sorted(range(len(items)), key=lambda i: ((items[i][0] - x) ** 2 + (items[i][1] - y) ** 2, i))[:k]
        for x, y in queries
    ]
    vectors = torch.tensor(queries).float(), torch.tensor(items).float()
    assert nearest(*vectors, k, [None] * len(queries)) == expected


def test_result_does_not_depend_on_how_queries_are_cut(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    group = torch.randint(50, (300,), generator=generator)
    items = torch.randn(50, 8, generator=generator)[group]
    queries = torch.randn(40, 8, generator=generator)
    whole = nearest(queries, items, 10, [None] * 40)
    monkeypatch.setattr(neighbours, "_CELLS", 900)  # three queries at once
    monkeypatch.setattr(neighbours, "_BLOCK", 7)
    assert nearest(queries, items, 10, [None] * 40) == whole
    # Some six items share each vector: neighbours of one vector stand together, in the order of the items.
    assert all(a < b for row in whole for a, b in pairwise(row) if group[a] == group[b])
    assert all(len({int(group[i]) for i in row}) < 10 for row in whole)


@pytest.mark.parametrize("cells", [2**25, 2**12])
@pytest.mark.parametrize("long", [False, True])
def test_nearest_equals_float64_where_float32_cannot_tell(cells, long, monkeypatch):
    # One of each 64 is in a cluster narrower than float32 sees from afar; copies; one a million times as long.
    monkeypatch.setattr(neighbours, "_CELLS", cells)
    monkeypatch.setattr(neighbours, "_BLOCK", 320)
    generator = torch.Generator().manual_seed(0)
    close = torch.randn(48, generator=generator) + torch.randn(40, 48, generator=generator) * 1e-6
    items = torch.randn(2560, 48, generator=generator)
    items[::64] = close
    queries = torch.cat([torch.randn(30, 48, generator=generator), close[:20] + 1e-6, items[1:20]])
    items = torch.cat([items, items[:200], *([1e6 * torch.ones(1, 48)] if long else [])])
    distance = (queries.double()[:, None] - items.double()).square().sum(2)
    expected = torch.sort(distance, dim=1, stable=True).indices[:, :15].tolist()
    assert nearest(queries, items, 15, [None] * len(queries)) == expected
    assert nearest(queries, items, 15, [7] * len(queries)) == [
        [7, *(i for i in row if i != 7)][:15] for row in expected
    ]


def test_title_puts_the_exact_match_first():
    titles = ["heat", "Heat", "Heat (1995)", "Café  Society"]
    catalogue, embedder = _catalogue(titles), TitleEmbedder(titles)
    lists = ground(["Heat", "heat", "Cafe\u0301 Society\n", "Heat (1996)"], catalogue, embedder, k=1)
    assert [row[0] for row in lists] == ["Heat", "heat", "Café  Society", "Heat (1995)"]
    assert ground(["Heat"], catalogue, embedder, k=2, gamma=1.0) == [["Heat", "heat"]]


def test_title_grounds_misspelt_titles_and_breaks_ties_by_item():
    titles = ["Star Wars: Episode IV", "Star Trek", "Alien", "Aliens", "Brazil"]
    catalogue, embedder = _catalogue(titles), TitleEmbedder(titles)
    found = ground(["Star Warz Episode 4", "alienz", "Brasil", "東京"], catalogue, embedder, k=1)
    assert [row[0] for row in found] == ["Star Wars: Episode IV", "Alien", "Brazil", "Star Wars: Episode IV"]
    assert ground(["Brazil"], catalogue, embedder, k=4)[0][0] == "Brazil"


def test_fold_keeps_case_and_punctuation():
    assert fold(' "Cafe\u0301",\t Part\n2: ') == '"Café", Part 2:'


def test_title_vectors_are_the_weights_of_their_grams():
    titles = ["ab", "AB  a", "ba"]
    vectors = TitleEmbedder(titles).embed([*titles, "xyz", ""]).toarray()
    # In order: ' a', ' a ', ' ab', ' ab ', ' b', ' ba', ' ba ', 'a ', 'ab', 'ab ', 'b ', 'ba', 'ba '.
    having = np.array([2, 1, 2, 2, 1, 1, 1, 2, 2, 2, 2, 1, 1])
    counts = np.array([
        [1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0],
        [2, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1],
    ])  # fmt: skip
    weighed = counts * (1 + np.log((1 + 3) / (1 + having)))
    assert np.allclose(vectors[:3], weighed / np.linalg.norm(weighed, axis=1, keepdims=True), atol=1e-15)
    assert not vectors[3:].any()


def test_title_distance_is_cosine_order():
    titles = ["Toy Story", "Toy Story 2", "History of Toys", "Alien", "Heat"]
    embedder = TitleEmbedder(titles)
    vectors, query = embedder.embed(titles).toarray(), embedder.embed(["toy stories"]).toarray()[0]
    cosine = vectors @ query
    assert ground(["toy stories"], _catalogue(titles), embedder, k=3)[0] == [titles[i] for i in np.argsort(-cosine)[:3]]


@pytest.fixture(scope="module")
def static_folder(tmp_path_factory):
    """Four words over two centroids, with token weights: the quantised layout of model2vec."""
    folder = tmp_path_factory.mktemp("static")
    raw = _tokenizer().backend_tokenizer
    model = StaticModel(
        vectors=np.array([[3, 4], [0, 2]], dtype=np.float32),
        tokenizer=raw,
        weights=np.array([0, 0, 1, 1, 1, 0.5]),
        token_mapping=np.array([0, 0, 0, 1, 1, 0]),
        normalize=True,
    )
    model.save_pretrained(folder)
    return folder


def test_static_sentences_by_hand(static_folder):
    vectors = SentenceEmbedder(static_folder).embed(["blue", "red", "red sun"])
    # blue: (3, 4)/5. red: (0, 2)/2. red sun: mean of (0, 2) and (1.5, 2) = (0.75, 2), length √4.5625.
    expected = torch.tensor([[0.6, 0.8], [0, 1], [0.75 / 4.5625**0.5, 2 / 4.5625**0.5]])
    torch.testing.assert_close(vectors, expected)
    assert SentenceEmbedder(static_folder) == SentenceEmbedder(str(static_folder))
    catalogue = _catalogue(["moon", "blue", "red"])
    assert ground(["red"], catalogue, SentenceEmbedder(static_folder), k=3) == [["moon", "red", "blue"]]


@pytest.fixture(scope="module")
def transformer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(WORDS), **size)).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    kinds = {"": "sentence_transformers.models.Transformer", "1_Pooling": "sentence_transformers.models.Pooling"}
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in kinds.items()]))
    (folder / "1_Pooling").mkdir()
    return folder


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_transformer_sentences_are_pooled_over_their_own_tokens(transformer_folder, pooling):
    name = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}[pooling]
    (transformer_folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 8, name: True})
    )
    found = SentenceEmbedder(transformer_folder).embed(["blue", "red moon sun"])
    model = BertModel.from_pretrained(transformer_folder).eval()
    for vector, ids in zip(found, [[2], [3, 4, 5]], strict=True):  # alone, without padding
        with torch.no_grad():
            states = model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(vector, states.mean(dim=0) if pooling == "mean" else states[0], atol=1e-6, rtol=1e-5)


def test_sentence_folders_of_other_kinds_are_refused(transformer_folder, tmp_path):
    with pytest.raises(ValueError, match="nothing is downloaded"):
        SentenceEmbedder(tmp_path / "absent")
    config = transformer_folder / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pooling_mode_max_tokens"):
        SentenceEmbedder(transformer_folder)
    (tmp_path / "modules.json").write_text(
        json.dumps([{"path": "", "type": "a.Transformer"}, {"path": "2", "type": "a.Dense"}])
    )
    with pytest.raises(ValueError, match="Dense"):
        SentenceEmbedder(tmp_path)


def test_language_model_vectors_are_those_of_the_bare_title_alone(tmp_path):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **size, num_key_value_heads=2)).eval()
    model.save_pretrained(tmp_path)
    _tokenizer().save_pretrained(tmp_path)
    found = EMBEDDERS["lm"](tmp_path).embed(["blue", "red moon sun", "sun moon"])
    for vector, ids in zip(found, [[2], [3, 4, 5], [5, 4]], strict=True):  # alone, so without padding
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(vector, states[0, -1], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"no config.json in .*absent"):
        EMBEDDERS["lm"](tmp_path / "absent")


def test_vectors_of_a_catalogue_are_made_once(tmp_path):
    def kept(embedder, key):
        return KeptEmbedder(embedder, {"embedder": key}, partial(make_once, tmp_path))

    catalogue = _catalogue(["0 1", "1 0"])
    first = Points()
    wanted = ground(["5 6"], catalogue, kept(first, "points 1"), k=2)
    assert first.asked == ["5 6", "0 1", "1 0"] and len(list(tmp_path.iterdir())) == 1
    forget()
    again = Points()
    assert ground(["5 6"], catalogue, kept(again, "points 1"), k=2) == wanted
    assert again.asked == ["5 6"]
    # Another embedder or other titles are other entries, and a damaged one is made again.
    ground(["5 6"], catalogue, kept(Points(), "points 2"), k=2)
    ground(["5 6"], _catalogue(["0 1"]), kept(Points(), "points 1"), k=1)
    assert len(list(tmp_path.iterdir())) == 3
    for file in tmp_path.glob("*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:20])
    forget()
    damaged = Points()
    assert ground(["5 6"], catalogue, kept(damaged, "points 1"), k=2) == wanted
    assert damaged.asked == ["5 6", "0 1", "1 0"]
