"""Numbers that the papers print, to stand beside ours and never to be mixed with them.

Methods have the papers' own names: SFT is BIGRec, and LLaMA2 and LLaMA3 are zero-shot.
"""

from __future__ import annotations

from typing import Any

#: SPRec tables 2 and 3 at k = 5: DivRatio, ORRatio, MGU, HR, NDCG of Llama-3.2-1B, by data set and method. N is read
#: off the fractions (0.0347 = 34/980).
_SPREC: dict[str, tuple[int, dict[str, tuple[float, float, float, float, float]]]] = {
    "movielens": (
        980,
        {
            "SASRec": (0.0057, 0.4778, 0.0439, 0.0240, 0.0155),
            "BIGRec": (0.1604, 0.1047, 0.0406, 0.0347, 0.0281),
            "RW": (0.1541, 0.0990, 0.0405, 0.0327, 0.0276),
            "D3": (0.1000, 0.1440, 0.0502, 0.0266, 0.0197),
            "DMPO": (0.1459, 0.0912, 0.0366, 0.0316, 0.0263),
            "S-DPO": (0.1449, 0.0869, 0.0283, 0.0347, 0.0293),
            "RosePO": (0.1510, 0.0812, 0.0300, 0.0296, 0.0244),
            "SPRec": (0.2257, 0.1033, 0.0346, 0.0388, 0.0319),
            "SPRec-noSFT": (0.2486, 0.0224, 0.0188, 0.0184, 0.0149),
            "SPRec-noDPO": (0.1588, 0.1086, 0.0406, 0.0316, 0.0260),
            "SPRec-RN": (0.1822, 0.0922, 0.0303, 0.0286, 0.0230),
        },
    ),
    "goodreads": (
        1000,
        {
            "SASRec": (0.1889, 0.1149, 0.0063, 0.1149, 0.0837),
            "BIGRec": (0.1002, 0.1174, 0.0164, 0.0310, 0.0236),
            "RW": (0.0820, 0.1338, 0.0270, 0.0380, 0.0281),
            "D3": (0.0857, 0.1034, 0.0255, 0.0413, 0.0324),
            "DMPO": (0.1188, 0.1384, 0.0159, 0.0390, 0.0295),
            "S-DPO": (0.1124, 0.1334, 0.0166, 0.0440, 0.0330),
            "RosePO": (0.1206, 0.0970, 0.0147, 0.0350, 0.0262),
            "SPRec": (0.1472, 0.0678, 0.0165, 0.0330, 0.0250),
            "SPRec-noSFT": (0.1418, 0.0658, 0.0135, 0.0270, 0.0206),
            "SPRec-noDPO": (0.0992, 0.0862, 0.0165, 0.0350, 0.0274),
            "SPRec-RN": (0.1048, 0.1190, 0.0156, 0.0420, 0.0310),
        },
    ),
}


#: HR@1 and ValidRatio of a choice from 20 candidates, by the names of the data and by method.
_Choice = dict[tuple[str, ...], dict[str, tuple[float, float]]]
#: S-DPO table 1: MovieLens 100K and LastFM (its Goodreads is another one than SPRec's).
_SDPO: _Choice = {
    ("movielens-100k", "ml-100k"): {
        "GRU4Rec": (0.3750, 1.0000),
        "Caser": (0.3861, 1.0000),
        "SASRec": (0.3444, 1.0000),
        "LLaMA2": (0.0421, 0.4421),
        "ChatRec": (0.2000, 0.9895),
        "MoRec": (0.2822, 1.0000),
        "TALLRec": (0.3895, 0.9263),
        "LLaRA": (0.4737, 0.9684),
        "S-DPO": (0.5263, 0.9895),
    },
    ("lastfm",): {
        "GRU4Rec": (0.2616, 1.0000),
        "Caser": (0.2233, 1.0000),
        "SASRec": (0.2233, 1.0000),
        "LLaMA2": (0.0246, 0.3443),
        "ChatRec": (0.3770, 1.0000),
        "MoRec": (0.1652, 1.0000),
        "TALLRec": (0.4180, 0.9836),
        "LLaRA": (0.4508, 0.9918),
        "S-DPO": (0.6628, 0.9992),
    },
}
#: RecPO table 1: MovieLens 1M and Steam. No source reads the other two.
_RECPO: _Choice = {
    ("movielens-1m", "ml-1m"): {
        "GRU4Rec": (0.2664, 1.0000),
        "Caser": (0.2714, 1.0000),
        "SASRec": (0.2671, 1.0000),
        "LLaMA3": (0.0929, 0.7351),
        "SFT": (0.2478, 0.9985),
        "DPO": (0.2809, 0.9970),
        "SimPO": (0.2974, 0.9725),
        "S-DPO": (0.2902, 0.9983),
        "RecPO": (0.3451, 0.9969),
    },
    ("steam-hours", "steam"): {
        "GRU4Rec": (0.4584, 1.0000),
        "Caser": (0.4394, 1.0000),
        "SASRec": (0.4587, 1.0000),
        "LLaMA3": (0.0852, 0.8672),
        "SFT": (0.3122, 0.9990),
        "DPO": (0.3340, 0.9980),
        "SimPO": (0.3401, 0.9766),
        "S-DPO": (0.3588, 0.9990),
        "RecPO": (0.4672, 0.9985),
    },
}
#: RecPO table 2, HR@1 alone: the margins log diff and log ratio.
_MARGINS = {
    ("movielens-1m", "ml-1m"): {"RecPO-log-diff": 0.3160, "RecPO-log-ratio": 0.3247},
    ("steam-hours", "steam"): {"RecPO-log-diff": 0.4284, "RecPO-log-ratio": 0.4517},
}


def published(data: str, protocol: str) -> list[dict[str, Any]]:
    """What the papers print for a protocol and the data set that the last part of the path ``data`` names.

    ``N`` is None where the paper does not state how many rows it tested; empty for other data.
    """
    name = data.rstrip("/").rpartition("/")[2].lower()
    if protocol != "candidates":
        n, methods = _SPREC.get(name, (0, {}))
        names = ("DivRatio@5", "ORRatio@5", "MGU@5", "HR@5", "NDCG@5")
        base = {"source": "SPRec tables 2 and 3, Llama-3.2-1B", "N": n}
        return [{"method": m, **base, **dict(zip(names, values, strict=True))} for m, values in methods.items()]
    made = []
    for source, table in (("S-DPO table 1, Llama-2-7B", _SDPO), ("RecPO table 1, Llama-3.1-8B", _RECPO)):
        for method, (hits, valid) in _of(table, name).items():
            made.append({"method": method, "source": source, "N": None, "HR@1": hits, "ValidRatio": valid})
    for method, hits in _of(_MARGINS, name).items():
        made.append({"method": method, "source": "RecPO table 2, Llama-3.1-8B", "N": None, "HR@1": hits})
    return made


def _of(table: dict[tuple[str, ...], dict[str, Any]], name: str) -> dict[str, Any]:
    return next((methods for names, methods in table.items() if name in names), {})
