"""The contract of a dialect as tests, for those who write one.

    pytest --pyargs lorien.testing --dialect mine --dialect-log LOG [--dialect-model MODEL]

``LOG`` is a log of the dialect with ten records or more, one a line of its last file, all of them readable; ``MODEL``,
for a live dialect, is what its ``extract`` takes. The dialect must be installed: its entry point names it.
"""
