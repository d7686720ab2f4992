"""Lists for all users: Ray Data spreads parts of the users over actors, and finished parts are kept."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from rayrec import fields, signals
from rayrec.cluster import address, connect
from rayrec.config import Config, PlacementConfig
from rayrec.data.settings import DateOrder
from rayrec.fields import POSITIVE, at_least
from rayrec.recommend import histories, places
from rayrec.recommend.lists import Explore
from rayrec.recommend.output import LIST, RECOMMENDATIONS, join
from rayrec.recommend.recommender import Recommender
from rayrec.report import terminal
from rayrec.runs.manifest import read_json, sha256, write_json
from rayrec.seeds import seed_of

#: Users of a part: answered by one actor, and made again whole after a death.
PART = 512
#: Placement that lists do not read.
_UNREAD = (
    *("train_workers", "max_train_workers", "tensor_parallel", "placement", "sequential", "cluster", "train_resource"),
    *("checkpoint_steps", "checkpoint_seconds", "wait_for_resources", "max_deaths", "wait_seconds"),
)


@dataclass(frozen=True)
class RecommendConfig:
    """Settings of jobs/recommend.py."""

    policy: str
    """A run's folder (its best policy on validation rows), a policy of a run, or a Hugging Face folder or hub id."""
    data: str | None = None
    """Folder of interactions, as in jobs/sprec.py; every user's last titles are the history. Default: the data of the
    policy's run."""
    source: str = "auto"
    columns: tuple[str, ...] = ()
    """Columns of --data that have other names, as in jobs/sprec.py."""
    date_order: DateOrder | None = None
    """Whether its dates such as 03/04/2025 begin with the day or the month, as in jobs/sprec.py."""
    histories: str | None = None
    """Parquet or JSONL file with `user` and `history` (titles, oldest first) instead of --data."""
    users: str = "all"
    """`all`, users separated by commas, or a file with one user per line."""
    out: str = "recommendations.parquet"
    """File that is written, .parquet or .jsonl."""
    catalogue: str | None = None
    """Parquet or CSV file with a column `title`; default: the run's own."""
    template: Literal["auto", "chat", "instruct", "compact"] = "auto"
    """Prompt form of a policy outside of a run."""
    top_k: Annotated[int, POSITIVE] = 10
    exclude_history: bool = True
    """Lists hold no title of their user's history."""
    explore: Explore = "none"
    """`gumbel`: lists are drawn by the policy's probabilities, and written with what an estimate from them needs."""
    seed: Annotated[int, at_least(0)] = 0
    """Seeds the draws of --explore; a user's draw follows from it and from the user alone."""
    placement: Annotated[PlacementConfig, tyro.conf.arg(name="")] = field(default_factory=PlacementConfig)


