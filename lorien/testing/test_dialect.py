"""``pytest --pyargs lorien.testing`` collects the suites here."""

from lorien.testing.live_suite import *  # noqa: F403
from lorien.testing.log_suite import *  # noqa: F403
