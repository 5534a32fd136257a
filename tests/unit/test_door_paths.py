"""Where a path of the base-URL door leads, and where none may lead."""

import pytest

from mitmgate.door_paths import COMPAT, Entry, Local, Nowhere, Place, compat_place, hosts_of, resolve
from mitmgate.policy import Policy
from mitmgate.policy.values import ProviderHosts, Target
from mitmgate.providers import RESERVED, TABLE, Hosts, Provider

CORP = Provider("corp-llm", ("*.corp.example", "llm.corp.example"), "openai")
MANY = Provider("many", ("*.many.example",), "openai")
HOSTS = Hosts([CORP, MANY])
TARGETS = {
    "eu": Target("eu", "azure-openai", "https://aoai-eu.openai.azure.com"),
    "lab": Target("lab", "openai", "http://10.0.0.7:8000/base/v1"),
    "six": Target("six", "openai", "http://[fd00::7]:8000"),
}
POLICY = Policy(targets=TARGETS)


def led(path: str) -> str:
    """Return the URL that *path* leads to, or why it leads nowhere."""
    place = resolve("GET", path, HOSTS, POLICY)
    if isinstance(place, Place):
        return f"{place.scheme}://{place.host}:{place.port}{place.path}"
    if isinstance(place, Nowhere):
        return place.message
    return place.page if isinstance(place, Local) else place.kind


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/openai/chat/completions", "https://api.openai.com:443/v1/chat/completions"),
        ("/openai/v1/chat/completions", "https://api.openai.com:443/v1/chat/completions"),
        ("/openai/v1", "https://api.openai.com:443/v1/v1"),
        ("/openai/responses/resp_1?include=x", "https://api.openai.com:443/v1/responses/resp_1?include=x"),
        ("/v1/acct/gw/openai/chat/completions", "https://api.openai.com:443/v1/chat/completions"),
        ("/v1/acct/gw/anthropic/v1/messages", "https://api.anthropic.com:443/v1/messages"),
        ("/anthropic/v1/messages?beta=true", "https://api.anthropic.com:443/v1/messages?beta=true"),
        (
            "/azure-openai/res/dep/chat/completions?api-version=1",
            "https://res.openai.azure.com:443/openai/deployments/dep/chat/completions?api-version=1",
        ),
        ("/azure-openai/res/openai/v1/responses", "https://res.openai.azure.com:443/openai/v1/responses"),
        (
            "/google-ai-studio/v1beta/models/g:generateContent",
            "https://generativelanguage.googleapis.com:443/v1beta/models/g:generateContent",
        ),
        (
            "/google-vertex-ai/v1/projects/p/locations/europe-west4/publishers/google/models/g:generateContent",
            "https://europe-west4-aiplatform.googleapis.com:443"
            "/v1/projects/p/locations/europe-west4/publishers/google/models/g:generateContent",
        ),
        (
            "/google-vertex-ai/v1/projects/p/locations/global/endpoints",
            "https://aiplatform.googleapis.com:443/v1/projects/p/locations/global/endpoints",
        ),
        (
            "/aws-bedrock/bedrock-runtime/us-east-1/model/a%3A0/converse",
            "https://bedrock-runtime.us-east-1.amazonaws.com:443/model/a%3A0/converse",
        ),
        ("/groq/chat/completions", "https://api.groq.com:443/openai/v1/chat/completions"),
        ("/perplexity-ai/chat/completions", "https://api.perplexity.ai:443/chat/completions"),
        ("/ollama/api/chat", "http://127.0.0.1:11434/api/chat"),
        ("/anthropic/a%2Fb//../x?q=%20+x;z", "https://api.anthropic.com:443/a%2Fb//../x?q=%20+x;z"),
        ("/corp-llm/v1/chat/completions", "https://llm.corp.example:443/v1/chat/completions"),
        ("/target/eu/openai/v1/responses", "https://aoai-eu.openai.azure.com:443/openai/v1/responses"),
        ("/target/lab/chat/completions", "http://10.0.0.7:8000/base/v1/chat/completions"),
        ("/target/lab/v1/chat/completions", "http://10.0.0.7:8000/base/v1/chat/completions"),
        ("/target/six/v1/models", "http://fd00::7:8000/v1/models"),
        ("/v1/acct/gw/target/lab/models", "http://10.0.0.7:8000/base/v1/models"),
        ("/healthz", "healthz"),
        ("/metrics?x=1", "metrics"),
    ],
)
def test_a_path_leads_to_its_url(path: str, url: str) -> None:
    assert led(path) == url


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/", "one of: "),
        ("", "one of: "),
        ("/nobody/v1/x", "no provider 'nobody'"),
        ("/v1/chat/completions", "no provider 'v1'"),
        ("/OpenAI/v1/x", "no provider 'OpenAI'"),
        ("/healthz/deep", "no provider 'healthz'"),
        ("/openai", "/openai/ needs a path"),
        ("/azure-openai/res/dep", "needs {resource}/{deployment}"),
        ("/aws-bedrock/bedrock-runtime/us-east-1", "needs {service}/{region}"),
        ("/target/nobody/x", "no target 'nobody'; known: eu, lab, six"),
        ("/many/v1/x", "many hosts"),
    ],
)
def test_a_path_that_leads_nowhere_says_why(path: str, says: str) -> None:
    place = resolve("GET", path, HOSTS, POLICY)

    assert isinstance(place, Nowhere)
    assert says in place.message


