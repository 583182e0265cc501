"""What a service tells Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from lorien.models import Ranker

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 40, 80)


class Metrics:
    """The counters of one service; nothing is shared with another in the same process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter("lorien_requests", "Requests answered.", ("route", "status"), registry=self._registry)
        self.seconds = Histogram(
            "lorien_request_seconds", "Seconds to answer.", ("route",), buckets=_SECONDS, registry=self._registry
        )
        self.busy = Gauge("lorien_requests_busy", "Requests being answered now.", registry=self._registry)
        self.candidates = Counter("lorien_candidates_ranked", "Candidates scored.", registry=self._registry)
        self.delivered = Counter("lorien_delivered", "Schedules delivered.", ("source",), registry=self._registry)
        self._models = Gauge(
            "lorien_model", "1 for each model loaded.", ("dialect", "target", "version"), registry=self._registry
        )
        self._problems = Gauge("lorien_model_problems", "Models that could not be loaded.", registry=self._registry)

    def loaded(self, rankers: Sequence[Ranker], problems: int) -> None:
        """Set what is loaded now."""
        self._models.clear()
        for ranker in rankers:
            self._models.labels(ranker.model.dialect, ranker.model.target, ranker.version).set(1)
        self._problems.set(problems)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
