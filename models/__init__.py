"""Feature tables to performance models, one per target, and the ranking API."""

from lorien.models.predictor import Ranker, load_ranker

__all__ = ["Ranker", "load_ranker"]
