"""Settings of objectives that learn from groups of the policy's own titles, refused where they do not fit together."""

from rayrec.config import Config
from rayrec.negatives import NEGATIVES, mixture
from rayrec.objectives import OBJECTIVES


def check_groups(config: Config) -> None:
    """Refuse titles that the objective cannot learn from, and groups of another policy than the one that is moved.

    Raises:
        ValueError: with the setting and the remedy.
    """
    train, name = config.train, config.loss.objective
    kind, batch = OBJECTIVES[name], train.prefer_batch
    for sampler in mixture.parse(train.negatives):
        makes_groups = NEGATIVES[sampler].groups
        if kind.shape.groups and not makes_groups:
            of = " or ".join(one for one, other in NEGATIVES.items() if other.groups)
            once = f" --rows-per-iteration {batch} --prefer-epochs 1" if kind.on_policy else ""
            raise ValueError(
                f"--objective {name} learns from groups that may hold the target, and --negatives {sampler} makes "
                f"rejected titles. Take --negatives {of} --num-negatives 16 --no-sft{once}."
            )
        if makes_groups and not kind.shape.groups:
            raise ValueError(
                f"--negatives {sampler} makes groups that may hold the target, and --objective {name} would reject it. "
                "Take --objective gspo --num-negatives 16 --no-sft, or --negatives self_play_beam."
            )
    if not kind.shape.groups:
        return
    if config.data.protocol == "candidates":
        raise ValueError(
            f"--objective {name}: its groups are beams over the whole catalogue, and --protocol candidates asks for "
            "one of 20 titles. Take --protocol open."
        )
    if train.num_negatives < 2:
        raise ValueError(f"--num-negatives {train.num_negatives} is no group to compare in. Take --num-negatives 16.")
    if train.sft:
        raise ValueError(
            f"--objective {name} learns from what the policy wrote at the start of an iteration, and the SFT step "
            "would move the policy before. Add --no-sft."
        )
    rows, epochs = train.rows_per_iteration, train.prefer_epochs
    if kind.on_policy and (rows != batch or epochs != 1):
        raise ValueError(
            f"--objective {name} takes one step on what the policy wrote, and an iteration has {rows} rows in batches "
            f"of {batch}, {epochs} times. Take --rows-per-iteration {batch} --prefer-epochs 1, or --objective gspo, "
            "whose ratio allows for more steps."
        )
