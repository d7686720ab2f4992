"""Everything that is settled and checked before the first actor starts."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayrec import signals
from rayrec.cluster import address, devices
from rayrec.config import Config
from rayrec.data import Dataset, load
from rayrec.data.ahead import Ahead, retarget
from rayrec.data.candidates import with_candidates
from rayrec.data.dataset import numbered
from rayrec.data.likings import liking_rows
from rayrec.data.mapped import take
from rayrec.data.reweight import by_genre
from rayrec.data.touched import Touched
from rayrec.deciding import fixed
from rayrec.driver import asked, checks, long_prompts, plan
from rayrec.driver.names import run_folder
from rayrec.generation import ENGINES, resolve_engine
from rayrec.grounding import EMBEDDERS, Embedder
from rayrec.grounding.kept import KeptEmbedder
from rayrec.lanes import Planned
from rayrec.models import card, hub
from rayrec.models.folder import folder_hash
from rayrec.models.gguf import folder_of
from rayrec.models.shape import Shape
from rayrec.objectives.settings import make_objective
from rayrec.prompts import Items, Template, make_template, resolve_template
from rayrec.report import trackers
from rayrec.runs import cache
from rayrec.runs.manifest import sha256
from rayrec.runs.run import Run
from rayrec.runs.storage import Storage
from rayrec.training import supervised
from rayrec.training.pair_columns import COLUMNS


@dataclass(frozen=True)
class Prepared:
    """A run whose settings, data and base model are known to fit together."""

    config: Config
    data: Dataset
    root: Path
    """The run folder, which may not exist yet."""
    tuning: pa.Table
    """Training rows of the SFT and preference phases."""
    phases: list[Planned]
    base: Path
    """Folder or hub id of the base model."""
    tokens: checks.Lengths
    lengths_key: dict[str, Any]
    """Cache key of ``tokens``: a run that goes on does not tokenise its prompts again."""
    shape: Shape
    hashes: dict[str, str]
    """Of the contents of data, model and embedder (:func:`~rayrec.deciding.result_hash`)."""
    template: Template
    asked: dict[str, Any]
    """How the run's policies are asked (:func:`rayrec.driver.asked.how_asked`)."""
    embedder: Embedder
    gpu: bool
    device: str
    """`cpu`, `gpu`, or the name of this machine's GPU."""
    threads: int
    """CPU threads of a process that works beside others; ``all_threads`` of a trainer that works alone."""
    all_threads: int
    shown: dict[str, Any]
    """The plan as a person reads it."""


