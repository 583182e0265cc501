"""Lorien: good schedules, in seconds, for deep-learning operators that nobody has tuned yet."""

__version__ = "0.1.0"
