"""Room on the cluster for trainers and generators, held before anything is loaded."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayrec.config import AnyConfig, Config

_log = logging.getLogger(__name__)


Bundle = dict[str, float]


def trainer_bundles(config: AnyConfig, gpu: bool) -> list[Bundle]:
    """What each training worker takes."""
    placement = config.placement
    return [_bundle(gpu, placement.placement == "shared", placement.train_resource)] * placement.train_workers


def generator_bundles(config: AnyConfig, gpu: bool) -> list[Bundle]:
    """What one generator takes: a bundle for each of its GPUs, which share 1 of the resource, and one on a CPU."""
    placement = config.placement
    cards = placement.tensor_parallel if gpu else 1
    return [_bundle(gpu, placement.placement == "shared", placement.generate_resource, 1 / cards)] * cards


def _bundle(gpu: bool, shared: bool, resource: str | None, share: float = 1.0) -> Bundle:
    return {"CPU": 1.0} | ({"GPU": 0.5 if shared else 1.0} if gpu else {}) | ({resource: share} if resource else {})


@dataclass(frozen=True)
class Reserved:
    """Placement groups of one run; Ray gives them back when the driver ends."""

    trainers: Any = None
    generators: list[Any] = field(default_factory=list)
    alone: bool = False
    """Whether the cluster was made for this run."""

    def free_trainers(self) -> None:
        """Make room for Ray Train, which places its workers itself."""
        from ray.util import remove_placement_group

        if self.trainers is not None:
            remove_placement_group(self.trainers)

    def renew(self, generator: int) -> None:
        """Hold anew what one generator holds, which ends whatever of a dead one is still there.

        vLLM's workers of several cards are actors of an engine that does not hear of the death of who asked for it.
        """
        from ray.util import placement_group, remove_placement_group

        old = self.generators[generator]
        remove_placement_group(old)
        self.generators[generator] = placement_group(old.bundle_specs, strategy="PACK")

    def free_orphans(self) -> None:
        """Give back what Ray Train's workers held when its controller died.

        Elsewhere an actor of Ray Train does; it asks the dashboard, which a cluster of our own has not.
        """
        from ray import PlacementGroupID
        from ray.util import placement_group_table, remove_placement_group
        from ray.util.placement_group import PlacementGroup

        known = {group.id.hex() for group in self.generators}
        for name, found in placement_group_table().items() if self.alone else ():
            if name not in known and found["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def reserve(config: AnyConfig, gpu: bool, train: bool = True, generate: bool = True, alone: bool = False) -> Reserved:
    """Hold what the plan takes, waiting for it as long as ``--wait-for-resources`` says.

    Raises:
        ValueError: the cluster has not that much free; the message says what was asked, what is free, and where.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    placement = config.placement
    if not gpu and placement.device == "auto" and (cards := ray.cluster_resources().get("GPU", 0)):
        _log.warning(
            "--device auto took CPUs: this cluster's %g GPUs joined later, and this run does not use them. To use "
            "them, stop the run and add --device gpu.",
            cards,
        )
    each, one = trainer_bundles(config, gpu), generator_bundles(config, gpu)
    trainers = placement_group(each, strategy="PACK") if train else None
    count = placement.generators if generate else 0
    generators = [placement_group(one, strategy="PACK") for _ in range(count)]
    groups = [group for group in (trainers, *generators) if group is not None]
    wanted = [*(each if train else []), *one * count]
    # Free resources are reported with some delay, and a group of nodes that autoscales needs minutes.
    begun = told = time.monotonic()
    while not (all(map(_held, groups)) and _room_for_data(wanted)):
        if time.monotonic() - begun > max(10.0, placement.wait_for_resources):
            message = _shortage(wanted, config)
            for group in groups:
                remove_placement_group(group)
            raise ValueError(message)
        if time.monotonic() - told > 30:
            _log.info(_shortage(wanted, config))
            told = time.monotonic()
        time.sleep(0.05)
    return Reserved(trainers, generators, alone)


def _held(group: Any) -> bool:
    """Whether a placement group has its resources; its own ``wait(0)`` may say no although it has."""
    from ray.util import placement_group_table

    return placement_group_table(group)["state"] == "CREATED"


def room_for_trainers(config: Config, gpu: bool, counts: Sequence[int], held: int, settle: float, wait: float) -> int:
    """The most of ``counts`` workers that there is room for beside ``held`` ones, the generators and Ray Data.

    More than was found is waited for ``settle`` seconds; for the fewest ``wait`` seconds, then there is room for 0.
    """
    import ray
    from ray.util import placement_group, remove_placement_group

    bundle, *_ = trainer_bundles(config, gpu)
    own = sum(one["CPU"] for one in generator_bundles(config, gpu)) * config.placement.generators
    begun = time.monotonic()
    groups = [placement_group([bundle]) for _ in range(counts[-1])]
    try:
        while True:
            cpus = int(ray.cluster_resources().get("CPU", 0) - own - held - 1)
            ready = min(cpus, sum(map(_held, groups)))
            found = max((n for n in counts if n <= ready), default=0)
            waited = time.monotonic() - begun
            if found == counts[-1] or waited > (settle if found else max(settle, wait)):
                return found
            time.sleep(0.1)
    finally:
        for group in groups:
            remove_placement_group(group)


def _room_for_data(wanted: list[Bundle]) -> bool:
    """Whether Ray Data has a CPU that nobody holds; without one it would wait for ever."""
    import ray

    # What is free is told some seconds late, so what there is at all is asked too.
    left = ray.cluster_resources().get("CPU", 0) - sum(bundle["CPU"] for bundle in wanted)
    return min(left, ray.available_resources().get("CPU", 0)) >= 1


def _shortage(wanted: Iterable[Bundle], config: AnyConfig) -> str:
    """What the plan asks for, what is free, and on which nodes."""
    placement, (asked, free) = config.placement, _asked_and_free([{"CPU": 1.0}, *wanted])
    return (
        f"The plan asks for {asked} ({placement.train_workers} training workers, {placement.generators} generators, "
        f"one CPU for Ray Data); {free}\n"
        "Lower --train-workers, --generators or --tensor-parallel, add nodes, or wait for them with "
        "--wait-for-resources SECONDS."
    )


def trainers_shortage(config: AnyConfig, gpu: bool, workers: int) -> str:
    """What training workers that did not come up ask for, what is free, and on which nodes."""
    asked, free = _asked_and_free(trainer_bundles(config, gpu)[:1] * workers)
    return f"{workers} training workers ask for {asked}; {free}"


def _asked_and_free(bundles: Iterable[Bundle]) -> tuple[str, str]:
    import ray
    from ray._private.state import available_resources_per_node

    asked = Counter[str]()
    for bundle in bundles:
        asked.update(bundle)  # pyright: ignore[reportArgumentType], halves of cards too
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    free = available_resources_per_node()
    lines = []
    for identity, node in alive.items():
        parts = [f"{free.get(identity, {}).get(n, 0):g} of {node['Resources'].get(n, 0):g} {n}" for n in asked]
        lines.append(f"\n  {node['NodeManagerAddress']} ({identity[:8]}): {', '.join(parts)} free")
    shape = ", ".join(f"{amount:g} {name}" for name, amount in asked.items())
    return shape, f"the cluster's {len(alive)} nodes have, beside what this run holds already:{''.join(lines)}"
