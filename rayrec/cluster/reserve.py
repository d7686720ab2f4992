"""Room on the cluster for trainers and generators, held before anything is loaded."""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayrec import signals
from rayrec.config import AnyConfig, Config

_log = logging.getLogger(__name__)

Bundle = dict[str, float]

#: Shares of a GPU that a trainer and a generator have (``--placement shared``): two trainers do not fit on one. Ray
#: gives a share of the GPU that has least left, so a generator on a trainer's node gets that trainer's.
TRAINER, GENERATOR = 0.51, 0.49


def shares(config: AnyConfig, gpu: bool) -> bool:
    """Whether trainers and generators have GPUs in common."""
    return gpu and config.placement.placement == "shared"


def cards(config: AnyConfig) -> int:
    """The GPUs of the plan."""
    placement = config.placement
    alone = placement.placement == "shared" or not isinstance(config, Config)
    return placement.train_workers + (0 if alone else placement.generators * placement.tensor_parallel)


def trainer_bundles(config: AnyConfig, gpu: bool) -> list[Bundle]:
    """The resources of each training worker."""
    placement, share = config.placement, TRAINER if shares(config, gpu) else 1.0
    return [_bundle(share if gpu else 0, placement.train_resource)] * placement.train_workers


def generator_bundles(config: AnyConfig, gpu: bool) -> list[Bundle]:
    """The resources of one generator: a bundle for each of its GPUs, which share 1 of the custom resource."""
    placement, share = config.placement, GENERATOR if shares(config, gpu) else 1.0
    count = placement.tensor_parallel if gpu else 1
    return [_bundle(share if gpu else 0, placement.generate_resource, 1 / count)] * count


def total(bundles: Iterable[Bundle]) -> Counter[str]:
    """The sum of some resources."""
    found = Counter[str]()
    for bundle in bundles:
        found.update(bundle)  # pyright: ignore[reportArgumentType], halves of cards too
    return found


def _bundle(gpu: float, resource: str | None, amount: float = 1.0) -> Bundle:
    return {"CPU": 1.0} | ({"GPU": gpu} if gpu else {}) | ({resource: amount} if resource else {})