def prepare(config: Config, scratch: Path) -> Prepared:
    """Check settings, data and model against each other; a tiny base model is made in ``scratch``.

    Raises:
        ValueError: anything that can be known before an actor starts.
    """
    from rayrec.decoding.exact import check_base  # imports torch

    config = address.settle_paths(config)
    checks.resolve(config)  # an error of the settings alone is raised before devices are looked for
    address.check_address(config)
    trackers.check(config.output.track)
    gpu = config.placement.cluster is None and address.has_gpu(config)
    on_gpus = gpu or config.placement.cluster is not None  # an estimate for another cluster looks at no device here
    config = checks.resolve(address.settle_placement(config, gpu), on_gpus)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, model=folder_of(config.model.model)))
    config = resolve_engine(config, on_gpus)  # what `auto` means is recorded and hashed
    engine, placement = ENGINES[config.evaluate.engine], config.placement
    data, tuning = read(config)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=data.source))
    embedder, of_embedder = make_embedder(config, data)
    base = make_base(config, data, scratch)
    config = settle_attention(config, str(base), on_gpus)
    template, form = bind(config, data, base)
    if long := long_prompts.long_titles(config, data, template):
        data, tuning = read(config, long)
        data = long_prompts.told(config, data, long)
        template, form = bind(config, data, base)
        embedder, of_embedder = make_embedder(config, data)
    supervised.make(config.supervised, data.catalogue, template)  # refuses what it is not defined for
    # The settings decide the tiny model; its words are learnt anew at each start, and must be those of its weights.
    of_model = sha256(base / "tokenizer.json") if config.model.model == "tiny" else folder_hash(str(base))
    hashes = {"data": data.content_hash, "model": of_model, "embedder": of_embedder}
    compares = bool(config.train.prefer and config.train.iterations)  # which the room of a prompt depends on
    lengths_key = {"lengths": fixed(config), "hashes": hashes, "compares": compares}
    known = cache.find(run_folder(config).parent / cache.SHARED / "lengths", lengths_key)
    if not known and placement.cluster is None:  # a run that goes on has been checked
        check_base(str(base), config.train.attention or "sdpa", bool(config.model.lora_rank))
    engine.check_model(config, on_gpus, str(base))
    signals.check()
    trims = config.data.long_prompts != "stop" and config.data.ask != "liking"  # whose prompts have one candidate each
    tokens = checks.Lengths(**known) if known else checks.check_lengths(config, data, tuning, template, trims)
    if tokens.long:
        data, tuning = long_prompts.fit(config, data, tuning, template, tokens.longest, long)
        again = tokens if known else checks.check_lengths(config, data, tuning, template)
        tokens = again._replace(long=tokens.long)
    checks.check_vocabulary(template, str(base))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, max_new_tokens=tokens.longest))
    phases = plan.phases(config, data)
    cores = devices.cores()
    workers = config.worker_counts[-1]
    threads = placement.threads or max(1, cores // (workers + placement.generators))
    resources = {
        "train_workers": " or ".join(map(str, config.worker_counts)),
        "generators": placement.generators,
        "device": placement.cluster or ("gpu" if gpu else "cpu"),
        "threads": threads,
        "cpus": cores,
        "engine": config.evaluate.engine,
        "decode": " ".join(config.evaluate.decode),
    }
    root = run_folder(config, of_model)
    checks.check_name(root.name)
    shape = Shape.of(str(base))
    shown = plan.describe(config, data, phases, tokens, shape, **resources)
    if (former := card.asked(config.model.model)) is not None:
        shown["lines"] = {"policy": asked.described(former, data.catalogue), **shown["lines"]}
    return Prepared(
        config=config,
        data=data,
        root=root,
        tuning=tuning,
        phases=phases,
        base=base,
        tokens=tokens,
        shape=shape,
        lengths_key=lengths_key,
        hashes=hashes,
        template=template,
        asked=asked.how_asked(config, template, form, data.catalogue),
        embedder=embedder,
        gpu=gpu,
        device=address.device_name(gpu),
        threads=threads,
        all_threads=placement.threads or max(1, cores // workers),
        shown=shown | {"folder": Storage(config.output.runs or "runs").name(root), "rows_to_tune": len(tuning)},
    )


def read(config: Config, without: Collection[str] = ()) -> tuple[Dataset, pa.Table]:
    """The data, and the rows to tune on; the titles ``without`` are no answers.

    Raises:
        ValueError: the data is not as wanted, or does not go with the settings.
    """
    data = load(config.data, without)
    signals.check()
    checks.check_data(config, data)
    tuning = rows_to_tune(config, data)
    if outside := supervised.outside(config.supervised, data.catalogue, tuning):
        line = f"SFT leaves out {len(outside):,} rows of {len(tuning):,}: their target is no title, as {outside[0]!r}"
        counts = data.counts | {"sft_rows_outside_catalogue": len(outside)}
        data = dataclasses.replace(data, counts=counts, told=data.told | {config.supervised.sft_loss: line})
    return data, tuning


def rows_to_tune(config: Config, data: Dataset) -> pa.Table:
    """The training rows of SFT and preference phases: all, or those whose target is rated ``--min-rating`` or more.

    Questions about likings are numbered anew. With ``--reweight`` rows have a column ``weight``.

    Raises:
        ValueError: ratings or genres are asked for and the data has none, or no row is left.
    """
    low, ratings = config.train.min_rating, data.train["target_rating"].to_numpy()
    rated = not np.isnan(ratings).all()
    objective = make_objective(config.loss)
    scored = any(COLUMNS[name].needs_ratings for name in objective.reads)
    none = "has none" + (f" ({data.told['ratings']})" if "ratings" in data.told else "")
    if not rated and (low is not None or scored):
        what = f"--objective {config.loss.objective}" if low is None else f"--min-rating {low:g}"
        raise ValueError(
            f"{what} reads ratings, but the source {data.source} {none}. Take data with ratings (movielens, recbole, "
            "steam-hours), or another objective and no --min-rating."
        )
    if config.data.ratings and not rated:
        raise ValueError(f"--ratings: the source {data.source} {none}. Take data with ratings, or leave this out.")
    rows = _retargeted(config, data, rated)
    ratings = rows["target_rating"].to_numpy()
    rows = rows if low is None else take(rows, np.flatnonzero(ratings >= low))
    if not len(rows):
        raise ValueError(f"--min-rating {low:g}: none of {len(ratings)} training rows is rated so high. Lower it.")
    if scored:
        tuned = rows["target_rating"].to_numpy()
        objective.check_ratings(config.train.target, data.train["target_rating"].to_numpy(), tuned)
    if config.data.ask == "liking":
        return numbered(liking_rows(rows, Touched(data.train), data.catalogue, config.data.seed))
    if config.train.reweight == "genre":
        rows = rows.append_column("weight", pa.array(by_genre(rows, data.catalogue).astype(np.float32)))
    return rows


def _retargeted(config: Config, data: Dataset, rated: bool) -> pa.Table:
    """The training rows with the titles that ``--target`` asks for; candidates list all that came next (RecPO)."""
    how, low = config.train.target, config.train.min_rating
    if how == "next":
        return data.train
    if not rated or low is None:
        missing = f"the source {data.source} has no ratings" if not rated else "--min-rating is missing"
        raise ValueError(f"--target {how} reads ratings, and {missing}. Add --min-rating 4, or take --target next.")
    ahead = Ahead(data.train)
    rows = retarget(data.train, ahead, how, low)
    if config.data.protocol == "candidates":
        rows = with_candidates(rows, Touched(data.train), data.catalogue, config.data.seed, ahead.titles)
    return rows


def make_embedder(config: Config, data: Dataset) -> tuple[Embedder, str]:
    """The embedder that grounds greedy text, and the hash of its folder's contents; empty where it has none."""
    name, path = config.evaluate.embedder, config.evaluate.embedder_path
    if name == "lm" and not path and config.model.model != "tiny":
        path = whole_model(config.model.model)
    if name == "title":
        return EMBEDDERS[name](data.catalogue.titles), ""
    if not path:
        kind = "a Hugging Face language model's" if name == "lm" else "a model2vec or sentence-transformers"
        raise ValueError(f"--embedder {name} needs --embedder-path, {kind} folder.")
    path = folder_of(path)
    if name == "lm" and Path(path, "config.json").is_file():
        plan.check_embedder(path)
    embedder, contents = EMBEDDERS[name](path), folder_hash(path)
    if config.output.share:
        where = run_folder(config).parent / cache.SHARED / "embeddings"
        key = {"embedder": name, "contents": contents, "processor": cache.processor()}
        embedder = KeptEmbedder(embedder, key, partial(cache.make_once, where))
    return embedder, contents


def whole_model(model: str) -> str:
    """The folder of ``--model``, whose weights are read here; a hub id's is fetched.

    Raises:
        ValueError: there is no such folder, or the hub does not give its weights.
    """
    from rayrec.models.folder import local_folder
    from rayrec.models.policy import check_model

    folder = Path(model).expanduser()
    path = str(folder) if folder.is_dir() else model
    hub.settle(path)
    check_model(path)
    try:
        return str(local_folder(path))
    except OSError as error:
        raise ValueError(
            f"--embedder lm reads the weights of --model {model}, and the hub does not give them. Download them first, "
            f"or name a folder with --embedder-path. ({str(error).strip().splitlines()[0]})"
        ) from error


def settle_attention(config: Config, base: str, on_gpus: bool) -> Config:
    """Settle ``--attention`` for a model and kind of device.

    Raises:
        ValueError: `varlen` is asked for, and the plan is not on GPUs in bfloat16.
    """
    from rayrec.models import varlen

    train, serves = config.train, on_gpus and config.train.dtype == "bfloat16"
    if train.attention == "varlen" and not serves:
        found, remedy = ("on CPUs", "--device gpu") if not on_gpus else ("in float32", "--dtype bfloat16")
        raise ValueError(
            f"--attention varlen is FlashAttention, on GPUs in bfloat16, and this plan is {found}. Take "
            f"--attention sdpa, or {remedy}."
        )
    attention = train.attention or ("varlen" if serves and varlen.fits(base) else "sdpa")
    return dataclasses.replace(config, train=dataclasses.replace(train, attention=attention))


def make_base(config: Config, data: Dataset, scratch: Path) -> Path:
    """The base model's folder or hub id; a tiny one is made in ``scratch``.

    Raises:
        ValueError: the model cannot be had or opened, or sees fewer tokens than ``--max-length``.
    """
    from rayrec.models.folder import context_length
    from rayrec.models.policy import check_model
    from rayrec.models.tiny import make_tiny

    base = Path(config.model.model).expanduser()
    if config.model.model == "tiny":
        base = scratch / "base"
        titles = [t for t, n in zip(data.catalogue.titles, data.catalogue.popularity, strict=True) if n]
        make_tiny(titles, config.model, base, config.data.seed)
    elif base.is_dir():
        base = base.absolute()  # it is opened from other folders too
    elif config.model.model.startswith((".", "/", "~")) or config.model.model.count("/") > 1 or base.exists():
        raise ValueError(
            f"model {config.model.model}: no such folder. Name a Hugging Face folder or hub id, or `tiny`."
        )
    name = str(base)
    hub.settle(name)
    check_model(name, whole=config.placement.cluster is None)
    context_length(config.model, name)
    return base


def bind(config: Config, data: Dataset, base: Path) -> tuple[Template, str]:
    """The prompt template bound to the tokenizer of ``base``, and its name; a run's policy is asked as in that run.

    Raises:
        ValueError: the tokenizer cannot be used, or the model is a policy that was tuned for other prompts.
    """
    from rayrec.models.folder import vocabulary
    from rayrec.models.policy import load_tokenizer

    name = str(base)
    tokenizer = load_tokenizer(name)
    former, form = card.asked(name), config.model.template
    if former is not None:
        asked.check_asked(config, former)
        form = former["template"]
    form = resolve_template(form, config.model.model, tokenizer)
    items = Items(data.catalogue.titles, vocabulary(name)) if config.model.item_vectors else None
    chooses, asking = config.data.protocol == "candidates", (config.data.ratings, config.data.ask, config.data.seed)
    return make_template(form, tokenizer, chooses, *asking, items), form


def keep_base(work: Run, base: Path) -> Path:
    """Move a made base model into the run folder, as its first finished phase."""
    if not work.done("00/base"):
        shutil.copytree(base, work.begin("00/base"), dirs_exist_ok=True)
        work.finish("00/base", {"records": []})
    return work.folder("00/base")
