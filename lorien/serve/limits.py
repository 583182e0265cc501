"""What a request may be at most; what is larger is refused with a message. Sizes and times are in ``ServeConfig``."""

from __future__ import annotations

MAX_TOP_K = 64
"""Candidates to keep, and to verify."""
MAX_RECORDS = 1000
"""Schedules of an answer that is not streamed."""
MAX_NESTING = 254
"""Lists in lists: no more can be written again, as keys of schedules and answers are."""

TARGET_CHARS = 4096
DIALECT_CHARS = 64
FEATURES_CHARS = 128
FRAMEWORK_CHARS = 256
QUERY_CHARS = 512
"""A name, a pattern or a key to look for."""
NAME_CHARS = 1 << 16
"""A workload's own name, which tells its operators: a fused kernel has a hundred of them."""
MAX_NETWORKS = 4096
MESSAGE_CHARS = 1000
"""An error's message: it may repeat what was sent."""
