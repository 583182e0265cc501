"""``lorien serve``: ranking, delivery and the schedule database over HTTP; ``client`` is its Python side."""