class _Actor:
    """Ray Data's actor: a policy in memory, and parts that it answers and writes."""

    def __init__(self, settings: dict[str, Any], folder: str, created: int, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.folder, self.settings = Path(folder), settings
        self.created = datetime.fromtimestamp(created, UTC)
        self.recommender = _open(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for part in batch["part"].tolist():
            self._write(int(part))
        return batch

    def _write(self, part: int) -> None:
        with pq.ParquetFile(self.folder / "histories.parquet") as file:
            rows = file.read_row_group(part).to_pylist()
        asked = [row for row in rows if row["error"] is None]
        for row, refused in zip(asked, self.recommender.refusals([row["history"] for row in asked]), strict=True):
            row["error"] = refused
        asked = [row for row in asked if row["error"] is None]
        table = self.recommender.recommend(
            [row["history"] for row in asked],
            self.settings["top_k"],
            exclude_history=self.settings["exclude_history"],
            explore=self.settings["explore"],
            seeds=[seed_of(self.settings["seed"], row["user"]) for row in asked],
        )
        made = [_nothing() for _ in asked]
        for one in table.to_pylist():
            for name in LIST:
                made[one["row"]][name].append(one[name])
            made[one["row"]] |= {name: one[name] for name in ("fallback", "threshold")}
        answers = iter(made)
        about = {"policy": self.recommender.policy, "catalogue": self.recommender.version, "created": self.created}
        found = [
            {"user": row["user"], "error": row["error"], **about, **(_nothing() if row["error"] else next(answers))}
            for row in rows
        ]
        target = self.folder / f"{part:09d}.parquet"
        pq.write_table(pa.Table.from_pylist(found, schema=RECOMMENDATIONS), f"{target}.partial")
        os.replace(f"{target}.partial", target)


def _nothing() -> dict[str, Any]:
    return {**{name: [] for name in LIST}, "fallback": False, "threshold": None}


def run(config: RecommendConfig) -> dict[str, Any]:
    """Write the lists of all users; the same call goes on after the parts that are there. Returns the summary.

    Raises:
        ValueError: settings, policy or users that do not fit, before an actor starts.
    """
    terminal.show_log()
    check_placement(config.placement)
    out, begun = Path(config.out).expanduser().absolute(), time.time()
    _check(config, out)
    # Errors of policy and catalogue come before anything is written; the GPUs may be those of other machines.
    _open(_settings(config) | {"device": "cpu"})
    signals.check()
    folder = out.with_name(out.name + ".parts")
    created = _claim(config, folder)
    if not (folder / "histories.parquet").exists():
        try:
            _write_histories(config, folder)
        except ValueError:
            shutil.rmtree(folder)  # else it would refuse the corrected command
            raise
    signals.check()
    parts = pq.read_metadata(folder / "histories.parquet").num_row_groups
    left = [part for part in range(parts) if not (folder / f"{part:09d}.parquet").exists()]
    if left:
        _answer(config, folder, created, parts, left)
    summary = join(folder, parts, out, config.explore != "none") | {"seconds": time.time() - begun}
    shutil.rmtree(folder)
    rate = summary["users"] / summary["seconds"]
    terminal.log("summary", ", ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in summary.items()))
    terminal.log("written", f"{out}, {rate:.1f} users/s")
    return summary


def check_placement(placement: PlacementConfig) -> None:
    """Raise ValueError: a value that cannot be, or a setting that generators of lists do not read."""
    fields.check(placement)
    fields.check_unread(placement, _UNREAD, "lists are made without it")


def has_gpu(placement: PlacementConfig) -> bool:
    """Whether generators take a GPU each; no training worker takes one."""
    return address.has_gpu(Config(placement=dataclasses.replace(placement, train_workers=0)))


def _check(config: RecommendConfig, out: Path) -> None:
    if out.suffix not in (".parquet", ".jsonl"):
        raise ValueError(f"--out {config.out}: found the ending {out.suffix!r}, wanted .parquet or .jsonl.")
    if config.data and config.histories:
        raise ValueError("--data and --histories both name users. Give one of them.")
    if not config.histories:
        places.find(config.policy).data(config.source, config.data)
    for flag, name in (("--histories", config.histories), ("--catalogue", config.catalogue)):
        if name and not Path(name).expanduser().is_file():
            raise ValueError(f"{flag} {name}: no such file. Name one that exists.")
    if out.exists():
        raise ValueError(f"--out {config.out}: the file exists. Remove it, or name another.")
    out.parent.mkdir(parents=True, exist_ok=True)


def _open(settings: dict[str, Any]) -> Recommender:
    return Recommender.open(
        settings["policy"], settings["catalogue"], template=settings["template"], device=settings["device"]
    )


def _settings(config: RecommendConfig) -> dict[str, Any]:
    """Everything that decides the lists."""
    found = {name: value for name, value in asdict(config).items() if name not in ("placement", "out")}
    found["columns"] = list(config.columns)  # as JSON gives them back
    for name in ("policy", "catalogue"):  # actors open them from other folders
        if found[name] and (path := Path(found[name]).expanduser()).exists():
            found[name] = str(path.absolute())
    return found | {"device": {"gpu": "cuda"}.get(config.placement.device, config.placement.device)}


def _claim(config: RecommendConfig, folder: Path) -> int:
    """Return when these recommendations were begun, in seconds since the epoch; a stopped job keeps its time."""
    place = places.find(config.policy)
    weights = {file.name: sha256(file) for file in sorted(Path(place.model).glob("*.safetensors"))}
    key = {"settings": _settings(config), "policy": place.name, "weights": weights}
    files = {name: Path(name).expanduser() for name in (config.histories, config.catalogue) if name}
    files |= {config.users: path} if (path := _users_file(config.users)) else {}
    key["files"] = {name: sha256(path) for name, path in files.items()}
    if (folder / "key.json").exists():
        found = read_json(folder / "key.json")
        if found["key"] != key:
            raise ValueError(
                f"{folder}: found parts of other settings, policy or users. Remove the folder, or name another --out."
            )
        return found["created"]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "key.json", {"key": key, "created": (created := int(time.time()))})
    return created


def _write_histories(config: RecommendConfig, folder: Path) -> None:
    place = places.find(config.policy)
    tables: Iterable[pa.Table]
    if config.histories:
        tables = histories.from_file(config.histories)
    else:
        tables = histories.from_logs(*place.data(config.source, config.data, config.columns, config.date_order))
    if config.users != "all":
        tables = _chosen(tables, config.users)
    path, count = folder / "histories.parquet.partial", 0
    with pq.ParquetWriter(path, histories.HISTORIES) as file:
        for some in _sized(tables):
            file.write_table(some, row_group_size=PART)
            count += len(some)
    if not count:
        raise ValueError("No user is there: the histories or the file of --users are empty. Name others.")
    path.rename(folder / "histories.parquet")


def _users_file(users: str) -> Path | None:
    """The file that ``users`` names; None where it lists users."""
    try:
        return path if (path := Path(users).expanduser()).is_file() else None
    except (OSError, RuntimeError):  # too long for a file's name, or ~ of nobody
        return None


def _chosen(tables: Iterable[pa.Table], users: str) -> Iterator[pa.Table]:
    """Keep the users of a file, or those named; one that the data does not have gets a row with an empty history.

    Raises:
        ValueError: ``users`` is no file, and the data has none of them; or it is a file in another encoding.
    """
    path = _users_file(users)
    try:
        names = path.read_text("utf-8-sig").splitlines() if path else [name.strip() for name in users.split(",")]
    except UnicodeDecodeError as error:
        raise ValueError(f"--users {users}: found no UTF-8 ({error}). Convert the file to UTF-8.") from error
    wanted = dict.fromkeys(name for name in names if name)
    missing = wanted.copy()
    for table in tables:
        found = table["user"].to_pylist()
        yield table.filter(pa.array([user in wanted for user in found], pa.bool_()))
        for user in found:
            missing.pop(user, None)
    if len(missing) == len(wanted) and not path:
        raise ValueError(
            f"--users {users}: no such file, and the data has no such user. Name a file with one user per line, or "
            "users, separated by commas, or take `all`."
        )
    unknown = [{"user": user, "history": [], "error": None} for user in missing]
    yield pa.Table.from_pylist(unknown, schema=histories.HISTORIES)


def _sized(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of :data:`PART`, the last one shorter."""
    held = histories.HISTORIES.empty_table()
    for table in tables:
        held = pa.concat_tables([held, table])
        while len(held) >= PART:
            yield held.slice(0, PART)
            held = held.slice(PART).combine_chunks()
    if len(held):
        yield held


def _answer(config: RecommendConfig, folder: Path, created: int, parts: int, left: list[int]) -> None:
    """Let the actors answer the parts that are ``left``."""
    placement = config.placement
    gpu = has_gpu(placement)
    connect.connect(Config(placement=placement))
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    threads = placement.threads or max(1, (os.cpu_count() or 1) // placement.generators)
    resources: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": 1}
    if placement.generate_resource:
        resources["resources"] = {placement.generate_resource: 1}
    settings = _settings(config) | {"device": "cuda" if gpu else "cpu"}
    rows = ray.data.from_items([{"part": part} for part in left], override_num_blocks=len(left))
    made: Any = rows.map_batches(
        _Actor,
        fn_constructor_args=(settings, str(folder), created, threads),
        batch_size=1,
        concurrency=placement.generators,
        **resources,
    )
    with terminal.LaneProgress(["generators"]) as progress:
        progress.start("generators", "recommend", parts, "parts")
        done = parts - len(left)

        def follow() -> None:
            nonlocal done
            for _ in made.iter_rows():
                done += 1
                progress.update("recommend", done)

        future = ThreadPoolExecutor(1).submit(follow)  # in a thread, so that a signal ends the wait
        signals.wait_for([future])
        future.result()
        progress.finish("recommend")
    connect.leave()


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
