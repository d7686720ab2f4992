"""Which GPUs trainers and generators get, on a Ray whose nodes say that they have some; started by test_gpus.py.

Arguments are the GPUs of each node. Each line of the input is a plan: placement, trainers, generators and cards of a
generator. The output's last line has, for each plan, the cards of its trainers and generators as [node, number].
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayrec.cluster.reserve import Reserved, generator_bundles, reserve, trainer_bundles
from rayrec.config import Config
from rayrec.methods import parse


@ray.remote
class Seat:
    """An actor that says where it is."""

    def cards(self) -> list[list[Any]]:
        """The node and the number of each of its GPUs."""
        return [[ray.get_runtime_context().get_node_id(), int(card)] for card in ray.get_gpu_ids()]


def seat(bundle: dict[str, float], group: Any, index: int) -> Any:
    """An actor with the resources of one bundle of a placement group."""
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return Seat.options(num_cpus=bundle["CPU"], num_gpus=bundle["GPU"], scheduling_strategy=place).remote()


def trainers_of(config: Config, held: Reserved) -> tuple[Any, list[Any]]:
    """The group and actors that Ray Train makes of its settings once the trainers' own group is free."""
    bundles = trainer_bundles(config, True)
    held.free_trainers()
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=held.nodes or None)
    ray.get(group.ready(), timeout=30)
    return group, [seat(bundle, group, i) for i, bundle in enumerate(bundles)]


def cards_of(plan: str) -> dict[str, list[list[list[Any]]]]:
    """Place one plan, ask every actor for its cards, and give all back."""
    placement, trainers, generators, cards = plan.split()
    flags = ["--train-workers", trainers, "--generators", generators, "--tensor-parallel", cards, "--device", "gpu"]
    config = parse("", ["--placement", placement, *flags])
    held = reserve(config, True)
    own = generator_bundles(config, True)
    generating = [[seat(one, group, i) for i, one in enumerate(own)] for group in held.generators]
    group, training = trainers_of(config, held)
    found = {
        "trainers": [ray.get(one.cards.remote()) for one in training],
        "generators": [[card for one in some for card in ray.get(one.cards.remote())] for some in generating],
    }
    for actor in [*training, *[one for some in generating for one in some]]:
        ray.kill(actor)
    for one in (group, *held.generators):
        remove_placement_group(one)
    return found


def main(nodes: list[int], plans: list[str]) -> None:
    """Start the nodes and print what :func:`cards_of` finds."""
    os.environ["RAY_API_SERVER_ADDRESS"] = "http://127.0.0.1:0"
    size = {"object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(True, head_node_args={"num_gpus": nodes[0], "num_cpus": 2 * nodes[0] + 2, **size})
    for cards in nodes[1:]:
        cluster.add_node(num_gpus=cards, num_cpus=2 * cards + 2, object_store_memory=10**8)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    print("RESULT", json.dumps([cards_of(plan) for plan in plans]))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main([int(one) for one in sys.argv[1:]], sys.stdin.read().splitlines())
