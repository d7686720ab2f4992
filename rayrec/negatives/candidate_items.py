"""``candidates`` and ``self_hard``: wrong titles of the example's candidate set."""

import pyarrow as pa

from rayrec.data.candidates import candidate_lists
from rayrec.data.catalogue import Catalogue
from rayrec.negatives.draw import Draw, contexts, table


def candidates_of(examples: pa.Table, catalogue: Catalogue, draw: Draw) -> list[list[str]]:
    """Return the candidates of each row, the target among them: those of its prompt, where it lists some."""
    if not examples["candidates"].null_count:
        return examples["candidates"].to_pylist()
    return candidate_lists(examples, draw.touched, catalogue, draw.seed, draw.later)


def candidates_table(examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw) -> pa.Table:
    """Return ``draw.k`` of the wrong candidates of each example, drawn without replacement (S-DPO, RecPO).

    Drawn from anywhere in the list: a policy whose prompts list the candidates could learn fixed places.
    """
    rows = []
    for example, titles in zip(contexts(examples), candidates_of(examples, catalogue, draw), strict=True):
        name = example["example_id"]
        wrong = [title for title in titles if title != example["target"]]
        drawn = [wrong[i] for i in draw.generator(name).permutation(len(wrong))]
        rows += draw.drawn(name, "candidates", _enough(drawn, draw))
    return table(rows)


def self_hard_table(examples: pa.Table, outputs: pa.Table | None, catalogue: Catalogue, draw: Draw) -> pa.Table:
    """Return the ``draw.k`` wrong candidates that the policy holds likeliest, likeliest first, of each example.

    RosePO takes items that the policy scores above the target. These come first here too; where they are fewer than
    ``draw.k`` the next likeliest follow (ours). ``outputs`` holds the candidates with their log-probabilities.
    """
    assert outputs is not None, "the policy scores the candidates first"
    scored = {row["example_id"]: row for row in outputs.select(["example_id", "texts", "logprobs"]).to_pylist()}
    rows = []
    for example in contexts(examples):
        row = scored[example["example_id"]]
        wrong = [p for p in zip(row["texts"], row["logprobs"], strict=True) if p[0] != example["target"]]
        best = sorted(wrong, key=lambda pair: -pair[1])  # stable: the candidates' order breaks ties
        for k, (title, logprob) in enumerate(_enough(best, draw)):
            rows.append(draw.row(example["example_id"], k, "self_hard", title, None, logprob))
    return table(rows)


def _enough(wrong: list, draw: Draw) -> list:
    if len(wrong) < draw.k:
        raise ValueError(f"Found {len(wrong)} wrong candidates, wanted {draw.k}. Lower --num-negatives.")
    return wrong[: draw.k]
