"""Where a path of the base-URL door leads, and where none may lead."""

import pytest

from mitmgate.door_paths import Local, Nowhere, Place, resolve
from mitmgate.policy import Policy
from mitmgate.policy.values import Target
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
    place = resolve(path, HOSTS, POLICY)
    if isinstance(place, Place):
        return f"{place.scheme}://{place.host}:{place.port}{place.path}"
    return place.page if isinstance(place, Local) else place.message


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
    place = resolve(path, HOSTS, POLICY)

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
    assert isinstance(resolve(path, HOSTS, POLICY), Nowhere)


def test_without_targets_the_answer_says_so() -> None:
    place = resolve("/target/x/y", HOSTS, Policy())

    assert isinstance(place, Nowhere)
    assert "the policy has no `targets`" in place.message


def test_a_target_keeps_its_name_and_provider() -> None:
    place = resolve("/target/eu/openai/v1/responses", HOSTS, POLICY)

    assert isinstance(place, Place)
    assert (place.target, place.provider.slug) == ("eu", "azure-openai")


def test_the_answer_to_an_unknown_name_lists_every_provider_and_is_bounded() -> None:
    place = resolve(f"/{'x' * 5000}/y", HOSTS, POLICY)

    assert isinstance(place, Nowhere)
    assert all(provider.slug in place.message for provider in (*TABLE, CORP))
    assert len(place.message) < 1500


@pytest.mark.parametrize("provider", [row for row in TABLE if not row.takes], ids=lambda row: row.slug)
def test_every_provider_without_parts_in_its_host_has_a_door(provider: Provider) -> None:
    place = resolve(f"/{provider.slug}/x", HOSTS, POLICY)

    assert isinstance(place, Place)
    assert place.provider is provider


def test_no_provider_has_a_reserved_name() -> None:
    assert not RESERVED & {row.slug for row in TABLE}