@pytest.mark.parametrize(
    "path",
    [
        "/azure-openai/evil.example#/dep/chat/completions",
        "/azure-openai/user@evil.example/dep/chat/completions",
        "/azure-openai/evil.example:444/dep/chat/completions",
        "/azure-openai/evil.example\\/dep/chat/completions",
        "/azure-openai/[/dep/chat/completions",
        "/azure-openai/res/dep#/x",
        "/azure-openai//dep/chat/completions",
        "/aws-bedrock/s3/us-east-1/bucket",
        "/aws-bedrock/bedrock-runtime/evil.example#/x",
        "/google-vertex-ai/v1/projects/p/locations/evil.example#/x",
        "/google-vertex-ai/v1/projects/p/locations/169.254.169.254:80@/x",
        "/snowflake/evil.example%2f/x",
    ],
)
def test_no_path_leads_away_from_the_providers_hosts(path: str) -> None:
    assert isinstance(resolve("GET", path, HOSTS, POLICY), Nowhere)


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("/compat/chat/completions", Entry("compat", "/compat/chat/completions")),
        ("/compat/v1/chat/completions", Entry("compat", "/compat/chat/completions")),
        ("/compat/chat/completions/", Entry("compat", "/compat/chat/completions")),
        ("/v1/acct/gw/compat/chat/completions?x=1", Entry("compat", "/compat/chat/completions?x=1")),
        ("/v1/acct/gw/compat/v1/embeddings", Entry("compat", "/compat/embeddings")),
        ("/compat/embeddings", Entry("compat", "/compat/embeddings")),
        ("/", Entry("universal", "/")),
        ("", Entry("universal", "/")),
        ("/?x=1", Entry("universal", "/?x=1")),
        ("/v1/acct/gw", Entry("universal", "/")),
        ("/v1/acct/gw/", Entry("universal", "/")),
    ],
)
def test_a_post_without_a_provider_in_its_path_is_an_entry(path: str, entry: Entry) -> None:
    assert resolve("POST", path, HOSTS, POLICY) == entry


@pytest.mark.parametrize(
    ("method", "path", "says"),
    [
        ("GET", "/", "one of: "),
        ("GET", "/v1/acct/gw", "no provider 'v1'"),
        ("POST", "/v1/chat/completions", "no provider 'v1'"),
        ("POST", "/v1/images/generations", "no provider 'v1'"),
        ("POST", "/v1/chat/completions/", "no provider"),
        ("POST", "/v1/acct", "no provider 'v1'"),
        ("POST", "/v1//gw", "no provider 'v1'"),
        ("GET", "/compat/chat/completions", "POST /compat/chat/completions and POST /compat/embeddings"),
        ("GET", "/compat/models", "nothing else"),
        ("POST", "/compat/responses", "nothing else"),
        ("POST", "/compat", "nothing else"),
        ("POST", "/#", "%23"),
    ],
)
def test_what_is_no_entry_says_what_there_is(method: str, path: str, says: str) -> None:
    place = resolve(method, path, HOSTS, POLICY)

    assert isinstance(place, Nowhere)
    assert says in place.message


