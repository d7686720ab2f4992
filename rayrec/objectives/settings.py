"""Settings of the losses: the fields of all objectives as a group of flags, those of supervised losses as another."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_type_hints

import tyro

from rayrec.fields import flag
from rayrec.objectives import DEFAULT, OBJECTIVES, SFT_LOSSES, Objective, SftLoss

Kind = TypeVar("Kind")


def _flag(name: str, kind: Any, default: Any, text: str) -> Any:
    return name, Annotated[kind, tyro.conf.arg(help=text)], field(default=default)


def _settings(kinds: Mapping[str, Any], prefix: str = "") -> list[Any]:
    """Every setting that a loss has: their types, None for the loss's own default, and their lines of help."""
    return [
        _setting(kinds, name, prefix) for name in dict.fromkeys(f.name for kind in kinds.values() for f in fields(kind))
    ]


def _setting(kinds: Mapping[str, Any], name: str, prefix: str) -> Any:
    types, lines = [], defaultdict[str, dict[Any, list[str]]](lambda: defaultdict(list))
    for loss, kind in kinds.items():
        if (one := kind.__dataclass_fields__.get(name)) is not None:
            types.append(get_type_hints(kind)[name])
            lines[one.metadata.get("doc", name)][one.default].append(loss)
    texts = []
    for doc, owners in lines.items():
        each = [("" if value is None else f"{value} for ") + ", ".join(names) for value, names in owners.items()]
        texts.append(f"{doc} ({'; '.join(each)}).")
    return _flag(prefix + name, Union[(*types, None)], None, " ".join(texts))


def _made(kinds: Mapping[str, type[Kind]], chosen: str, name: str, given: dict[str, Any], prefix: str = "") -> Kind:
    """Return the loss with its settings; ValueError for one that it does not have, or out of range."""
    kind: Any = kinds[name]
    own = [prefix + one.name for one in fields(kind)]
    for one in given.keys() - own:
        raise ValueError(f"{chosen} {name} has no {flag(one)}; it has {', '.join(map(flag, own)) or 'no settings'}.")
    try:
        return kind(**{one.removeprefix(prefix): value for one, value in given.items()})
    except ValueError as error:
        raise ValueError(f"{chosen} {name}: {error}") from error


def _losses() -> Any:
    """A dataclass of ``objective``, every setting that an objective has, ``anchor`` and ``smoothing``."""
    names: Any = tyro.extras.literal_type_from_choices(OBJECTIVES)
    objective = _flag("objective", names, DEFAULT, "Chosen against rejected answers, by this loss.")
    able = {name: "smoothing" in kind.reads for name, kind in OBJECTIVES.items() if kind.smooths}
    text = (
        f"Label smoothing by the doubt of a SASRec oracle in each pair, of {', '.join(able)}; `auto` smooths "
        f"{', '.join(name for name, needed in able.items() if needed)} only."
    )
    smoothing = _flag("smoothing", Literal["auto", "none", "sasrec"], "auto", text)
    text = "Weight of - log π of the chosen answer per token, added to any objective, >= 0."
    anchor = _flag("anchor", float, 0.0, text)
    return make_dataclass("Losses", [objective, *_settings(OBJECTIVES), anchor, smoothing], frozen=True)


def _supervised() -> Any:
    """A dataclass of ``sft_loss`` and every setting that a supervised loss has, with `sft_` before its name."""
    names: Any = tyro.extras.literal_type_from_choices(SFT_LOSSES)
    text = (
        "Loss of the SFT phases: `sft` over the vocabulary; `msl`, `bear` and `flower` over the tokens that continue a "
        "title of the catalogue."
    )
    return make_dataclass(
        "Supervised", [_flag("sft_loss", names, "sft", text), *_settings(SFT_LOSSES, "sft_")], frozen=True
    )


@dataclass(frozen=True)
class LossConfig(_losses()):
    """Loss of the preference step. A setting that is left out has the objective's own default; one that the objective
    does not have is refused."""


@dataclass(frozen=True)
class SupervisedConfig(_supervised()):
    """Loss of the SFT phases, with settings as those of the preference step."""


def make_objective(loss: LossConfig) -> Objective:
    """Return the objective with its settings; ValueError for one that it does not have, or out of range."""
    settings = [one.name for one in fields(loss) if one.name not in ("objective", "anchor", "smoothing")]
    given = {one: value for one in settings if (value := getattr(loss, one)) is not None}
    return _made(OBJECTIVES, "--objective", loss.objective, given)


def make_sft_loss(supervised: SupervisedConfig) -> SftLoss:
    """Return the supervised loss with its settings; ValueError as :func:`make_objective`."""
    settings = [one.name for one in fields(supervised) if one.name != "sft_loss"]
    given = {one: value for one in settings if (value := getattr(supervised, one)) is not None}
    return _made(SFT_LOSSES, "--sft-loss", supervised.sft_loss, given, "sft_")


def resolve(loss: LossConfig) -> LossConfig:
    """Return the loss with all settings of its objective and ``smoothing`` decided; ValueError where it cannot be."""
    objective, name, smoothing = make_objective(loss), loss.objective, loss.smoothing
    needed = "smoothing" in objective.reads
    if not 0 <= loss.anchor < math.inf:
        raise ValueError(
            f"--anchor is {loss.anchor}, wanted a finite number, 0 or more. Without it there is no anchor."
        )
    if loss.anchor and objective.shape.groups:
        raise ValueError(
            f"--anchor {loss.anchor:g} pulls at a chosen answer, and --objective {name} learns from groups, which have "
            "none. Leave --anchor out."
        )
    if smoothing == "auto":
        smoothing = "sasrec" if needed else "none"
    if smoothing == "none" and needed:
        raise ValueError(f"--smoothing none: --objective {name} reads smoothed labels. Leave --smoothing out.")
    if smoothing != "none" and not objective.smooths:
        able = ", ".join(sorted(other for other, kind in OBJECTIVES.items() if kind.smooths))
        raise ValueError(f"--smoothing {smoothing}: --objective {name} cannot smooth labels. Take one of {able}.")
    return dataclasses.replace(loss, smoothing=smoothing, **dataclasses.asdict(objective))


def resolve_sft(supervised: SupervisedConfig) -> SupervisedConfig:
    """Return the settings of the SFT phases with the loss's own defaults."""
    loss = make_sft_loss(supervised)
    return dataclasses.replace(supervised, **{f"sft_{name}": value for name, value in dataclasses.asdict(loss).items()})
