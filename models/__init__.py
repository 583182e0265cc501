"""Feature tables to performance models, one per target, and the ranking API."""
