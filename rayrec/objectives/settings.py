"""Settings of the loss: the fields of all objectives as one group of flags."""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal, Union, get_type_hints

import tyro

from rayrec.fields import flag
from rayrec.objectives import DEFAULT, OBJECTIVES, Objective


def _flag(name: str, kind: Any, default: Any, text: str) -> Any:
    return name, Annotated[kind, tyro.conf.arg(help=text)], field(default=default)


def _setting(name: str) -> Any:
    """A setting of several objectives: their types, None for the objective's own default, and their lines of help."""
    types, lines = [], defaultdict[str, dict[Any, list[str]]](lambda: defaultdict(list))
    for objective, kind in OBJECTIVES.items():
        if (one := kind.__dataclass_fields__.get(name)) is not None:
            types.append(get_type_hints(kind)[name])
            lines[one.metadata.get("doc", name)][one.default].append(objective)
    texts = []
    for doc, owners in lines.items():
        each = [("" if value is None else f"{value} for ") + ", ".join(names) for value, names in owners.items()]
        texts.append(f"{doc} ({'; '.join(each)}).")
    return _flag(name, Union[(*types, None)], None, " ".join(texts))


def _settings() -> Any:
    """A dataclass of ``objective``, every setting that an objective has, and ``smoothing``."""
    names: Any = tyro.extras.literal_type_from_choices(OBJECTIVES)
    objective = _flag("objective", names, DEFAULT, "Chosen against rejected answers, by this loss.")
    settings = dict.fromkeys(one.name for kind in OBJECTIVES.values() for one in fields(kind))
    able = {name: "smoothing" in kind.reads for name, kind in OBJECTIVES.items() if kind.smooths}
    text = (
        f"Label smoothing by the doubt of a SASRec oracle in each pair, of {', '.join(able)}; `auto` smooths "
        f"{', '.join(name for name, needed in able.items() if needed)} only."
    )
    smoothing = _flag("smoothing", Literal["auto", "none", "sasrec"], "auto", text)
    return make_dataclass("Settings", [objective, *map(_setting, settings), smoothing], frozen=True)


@dataclass(frozen=True)
class LossConfig(_settings()):
    """Loss of the preference step. A setting that is left out has the objective's own default; one that the objective
    does not have is refused."""


def make_objective(loss: LossConfig) -> Objective:
    """Return the objective with its settings; ValueError for one that it does not have, or out of range."""
    kind, name = OBJECTIVES[loss.objective], loss.objective
    own = [one.name for one in fields(kind)]
    settings = [one.name for one in fields(loss) if one.name not in ("objective", "smoothing")]
    given = {one: value for one in settings if (value := getattr(loss, one)) is not None}
    for one in given.keys() - own:
        raise ValueError(f"--objective {name} has no {flag(one)}; it has {', '.join(map(flag, own)) or 'no settings'}.")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"--objective {name}: {error}") from error


def resolve(loss: LossConfig) -> LossConfig:
    """Return the loss with all settings of its objective and ``smoothing`` decided; ValueError where it cannot be."""
    objective, name, smoothing = make_objective(loss), loss.objective, loss.smoothing
    needed = "smoothing" in objective.reads
    if smoothing == "auto":
        smoothing = "sasrec" if needed else "none"
    if smoothing == "none" and needed:
        raise ValueError(f"--smoothing none: --objective {name} reads smoothed labels. Leave --smoothing out.")
    if smoothing != "none" and not objective.smooths:
        able = ", ".join(sorted(other for other, kind in OBJECTIVES.items() if kind.smooths))
        raise ValueError(f"--smoothing {smoothing}: --objective {name} cannot smooth labels. Take one of {able}.")
    return dataclasses.replace(loss, smoothing=smoothing, **dataclasses.asdict(objective))
