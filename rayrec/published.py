"""Numbers that the papers print, to stand beside ours and never to be mixed with them."""

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


def published(data: str) -> list[dict[str, Any]]:
    """What SPRec prints for the data set that the last part of the path ``data`` names; empty for others."""
    n, methods = _SPREC.get(data.rstrip("/").rpartition("/")[2].lower(), (0, {}))
    names = ("DivRatio@5", "ORRatio@5", "MGU@5", "HR@5", "NDCG@5")
    return [
        {"method": method, "source": "SPRec tables 2 and 3", "N": n, **dict(zip(names, values, strict=True))}
        for method, values in methods.items()
    ]