@pytest.mark.parametrize("provider", [row for row in TABLE if row.compat], ids=lambda row: row.slug)
@pytest.mark.parametrize("asked", COMPAT)
def test_an_openai_compatible_endpoint_stands_at_a_host_of_its_provider(provider: Provider, asked: str) -> None:
    place = compat_place(provider, asked, "?x=1")

    assert isinstance(place, Place)
    assert Hosts().find(place.host, place.port) is provider
    assert f"{place.scheme}://{place.authority.decode()}{place.path}" == f"{provider.compat}/{asked}?x=1"


@pytest.mark.parametrize(
    ("hosts", "dialect", "compat"),
    [
        (("*.corp.example", "llm.corp.example"), "openai", "https://llm.corp.example/v1"),
        (("llm.corp.example:8443",), "ollama", "https://llm.corp.example:8443/v1"),
        (("*.corp.example",), "openai", ""),
        (("llm.corp.example",), "anthropic", ""),
    ],
)
def test_a_policys_provider_has_one_where_its_host_is_named_and_speaks_it(
    hosts: tuple[str, ...], dialect: str, compat: str
) -> None:
    policy = Policy(providers=(ProviderHosts("mine", hosts, dialect),))

    assert hosts_of(policy).providers["mine"].compat == compat


@pytest.mark.parametrize(
    ("path", "authority"),
    [
        ("/openai/chat/completions", b"api.openai.com"),
        ("/ollama/api/chat", b"127.0.0.1:11434"),
        ("/target/six/v1/models", b"[fd00::7]:8000"),
    ],
)
def test_a_place_has_its_authority(path: str, authority: bytes) -> None:
    place = resolve("POST", path, HOSTS, POLICY)

    assert isinstance(place, Place)
    assert place.authority == authority


def test_without_targets_the_answer_says_so() -> None:
    place = resolve("GET", "/target/x/y", HOSTS, Policy())

    assert isinstance(place, Nowhere)
    assert "the policy has no `targets`" in place.message


def test_a_target_keeps_its_name_and_provider() -> None:
    place = resolve("POST", "/target/eu/openai/v1/responses", HOSTS, POLICY)

    assert isinstance(place, Place)
    assert (place.target, place.provider.slug) == ("eu", "azure-openai")


def test_a_providers_own_path_stays_open_however_many_targets_it_has_at_other_hosts() -> None:
    targets = {name: Target(name, "openai", f"https://{name}.example/v1") for name in ("eu", "us", "ap")}
    policy = Policy(targets=targets)
    hosts = hosts_of(policy)

    place = resolve("POST", "/openai/chat/completions", hosts, policy)

    assert isinstance(place, Place)
    assert place.host == "api.openai.com"
    found = {hosts.find(host, 443) for host in ("api.openai.com", "eu.example", "us.example", "ap.example")}
    assert found == {hosts.providers["openai"]}


def test_the_answer_to_an_unknown_name_lists_every_provider_and_is_bounded() -> None:
    place = resolve("POST", f"/{'x' * 5000}/y", HOSTS, POLICY)

    assert isinstance(place, Nowhere)
    assert all(provider.slug in place.message for provider in (*TABLE, CORP))
    assert len(place.message) < 1500


@pytest.mark.parametrize("provider", [row for row in TABLE if not row.takes], ids=lambda row: row.slug)
def test_every_provider_without_parts_in_its_host_has_a_door(provider: Provider) -> None:
    place = resolve("POST", f"/{provider.slug}/x", HOSTS, POLICY)

    assert isinstance(place, Place)
    assert place.provider is provider


def test_no_provider_has_a_reserved_name() -> None:
    assert not RESERVED & {row.slug for row in TABLE}
