"""What the stores on AWS share: URLs, clients, and errors told as something to do."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from lorien.errors import BadInput, LorienError, MissingExtra

OPTIONS = ("region", "endpoint_url")
MAX_ATTEMPTS = 8
"""Tries of one request, unless the user's AWS configuration says another number: some 30 seconds of an outage."""
MAX_CONNECTIONS = 16
MAX_PAUSE_S = 20.0
"""The longest wait between two tries, as boto3 has it."""

_CREDENTIALS = "the credentials are missing, wrong or expired: aws configure, aws sso login, or set AWS_PROFILE"
_FIXES = {
    "AccessDenied": "these credentials may not do that: docs/aws.md lists the permissions that Lorien needs",
    "NoSuchBucket": "give another bucket, or make it: aws s3 mb s3://BUCKET",
    "ResourceNotFoundException": "give another table or region, or make it: lorien database create URL",
    "NoRegionError": "give ?region=... in the URL, or set AWS_DEFAULT_REGION",
} | dict.fromkeys(
    (
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidSignature",
        "MissingAuthenticationToken",
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "SignatureDoesNotMatch",
        "TokenRetrievalError",
        "UnauthorizedSSOTokenError",
        "UnrecognizedClient",
    ),
    _CREDENTIALS,
)


class Service:
    """A service of AWS at the place a URL names: ``scheme://name/path?region=...&endpoint_url=...``.

    Credentials, and what the URL leaves out, are found where boto3 finds them. Safe across threads, forks and pickling.

    Raises
    ------
    BadInput
        The URL has no name, or an option that is none.
    MissingExtra
        boto3 is not installed.
    """

    def __init__(self, service: str, url: str) -> None:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        if not parts.netloc or set(options) - set(OPTIONS):
            raise BadInput(f"{url!r}: write {parts.scheme}://NAME, with ?{'=...&'.join(OPTIONS)}=... where needed")
        if not options.get("endpoint_url", "http://").startswith(("http://", "https://")):
            raise BadInput(f"{url!r}: an endpoint_url begins with http:// or https://")
        try:
            import boto3  # noqa: F401
        except ImportError:
            raise MissingExtra("boto3", "aws") from None
        self.name = parts.netloc
        self.path = parts.path.strip("/")
        self._service = service
        self._url = url
        self._options = options
        self._client: tuple[int, Any] | None = None

    @property
    def client(self) -> Any:
        """The boto3 client of this process."""
        if self._client is None or self._client[0] != os.getpid():
            # A forked child that went on with its parent's connections would read the parent's answers.
            self._client = os.getpid(), self._connect()
        return self._client[1]

    def with_body(self, ask: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], bytes]:
        """An answer and the whole of its body. When the body breaks off or is short, the request is sent again.

        boto3 tries a request again until an answer begins, and no longer where the body is a stream. Every such body
        that does not become a file is read here, as often as boto3 tries.

        Raises
        ------
        botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError
            What the request raises, or ``ResponseStreamingError`` when the last body broke off too.
        """
        from botocore.exceptions import BotoCoreError, IncompleteReadError, ResponseStreamingError

        attempts = self.client.meta.config.retries["total_max_attempts"]
        tried = 0
        while True:
            answer = ask()
            body = answer["Body"]
            try:
                content: bytes = body.read()
                if len(content) != answer.get("ContentLength", len(content)):
                    raise IncompleteReadError(actual_bytes=len(content), expected_bytes=answer["ContentLength"])
                return answer, content
            except Exception as error:  # of boto3, urllib3, ssl or the system: the body was not read
                tried += 1
                if tried >= attempts and isinstance(error, BotoCoreError):
                    raise
                if tried >= attempts:
                    raise ResponseStreamingError(error=error) from error
            finally:
                body.close()
            time.sleep(random.random() * min(2.0 ** (tried - 1), MAX_PAUSE_S))

    def close(self) -> None:
        """Close the connections; the next use opens others."""
        if self._client is not None and self._client[0] == os.getpid():
            self._client[1].close()
        self._client = None

    def __reduce__(self) -> Any:
        return _unpickled, (self._service, self._url)

    def _connect(self) -> Any:
        import boto3
        from botocore.config import Config
        from botocore.session import get_session

        core = get_session()
        mode, attempts = (core.get_config_variable(name) for name in ("retry_mode", "max_attempts"))
        config = Config(
            retries={"mode": mode, "total_max_attempts": attempts or MAX_ATTEMPTS},
            max_pool_connections=MAX_CONNECTIONS,
            connect_timeout=10,
        )
        session = boto3.Session(botocore_session=core, region_name=self._options.get("region"))
        return session.client(self._service, endpoint_url=self._options.get("endpoint_url"), config=config)


@lru_cache
def _unpickled(service: str, url: str) -> Service:
    """One for all tasks of a worker: each would spend a quarter of a second on a client of its own."""
    return Service(service, url)


@contextmanager
def explained(error_type: type[LorienError], what: str, effect: str) -> Iterator[None]:
    """Turn what boto3 raises into ``error_type``: what failed, why, what it left behind, and what to do."""
    from botocore.exceptions import BotoCoreError, ClientError
    from s3transfer.exceptions import RetriesExceededError

    try:
        yield
    except (BotoCoreError, ClientError, RetriesExceededError) as error:
        fix = _FIXES.get(code_of(error), "see that the endpoint can be reached, then run again")
        raise error_type(f"{what}: {error}. {effect} Fix: {fix}") from error


def code_of(error: BaseException) -> str:
    """The service's code of an error, else the name of its class."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        # One thing has two names: DynamoDB's end in "Exception", S3's do not.
        short = code.removesuffix("Exception")
        return short if short in _FIXES else code
    return type(error).__name__
