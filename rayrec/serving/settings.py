"""Settings of jobs/serve.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from rayrec.config import PlacementConfig
from rayrec.data.settings import DateOrder
from rayrec.fields import POSITIVE, Range
from rayrec.recommend.lists import Explore

_PORT = Range(lambda value: 1 <= value <= 65535, "a port, 1 to 65535.")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of jobs/serve.py."""

    policy: str
    """A run's folder (its best policy on validation rows), a policy of a run, or a Hugging Face folder or hub id."""
    catalogue: str | None = None
    """Parquet or CSV file with a column `title`; default: the run's own."""
    template: Literal["auto", "chat", "instruct", "compact"] = "auto"
    """Prompt form of a policy outside of a run."""
    histories: str | None = None
    """Parquet or JSONL file with `user` and `history` (titles, oldest first), for requests that name a user. Default:
    the users of the policy's run."""
    data: str | None = None
    """Folder of interactions, as in jobs/sprec.py, instead of --histories: every user's last titles."""
    source: str = "auto"
    columns: tuple[str, ...] = ()
    """Columns of --data that have other names, as in jobs/sprec.py."""
    date_order: DateOrder | None = None
    """Whether its dates such as 03/04/2025 begin with the day or the month, as in jobs/sprec.py."""
    host: str = "127.0.0.1"
    """Address to listen on; one beyond this machine wants a token."""
    port: Annotated[int, _PORT] = 8000
    token: str | None = None
    """Word that requests must show, `Authorization: Bearer WORD`; default: RAYREC_TOKEN. Without one nobody can change
    catalogue or policy."""
    state: str | None = None
    """Folder of the versions that are served. With it a service that is started again serves its last version, and
    --policy and --catalogue are for the first start only. On several nodes all must see it."""
    queue: Annotated[int, POSITIVE] = 256
    """Requests that may wait or be answered at once; more are refused with 503."""
    batch: Annotated[int, Range(lambda value: 1 <= value <= 64, "a number from 1 to 64.")] = 64
    """Most requests that are answered together."""
    timeout: Annotated[float, POSITIVE] = 10.0
    """Seconds until a request is refused with 503."""
    window: Annotated[int, POSITIVE] = 1000
    """Last lists and outcomes of each policy from which /metrics has DivRatio and ORRatio, and HR."""
    outcomes: Annotated[int, POSITIVE] = 100_000
    """Last lists that /outcome knows."""
    explore: Explore = "none"
    """`gumbel`: lists are drawn by the policy's probabilities, unless a request sets it; answers then have what
    an estimate from them needs."""
    placement: Annotated[PlacementConfig, tyro.conf.arg(name="")] = field(default_factory=PlacementConfig)
