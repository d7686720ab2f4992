"""Titles survive as they are, special tokens stay in the frame, and every template says the same thing everywhere."""

import pickle

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rayrec.prompts import BY_LIKING, CHOICES, INSTRUCTION, QUESTION, Items, make_template, resolve_template

CHAT = (
    "{{ bos_token }}<|start|>system\nToday is {{ strftime_now('%Y') }}, {{ date_string }}.<|eot_id|>"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def tokenizer(bos: str | None = "<|bos|>", chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """One token per byte, and the special tokens that the templates use."""
    special = ["<|eot_id|>", "<|bos|>", "<|start|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(special + alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=bos, eos_token="<|eot_id|>", additional_special_tokens=["<|start|>", "<|bos|>"]
    )
    made.chat_template = chat
    return made


EOT, BOS, START = 0, 1, 2
TOKENIZER = tokenizer()
NASTY = [
    "He said \"no\", then: 'yes'\nand left",
    "<|eot_id|>",
    "Ends with <|bos|><|start|>",
    "  two spaces , kept .  ",
    "Amélie — 千と千尋の神隠し",
    "don 't stop",
    "\r\n\t",
]


@pytest.mark.parametrize("name", ["compact", "instruct", "chat"])
@pytest.mark.parametrize("title", NASTY)
def test_round_trip(name: str, title: str) -> None:
    template = make_template(name, TOKENIZER)
    answer = template.answer_ids(title)
    assert answer[-1] == template.eos_id == EOT and EOT not in answer[:-1]
    assert not {BOS, START} & set(answer)
    assert template.text(answer) == title == template.text([*answer, 77, 78])
    assert template.lossy([title]) == []


@given(st.text())
def test_every_text_survives(title: str) -> None:
    template = make_template("compact", TOKENIZER)
    assert template.text(template.answer_ids(title)) == title


@pytest.mark.parametrize("name", ["compact", "instruct", "chat"])
@pytest.mark.parametrize("bos", ["<|bos|>", None])
def test_bos_stands_once_where_there_is_one(name: str, bos: str | None) -> None:
    ids = make_template(name, tokenizer(bos, CHAT if bos else CHAT.replace("{{ bos_token }}", ""))).prompt_ids(NASTY)
    assert ids.count(BOS) == (bos is not None)
    assert (ids[0] == BOS) == (bos is not None)


def test_chat_is_the_rendered_conversation() -> None:
    ids = make_template("chat", TOKENIZER).prompt_ids(["Heat", "<|eot_id|>"], [4.5, None])
    user = INSTRUCTION + "Heat | Rating: 4.5\n<|eot_id|>\n" + QUESTION
    assert TOKENIZER.decode(ids) == (
        "<|bos|><|start|>system\nToday is 2024, 26 Jul 2024.<|eot_id|>"
        f"<|start|>user\n{user}<|eot_id|><|start|>assistant\n"
    )
    # Two turns end; the title that spells the end of a turn is spelled out.
    assert ids.count(EOT) == 2 and ids.count(START) == 3


def test_chat_bos_is_added_once_to_a_frame_without_it() -> None:
    ids = make_template("chat", tokenizer(chat=CHAT.replace("{{ bos_token }}", ""))).prompt_ids(["Heat"])
    assert ids == make_template("chat", TOKENIZER).prompt_ids(["Heat"])


def test_instruct_reads_as_english() -> None:
    ids = make_template("instruct", TOKENIZER).prompt_ids(["Heat", "Ran"])
    assert TOKENIZER.decode(ids) == f"<|bos|>{INSTRUCTION}Heat\nRan\n{QUESTION}\n"


def test_compact_history_is_a_pretraining_row() -> None:
    """Prompt and answer of the last title are, together, the sequence of all titles."""
    template = make_template("compact", TOKENIZER)
    prompt, answer = template.sequence_ids(["Heat", "Ran", "M"])
    assert prompt == [BOS] and answer.count(EOT) == 3
    assert prompt + answer == template.prompt_ids(["Heat", "Ran"]) + template.answer_ids("M")


def test_a_template_travels() -> None:
    template = make_template("chat", TOKENIZER)
    here = template.prompt_ids(NASTY)
    there = pickle.loads(pickle.dumps(template))
    assert there._cache == {} and there.prompt_ids(NASTY) == here


def test_names() -> None:
    assert resolve_template("auto", "tiny", TOKENIZER) == "compact"
    assert resolve_template("auto", "llama", TOKENIZER) == "chat"
    assert resolve_template("auto", "llama", tokenizer(chat=None)) == "instruct"
    assert resolve_template("instruct", "tiny", TOKENIZER) == "instruct"
    with pytest.raises(ValueError, match="Add --template instruct"):
        make_template("chat", tokenizer(chat=None))
    with pytest.raises(ValueError, match="2 times"):
        make_template("chat", tokenizer(chat=CHAT.replace("{{ m.content }}", "{{ m.content * 2 }}")))
    with pytest.raises(ValueError, match="compact, instruct, chat"):
        make_template("poem", TOKENIZER)


def test_candidates_stand_after_the_history_in_words_that_seed_and_id_choose() -> None:
    template = make_template("chat", TOKENIZER, candidates=True, rated=True)
    assert len(template.frames) == len(CHOICES) > 1
    rows = [
        {"example_id": f"e{i}", "history": ["Heat"], "history_ratings": [4.5], "candidates": ["Ran", "M"]}
        for i in range(40)
    ]
    asked = template.prompts(pa.Table.from_pylist(rows))
    texts = [TOKENIZER.decode(ids).split("user\n")[1].split("<|eot_id|>")[0] for ids in asked]
    wanted = [f"{before}Heat | Rating: 4.5\n{middle}Ran\nM\n{after}" for before, middle, after in CHOICES]
    assert set(texts) == set(wanted)  # all wordings occur
    assert asked == template.prompts(pa.Table.from_pylist(rows)) and asked[::-1] == template.prompts(
        pa.Table.from_pylist(rows[::-1])
    )
    template = make_template("chat", TOKENIZER, candidates=True, rated=True, seed=1)
    assert asked != template.prompts(pa.Table.from_pylist(rows))


FORMS = [(form, settings) for form in ("chat", "instruct", "compact") for settings in (
    {}, {"rated": True}, {"candidates": True}, {"candidates": True, "ask": "title_by_liking"}, {"ask": "liking"},
    {"items": Items(["A", "Heat"], 500)}, {"candidates": True, "items": Items(["A", "Heat"], 500)},
)]  # fmt: skip


@pytest.mark.parametrize(("form", "settings"), FORMS)
def test_lengths_are_those_of_the_prompts(form: str, settings: dict) -> None:
    template = make_template(form, TOKENIZER, **settings)
    histories = [["Heat", "A long title (1995)", "A"], ["A"], [], ["Ran", "Heat"]] * 3
    table = {"example_id": [f"e{i}" for i in range(12)], "history": pa.array(histories, pa.list_(pa.string()))}
    table["history_ratings"] = [[3.5] * len(one) for one in histories]
    every = [["Ran", "M", "A"], ["Heat"], ["M"], ["A", "A"]] * 3
    for candidates in (every, [*every[:-1], None], [None] * 12):
        rows = pa.table(table | {"candidates": pa.array(candidates, pa.list_(pa.string()))})
        for some in (rows, rows.slice(1, 3), pa.concat_tables([rows.slice(5), rows.slice(2, 1)]), rows.slice(0, 0)):
            assert template.lengths(some).tolist() == list(map(len, template.prompts(some)))
    titles = pa.chunked_array([["Heat", "A"], ["Heat", "A long title (1995)"]])
    assert template.answer_lengths(titles).tolist() == [len(template.answer_ids(one)) for one in titles.to_pylist()]


def test_compact_candidates_are_set_off_from_the_history() -> None:
    template = make_template("compact", TOKENIZER, candidates=True)
    history = template.prompt_ids(["Heat", "Ran"], None, ["M"])
    listed = template.prompt_ids(["Heat"], None, ["Ran", "M"])
    assert history != listed and history.count(EOT) == listed.count(EOT) == 5
    assert history == make_template("compact", TOKENIZER).prompt_ids(["Heat", "Ran", "", "M", ""])


def test_a_liking_is_asked_with_what_was_liked_and_what_not() -> None:
    template = make_template("instruct", TOKENIZER, ask="liking")
    ids = template.prompt_ids(["A", "B", "C"], [5.0, 3.0, None], ["D\nE"])
    assert ids[0] == BOS
    first, second, question, end = BY_LIKING["liking"]
    assert template.text(ids[1:]) == f"{first}A\nC\n{second}B\n{question}D\nE\n{end}\n"
    assert template.scored_ids("Yes") == template.answer_ids("Yes")[:1] != template.scored_ids("No")
    plain = make_template("instruct", TOKENIZER)
    assert plain.scored_ids("Yes") == plain.answer_ids("Yes")
    compact = make_template("compact", TOKENIZER, ask="liking")
    a, b, c = (compact.answer_ids(title)[:-1] for title in "ABC")
    assert compact.prompt_ids(["A", "B"], [4.0, 2.0], ["C"]) == [BOS, *a, EOT, EOT, *b, EOT, EOT, *c, EOT, EOT]
    again = pickle.loads(pickle.dumps(compact))
    assert again.prompt_ids(["A", "B"], None, ["C"]) == compact.prompt_ids(["A", "B"], [4.0, 4.0], ["C"])


def test_a_title_is_asked_for_with_what_was_liked_and_what_not() -> None:
    template = make_template("instruct", TOKENIZER, candidates=True, ask="title_by_liking")
    first, second, among, end = BY_LIKING["title_by_liking"]
    ids = template.prompt_ids(["A", "B", "C"], [5.0, 3.0, None], ["D", "E"])
    assert template.text(ids[1:]) == f"{first}A\nC\n{second}B\n{among}D\nE\n{end}\n"
    assert template.scored_ids("D") == template.answer_ids("D")
    rows = pa.table(
        {
            "example_id": ["x"],
            "history": [["A", "B"]],
            "history_ratings": pa.array([[2.0, 4.0]], pa.list_(pa.float32())),
            "candidates": [["D", "E"]],
        }
    )
    assert template.prompts(rows) == [template.prompt_ids(["A", "B"], [2.0, 4.0], ["D", "E"])]


def test_items_stand_behind_their_titles_in_prompts_alone() -> None:
    items = Items(["A", "B"], 500)
    plain, shown = (make_template("compact", TOKENIZER, candidates=True, items=one) for one in (None, items))
    a, b, c = (plain.answer_ids(title)[:-1] for title in "ABC")
    prompt = [BOS, *a, 500, EOT, *c, 502, EOT, EOT, *b, 501, EOT, EOT]  # C is outside of the catalogue
    assert shown.prompt_ids(["A", "C"], None, ["B"]) == prompt
    assert pickle.loads(pickle.dumps(shown)).prompt_ids(["A", "C"], None, ["B"]) == prompt
    assert [token for token in prompt if token < 500] == plain.prompt_ids(["A", "C"], None, ["B"])
    assert shown.answer_ids("A") == plain.answer_ids("A")
    liking = make_template("compact", TOKENIZER, ask="liking", items=items)
    asked = [BOS, *a, 500, EOT, EOT, *b, 501, EOT, EOT, *c, 502, EOT, EOT]
    assert liking.prompt_ids(["A", "B"], [4.0, 2.0], ["C"]) == asked
