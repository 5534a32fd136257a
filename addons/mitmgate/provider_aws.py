"""Sign requests to Amazon Bedrock (SigV4), with credentials that the gateway holds (policy: ``targets``: ``aws``).

Runs at the attempt, over what really goes out: method, path, query, host and body. botocore (extra ``aws``) makes the
signature and finds the credentials: those of the policy, of a profile, or whatever its own chain finds (environment,
container, instance). Temporary ones are renewed by it, off the loop, before they end.

Signed are ``host``, ``content-type`` and ``x-amz-*`` alone, so that nothing on the way can break a signature by adding
a header. A path goes out as it stands and is encoded once more for the signature, as every service but S3 wants it.

Source: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html (2026-10).
"""

import asyncio
import hashlib
import logging
from typing import Any

from mitmgate.clock import Clock
from mitmgate.errors import StartError
from mitmgate.exchange import Fields
from mitmgate.extras import needed
from mitmgate.fresh import Fresh, Made
from mitmgate.policy.values import Aws
from mitmgate.pool import Failed

KEPT_S = 120.0
"""Credentials of a chain are asked for anew after this long; botocore renews them a quarter of an hour before their
end, so what is kept never outlives it."""

OURS = frozenset({b"authorization", b"x-amz-date", b"x-amz-content-sha256", b"x-amz-security-token"})
"""What a signature consists of; whoever signed before has signed something else."""


class Signer:
    """Signs for one target. Raises ``StartError`` where botocore, or the policy's profile, is not there."""

    def __init__(self, target: str, aws: Aws, clock: Clock) -> None:
        key = f"targets.{target}.aws"
        self.target, self.aws = target, aws
        self._auth = needed("botocore.auth", "aws", key)
        self._request = needed("botocore.awsrequest", "aws", key).AWSRequest
        self._kinds = needed("botocore.credentials", "aws", key)
        logging.getLogger("botocore").setLevel(logging.INFO)  # its debug lines hold session tokens
        self._static = self._of_policy()
        self._chain = None if self._static else self._session(key)
        self._found: Fresh[Any] = Fresh(f"the credentials of {target}", self._find, clock)

    async def sign(self, method: str, url: str, fields: Fields, body: bytes) -> Fields:
        """Return *fields* with the signature of the request that they belong to. Raises ``Failed``."""
        credentials = self._static or await self._found.get()
        kept = [field for field in fields if field[0].lower() not in OURS]
        headers = {name.decode("latin-1"): value.decode() for name, value in kept if is_signed(name)}
        headers["X-Amz-Content-SHA256"] = hashlib.sha256(body).hexdigest()
        request = self._request(method, url, headers, body)
        self._auth.SigV4Auth(credentials, self.aws.service, self.aws.region).add_auth(request)
        added = [(name, value) for name, value in request.headers.items() if name.lower().encode() in OURS]
        return kept + [(name.encode(), value.encode()) for name, value in added]

    def refused(self) -> None:
        """Amazon would not take the credentials: the next call looks for others."""
        self._found.forget()

    # -- credentials

    def _of_policy(self) -> Any:
        aws = self.aws
        if aws.access_key_id is None or aws.secret_access_key is None:
            return None
        return self._kinds.Credentials(aws.access_key_id, aws.secret_access_key, aws.session_token)

    def _session(self, key: str) -> Any:
        session = needed("botocore.session", "aws", key).Session(profile=self.aws.profile)
        try:
            session.get_scoped_config()
        except Exception as error:  # botocore has a class of its own for each thing that can be wrong in its files
            raise StartError(f"{key}: {error}") from error
        return session

    async def _find(self) -> Made[Any]:
        """Return the credentials of the chain; it may read files and ask other machines."""
        try:
            found = await asyncio.to_thread(self._frozen)
        except Exception as error:
            raise Failed("connect", f"no AWS credentials for {self.target}: {type(error).__name__}") from error
        if found is None:
            raise Failed("connect", f"no AWS credentials for {self.target}: botocore found none")
        return Made(found, KEPT_S)

    def _frozen(self) -> Any:
        credentials = self._chain.get_credentials() if self._chain else None
        return credentials.get_frozen_credentials() if credentials else None


def is_signed(name: bytes) -> bool:
    """Return whether a header of this name goes into the signature."""
    name = name.lower()
    return name in (b"host", b"content-type") or name.startswith(b"x-amz-")
