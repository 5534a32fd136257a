"""Fixtures: a certificate authority, a scripted provider, and a gateway between it and the test."""

import contextlib
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, settings

from mitmgate.clock import Clock
from mitmgate.home import Home
from support import gateway as gateways
from support import policies
from support import provider as providers
from support.gateway import Gateway, OpenGateway, Run
from support.policies import OpenPolicy
from support.provider import Provider

# A busy machine is no fault of the code: a test may take its time, and so may the making of its examples.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "provider-ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
async def provider(authority: trustme.CA) -> AsyncIterator[Provider]:
    async with providers.provider(authority) as told:
        yield told


@pytest.fixture
def open_gateway(authority: trustme.CA, ca_file: Path, provider: Provider, home_path: Path) -> OpenGateway:
    """Return how to open a gateway with a policy of more than the defaults: ``open_gateway("usage: leave")``.

    *upstream* are lines of that section beside ``ca`` and ``connect_to``. *port* is where *hosts* are dialled, those of
    *elsewhere* at a port of their own; *env* has what ``env:NAME`` stands for; *trusted* says whether the provider's
    authority is in ``ca``; *clock* is the rooms' own.
    """

    @contextlib.asynccontextmanager
    async def opened(
        text: str = "",
        *,
        upstream: str = "",
        port: int | None = None,
        hosts: tuple[str, ...] = providers.HOSTS[:10],
        elsewhere: Mapping[str, int] | None = None,
        env: Mapping[str, str] | None = None,
        trusted: bool = True,
        run: Run = gateways.run_plainly,
        clock: Clock | None = None,
    ) -> AsyncIterator[Gateway]:
        ca = ca_file if trusted else None
        policy = gateways.policy_for(port or provider.port, ca, hosts, text, upstream, env, elsewhere)
        async with gateways.gateway(home_path, policy, authority, run=run, clock=clock) as running:
            yield running

    return opened


@pytest.fixture
def open_policy(authority: trustme.CA, ca_file: Path, provider: Provider, home_path: Path) -> OpenPolicy:
    """Return how to open a policy that comes with the gateway, as it stands: ``open_policy("saas", env, *hosts)``."""

    def opened(
        name: str, env: Mapping[str, str], *hosts: str, clock: Clock | None = None
    ) -> AbstractAsyncContextManager[Gateway]:
        policy = policies.shipped(name, env, ca_file, provider.port, hosts)
        return gateways.gateway(home_path, policy, authority, clock=clock)

    return opened


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home whose CA was made once; making one costs a quarter of a second."""
    path = tmp_path_factory.mktemp("home")
    Home(path).prepare()
    return path


@pytest.fixture
def home_path(made_home: Path, tmp_path: Path) -> Path:
    """Return a fresh home with that CA."""
    path = tmp_path / "home"
    shutil.copytree(made_home, path)
    return path


@pytest.fixture
async def gateway(open_gateway: OpenGateway) -> AsyncIterator[Gateway]:
    async with open_gateway() as running:
        yield running


@pytest.fixture(params=["h1", "h2"])
def version(request: pytest.FixtureRequest) -> str:
    """Return each HTTP version that a client may speak to the gateway; for ``Gateway.client``."""
    return str(request.param)
