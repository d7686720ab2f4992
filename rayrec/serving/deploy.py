"""The service on Ray Serve: a front that takes HTTP requests, and replicas of the model behind it."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import logging
import os
import socket
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from rayrec import fields, signals
from rayrec.cluster import connect
from rayrec.cluster.watchdog import within
from rayrec.config import Config, PlacementConfig
from rayrec.recommend import Recommender
from rayrec.recommend.batch import check_placement, has_gpu
from rayrec.recommend.catalogues import read_catalogue
from rayrec.report import terminal
from rayrec.runs.lease import kill_children
from rayrec.serving.model import Model
from rayrec.serving.settings import ServeConfig
from rayrec.serving.users import read_users
from rayrec.serving.versions import Served, Versions

NAME = "rayrec"
#: Where the token is read from, unless --token has it.
TOKEN = "RAYREC_TOKEN"
#: Ray Serve's setting of what its proxies do in addition, and ours; read where a cluster's processes start.
PROXY = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "rayrec.serving.proxy:middlewares"
#: Times that a batch is sent again after the death of its replica; one that kills every replica must end.
_AGAIN = 2
#: Seconds in which the first replica must have loaded its policy.
_START_SECONDS = 900.0
#: Seconds that the end may take.
_END_SECONDS = 20.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Calls:
    """The model's replicas by Ray Serve's handle."""

    def __init__(self, handle: Any):
        self.handle = handle

    async def answer(self, served: Served, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        from rayrec.serving.bodies import Refusal
        from rayrec.serving.service import RETRY

        for _ in range(1 + _AGAIN):
            try:
                return await self.handle.answer.remote(served, asked)
            except (RayActorError, BackPressureError, DeploymentUnavailableError):
                await asyncio.sleep(0.1)
        raise Refusal(503, "the replica that was to answer is gone. Try again.", RETRY)

    async def prepare(self, number: int) -> list[dict[str, Any]]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import DeploymentUnavailableError

        try:
            found = await self.handle.broadcast("prepare", number).results_async(return_exceptions=True)
        except DeploymentUnavailableError:
            return []
        for one in found:  # a replica that died loads the version when it is back
            if isinstance(one, BaseException) and not isinstance(one, RayActorError):
                raise one
        return [one for one in found if not isinstance(one, BaseException)]

    async def state(self) -> dict[str, Any]:
        from ray.exceptions import RayActorError

        from rayrec.serving.bodies import Refusal
        from rayrec.serving.service import RETRY

        try:
            return await self.handle.state.remote()
        except RayActorError:
            raise Refusal(503, "no replica is ready. Try again.", RETRY) from None


class Front:
    """The deployment of Ray Serve that takes HTTP requests; the only one of its kind, so that changes have an order."""

    def __init__(self, config: ServeConfig, folder: str, token: str | None, handle: Any):
        from rayrec.serving.service import Service

        self.token = token
        self.service = Service(
            Versions(folder),
            Calls(handle),
            read_users(config),
            lanes=config.placement.generators,
            queue=config.queue,
            batch=config.batch,
            timeout=config.timeout,
            window=config.window,
            outcomes=config.outcomes,
            explore=config.explore,
        )

    def __serve_build_asgi_app__(self) -> Any:
        from rayrec.serving.web import make_app

        return make_app(self.service, self.token)


def application(config: ServeConfig, folder: str, token: str | None, gpu: bool) -> Any:
    """Return the application of Ray Serve. ``folder`` has the versions; ``token`` is the digest of the token."""
    from ray import serve

    placement = config.placement
    threads = placement.threads or max(1, ((os.cpu_count() or 1) - 1) // placement.generators)
    options: dict[str, Any] = {"num_gpus": 1} if gpu else {"num_cpus": 1}
    if placement.generate_resource:
        options["resources"] = {placement.generate_resource: 1}
    # A replica that was killed is found by its calls at once; the check finds one that hangs.
    model: Any = serve.deployment(
        Model,
        name="Model",
        num_replicas=placement.generators,
        max_ongoing_requests=16,
        ray_actor_options=options,
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        max_constructor_retry_count=3,
    )
    front: Any = serve.deployment(
        serve.ingress()(Front),
        name="Front",
        # More than the queue, whose own refusals have the time of the next try.
        max_ongoing_requests=4 * config.queue,
        max_queued_requests=config.queue,
        backpressure_config={"retry_after_s": 1},
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        max_constructor_retry_count=3,
    )
    device = "cuda" if gpu else "cpu"
    return front.bind(config, folder, token, model.bind(folder, device, threads))


def build(args: dict[str, Any]) -> Any:
    """Return the application for a manifest of KubeRay or `serve run`: fields of ServeConfig, and ``generators``.

    The device is `gpu` unless ``device`` is `cpu`. The token is read from RAYREC_TOKEN.

    Raises:
        ValueError: an unknown field, no ``state``, no token, or a policy that cannot be opened.
    """
    from rayrec.serving.web import digest

    given = {name: args[name] for name in args if name in PlacementConfig.__dataclass_fields__}
    rest = {name: args[name] for name in args if name not in given}
    if unknown := [name for name in rest if name not in ServeConfig.__dataclass_fields__]:
        raise ValueError(f"args: found {unknown}, wanted settings of jobs/serve.py. Remove them.")
    config = ServeConfig(**rest, placement=PlacementConfig(**given))
    token = config.token or os.environ.get(TOKEN)
    if not token or not config.state:
        raise ValueError(f"A service on a cluster wants {TOKEN} in the environment of its pods, and `state` in args.")
    _check(config)
    begin(config, config.state)
    return application(config, config.state, digest(token), config.placement.device != "cpu")


def begin(config: ServeConfig, folder: str) -> None:
    """Make the first version, where the folder of versions has none; ValueError: it cannot be opened."""
    from rayrec.serving.service import resolved

    versions = Versions(folder)
    if versions.served is None:
        Recommender.check(config.policy, config.catalogue, template=config.template)
        catalogue = None
        if config.catalogue:  # a copy: the file may change, and a version may not
            read = read_catalogue(config.catalogue)
            catalogue = versions.keep_catalogue(read.titles, read.popularity.tolist())
        versions.begin(resolved(config.policy), config.template, catalogue)
    else:
        version = versions.begin(config.policy, config.template, None)
        Recommender.check(version.policy, version.catalogue, template=version.template)
        terminal.log("state", f"{folder} has version {version.number}, policy {version.policy}: it is served")


def run(config: ServeConfig) -> None:
    """Serve until a signal comes.

    Raises:
        ValueError: settings, policy, catalogue, histories or port that do not fit, before an actor starts.
    """
    terminal.show_log()
    token = config.token or os.environ.get(TOKEN)
    _check(config)
    _check_address(config, token)
    with tempfile.TemporaryDirectory(prefix="rayrec-serve-", ignore_cleanup_errors=True) as scratch:
        folder = str(Path(config.state or scratch).expanduser().absolute())
        begin(config, folder)
        read_users(config)
        signals.check()
        gpu = has_gpu(config.placement)
        os.environ.setdefault(*PROXY)
        own = connect.connect(Config(placement=config.placement))
        if not own and config.state is None:
            raise ValueError("A service on a cluster keeps its versions where all nodes see them. Add --state DIR.")
        try:
            _serve(config, folder, token, gpu)
        except KeyboardInterrupt:
            terminal.log("stopped", "no request is taken any more")
        finally:
            _end(own)


def _serve(config: ServeConfig, folder: str, token: str | None, gpu: bool) -> None:
    from ray import serve

    from rayrec.serving.service import resolved
    from rayrec.serving.web import digest

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    paths = {name: getattr(config, name) for name in ("histories", "data") if getattr(config, name)}
    paths = {name: str(Path(path).expanduser().absolute()) for name, path in paths.items()}
    settings = replace(config, token=None, policy=resolved(config.policy), **paths)
    made = application(settings, folder, digest(token) if token else None, gpu)

    def start() -> None:
        serve.start(http_options={"host": config.host, "port": config.port})
        serve.run(made, name=NAME, route_prefix="/")

    within(_START_SECONDS, "starting the service", start)
    host = "127.0.0.1" if config.host == "0.0.0.0" else config.host
    terminal.log("serving", f"http://{host}:{config.port}  (POST /recommend; /docs has all paths)")
    while True:
        signals.pause(1.0)


def _end(own: bool) -> None:
    """End the service, or the cluster that was started for it; a signal has come, so nothing here waits for one."""
    import ray
    from ray import serve

    work = threading.Thread(target=ray.shutdown if own else functools.partial(serve.delete, NAME), daemon=True)
    work.start()
    work.join(_END_SECONDS)
    if own:
        kill_children()


def _check(config: ServeConfig) -> None:
    fields.check(config)
    check_placement(config.placement)
    if importlib.util.find_spec("fastapi") is None:
        raise ValueError(
            "Ray Serve is not installed. Install it: .venv/bin/pip install -c constraints.txt -e '.[serve]'"
        )


def _check_address(config: ServeConfig, token: str | None) -> None:
    if config.host not in _LOOPBACK and not token:
        raise ValueError(
            f"--host {config.host} lets other machines ask, and there is no token. Set {TOKEN}, or leave --host out."
        )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"--host {config.host} --port {config.port}: nothing can listen there ({error}). Take another --port."
            ) from error
