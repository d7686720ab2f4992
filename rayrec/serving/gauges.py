"""Prometheus metrics of the service."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Total

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Window:
    """DivRatio and ORRatio (rayrec.metrics) of the last lists, kept as counts of titles."""

    def __init__(self, size: int):
        self.size = size
        self._lists: deque[tuple[str, ...]] = deque()
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._lists)

    def add(self, titles: Sequence[str]) -> None:
        """Take a list in, and the oldest out where there are more than ``size``."""
        self._lists.append(tuple(titles))
        self._counts.update(titles)
        if len(self._lists) > self.size:
            self._counts.subtract(oldest := self._lists.popleft())
            for title in set(oldest):
                if not self._counts[title]:
                    del self._counts[title]

    def div_ratio(self) -> float:
        """Distinct titles over all places; NaN without any."""
        return len(self._counts) / total if (total := self._counts.total()) else float("nan")

    def or_ratio(self) -> float:
        """The share of all places that the three most frequent titles take; NaN without any."""
        most = sum(heapq.nlargest(3, self._counts.values()))
        return most / total if (total := self._counts.total()) else float("nan")


class Gauges:
    """The metrics of one service, by the policy that answered."""

    def __init__(self, window: int):
        self.window, self.windows, self.hits = window, dict[str, Window](), dict[str, deque[bool]]()
        self.registry = made = CollectorRegistry()
        self._requests = Total("rayrec_requests", "Requests by path and status.", ["path", "status"], registry=made)
        self._latency = Histogram(
            "rayrec_latency_seconds", "Seconds of answered requests.", ["policy"], buckets=_SECONDS, registry=made
        )
        self._sizes = Histogram(
            "rayrec_batch_size", "Requests that were answered together.", buckets=_SIZES, registry=made
        )
        self._fallbacks = Total("rayrec_fallbacks", "Lists of popular titles.", ["policy"], registry=made)
        self._waiting = Gauge("rayrec_waiting", "Requests that wait or are being answered.", registry=made)
        self._version = Gauge("rayrec_version", "Number of the version that is served.", registry=made)
        self._div_ratio = Gauge("rayrec_div_ratio", "DivRatio of the last lists.", ["policy"], registry=made)
        self._or_ratio = Gauge("rayrec_or_ratio", "ORRatio of the last lists.", ["policy"], registry=made)
        self._outcomes = Total("rayrec_outcomes", "Lists whose outcome is known.", ["policy", "hit"], registry=made)
        self._hit_ratio = Gauge("rayrec_hit_ratio", "HR of the last outcomes.", ["policy"], registry=made)
        self._lists = Gauge("rayrec_window_lists", "Lists from which the ratios are.", ["policy"], registry=made)

    def requested(self, path: str, status: int) -> None:
        """Count an answered request."""
        self._requests.labels(path, str(status)).inc()

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._sizes.observe(size)

    def answered(self, policy: str, seconds: float, titles: Sequence[str], fallback: bool) -> None:
        """Count a list."""
        self._latency.labels(policy).observe(seconds)
        self.windows.setdefault(policy, Window(self.window)).add(titles)
        if fallback:
            self._fallbacks.labels(policy).inc()

    def chosen(self, policy: str, hit: bool) -> None:
        """Count what was chosen after a list."""
        self._outcomes.labels(policy, str(int(hit))).inc()
        self.hits.setdefault(policy, deque(maxlen=self.window)).append(hit)

    def text(self, waiting: int, version: int) -> bytes:
        """Return all metrics in Prometheus' text format."""
        self._waiting.set(waiting)
        self._version.set(version)
        for policy, window in self.windows.items():
            self._div_ratio.labels(policy).set(window.div_ratio())
            self._or_ratio.labels(policy).set(window.or_ratio())
            self._lists.labels(policy).set(len(window))
        for policy, hits in self.hits.items():
            self._hit_ratio.labels(policy).set(sum(hits) / len(hits))
        return generate_latest(self.registry)