@dataclass(frozen=True)
class Reserved:
    """Placement groups of one run; Ray gives them back when the driver ends."""

    trainers: Any = None
    generators: list[Any] = field(default_factory=list)
    alone: bool = False  #: whether the cluster was started for this run
    nodes: list[dict[str, str]] = field(default_factory=list)
    """Labels of the node of each trainer that shares its GPU; Ray Train asks for them again."""

    def free_trainers(self) -> None:
        """Make room for Ray Train, which places its workers itself."""
        from ray.util import remove_placement_group

        if self.trainers is not None:
            remove_placement_group(self.trainers)

    def renew(self, generator: int) -> None:
        """Replace a generator's placement group, which ends all actors in it: vLLM's workers outlive it."""
        from ray.util import placement_group, remove_placement_group

        old = self.generators[generator]
        remove_placement_group(old)
        self.generators[generator] = placement_group(old.bundle_specs, strategy=_strategy(old.bundle_specs))

    def free_orphans(self) -> None:
        """Remove what Ray Train's dead controller left in our own cluster; elsewhere Ray Train does that."""
        from ray import PlacementGroupID
        from ray.util import placement_group_table, remove_placement_group
        from ray.util.placement_group import PlacementGroup

        known = {group.id.hex() for group in self.generators}
        for name, found in placement_group_table().items() if self.alone else ():
            if name not in known and found["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))


def reserve(config: AnyConfig, gpu: bool, train: bool = True, generate: bool = True, alone: bool = False) -> Reserved:
    """Hold the resources of the plan; ValueError after ``--wait-for-resources`` names what is asked and free."""
    import ray
    from ray.util import placement_group, remove_placement_group

    placement = config.placement
    if not gpu and placement.device == "auto" and (found := ray.cluster_resources().get("GPU", 0)):
        _log.warning(
            "--device auto took CPUs: this cluster's %g GPUs joined later, and this run does not use them. To use "
            "them, stop the run and add --device gpu.",
            found,
        )
    own, count = generator_bundles(config, gpu), placement.generators if generate else 0
    pairs = shares(config, gpu) and count > 0
    # Where no trainer works either: Ray would put two generators on one GPU.
    wanted = [*(trainers := trainer_bundles(config, gpu) if train or pairs else []), *own * count]
    # Ray reports free resources with some delay, and a group of nodes that autoscales needs minutes.
    begun = logged = time.monotonic()
    groups = list[Any]()

    def held(found: list[Any], data: bool = False) -> list[Any]:
        """Wait until some groups have their resources, and with ``data`` until Ray Data has some too."""
        nonlocal logged
        groups.extend(found)
        while not (all(map(_held, groups)) and (not data or _room_for_data(wanted))):
            if (now := time.monotonic()) - begun > max(10.0, placement.wait_for_resources):
                message = _shortage(wanted, config)
                for group in groups:
                    remove_placement_group(group)
                raise ValueError(message)
            if now - logged > 30:
                _log.info(_shortage(wanted, config))
                logged = now
            signals.pause(0.05)
        return found

    nodes = list[dict[str, str]]()
    if pairs:
        # Ray adds up the shares of a node's GPUs and would put more trainers there than it has: whole ones say where.
        (scout,) = held([placement_group(_whole(trainers, own * count), strategy="PACK")])
        nodes = _nodes(scout)
        groups.remove(scout)
        remove_placement_group(scout)
    label: Any = nodes or None
    train_group = [placement_group(trainers, strategy="PACK", bundle_label_selector=label)] if trainers else []
    if pairs:
        held(train_group)  # before the generators, which then get what is left of the same GPUs
    where: list[Any] = [[one] for one in nodes[:count]] if pairs else [None] * count
    generators = [placement_group(own, strategy=_strategy(own), bundle_label_selector=one) for one in where]
    held(generators if pairs else [*train_group, *generators], data=True)
    return Reserved(train_group[0] if train_group else None, generators, alone, nodes)


def _held(group: Any) -> bool:
    """Whether a placement group has its resources; its own ``wait(0)`` may say no although it has."""
    from ray.util import placement_group_table

    return placement_group_table(group)["state"] == "CREATED"


def _whole(trainers: list[Bundle], generators: list[Bundle]) -> list[Bundle]:
    """A bundle for each GPU of ``trainers``, whole and with what the generator beside a trainer takes."""
    pairs = itertools.zip_longest(trainers, generators, fillvalue=Bundle())
    return [{**total(pair), "GPU": 1.0} for pair in pairs]


def _nodes(group: Any) -> list[dict[str, str]]:
    """The label of the node of each bundle of a placement group."""
    from ray.util import placement_group_table
    from ray.util.placement_group import NODE_ID_LABEL_KEY

    places = placement_group_table(group)["bundles_to_node_id"]
    return [{NODE_ID_LABEL_KEY: places[i]} for i in range(len(places))]


def _strategy(bundles: Sequence[Bundle]) -> str:
    """How the bundles of a generator are placed: on one node where one has so many GPUs, for its policy is fetched
    there, and its cards talk all the time."""
    import ray

    most = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    return "STRICT_PACK" if 1 < len(bundles) <= most else "PACK"


def room_for_trainers(
    config: AnyConfig, gpu: bool, counts: Sequence[int], held: int, settle: float, wait: float
) -> int:
    """The largest of ``counts`` workers that fits beside ``held`` ones, the generators and Ray Data; 0 if none does.

    Waits ``settle`` seconds for more than it found, and ``wait`` seconds for the smallest.
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
    """Whether a CPU is left for Ray Data, which would wait for ever without one."""
    import ray

    # The free resources are some seconds old, so the total counts too.
    left = ray.cluster_resources().get("CPU", 0) - sum(bundle["CPU"] for bundle in wanted)
    return min(left, ray.available_resources().get("CPU", 0)) >= 1


def _shortage(wanted: Iterable[Bundle], config: AnyConfig) -> str:
    """The resources of the plan, and those that are free on each node."""
    placement, (asked, free) = config.placement, _asked_and_free([{"CPU": 1.0}, *wanted])
    return (
        f"The plan asks for {asked} ({placement.train_workers} training workers, {placement.generators} generators, "
        f"one CPU for Ray Data); {free}\n"
        "Lower --train-workers, --generators or --tensor-parallel, add nodes, or wait for them with "
        "--wait-for-resources SECONDS."
    )


def trainers_shortage(config: AnyConfig, gpu: bool, workers: int) -> str:
    """The resources of training workers that did not start, and those that are free on each node."""
    asked, free = _asked_and_free(trainer_bundles(config, gpu)[:1] * workers)
    return f"{workers} training workers ask for {asked}; {free}"


def _asked_and_free(bundles: Iterable[Bundle]) -> tuple[str, str]:
    import ray
    from ray._private.state import available_resources_per_node

    asked, free = total(bundles), available_resources_per_node()
    alive = [node for node in ray.nodes() if node["Alive"]]
    lines = f"the cluster's {len(alive)} nodes have, beside what this run holds already:"
    for node in alive:
        own = free.get(node["NodeID"], {})
        parts = [f"{own.get(n, 0):g} of {node['Resources'].get(n, 0):g} {n}" for n in asked]
        lines += f"\n  {node['NodeManagerAddress']} ({node['NodeID'][:8]}): {', '.join(parts)} free"
    return ", ".join(f"{amount:g} {name}" for name, amount in asked.items()), lines
