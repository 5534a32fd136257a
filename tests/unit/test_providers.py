"""Which provider a host belongs to."""

import pytest

from mitmgate.providers import TABLE, Hosts, Provider

CORP = Provider("corp-llm", ("llm.corp.example", "*.lab.example:8443"), "openai")


@pytest.mark.parametrize(
    ("host", "port", "slug"),
    [
        ("api.openai.com", 443, "openai"),
        ("API.OpenAI.com", 443, "openai"),
        ("api.openai.com.", 443, "openai"),
        ("eu.api.openai.com", 443, "openai"),
        ("api.openai.com.evil.example", 443, None),
        ("xapi.openai.com", 443, None),
        ("my-res.openai.azure.com", 443, "azure-openai"),
        ("openai.azure.com", 443, None),
        ("my-res.services.ai.azure.com", 443, "azure-ai-inference"),
        ("api.anthropic.com", 443, "anthropic"),
        ("console.anthropic.com", 443, None),
        ("generativelanguage.googleapis.com", 443, "google-ai-studio"),
        ("europe-west4-aiplatform.googleapis.com", 443, "google-vertex-ai"),
        ("bedrock-runtime.us-east-1.amazonaws.com", 443, "aws-bedrock"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", 443, "aws-bedrock"),
        ("s3.us-east-1.amazonaws.com", 443, None),
        ("localhost", 11434, "ollama"),
        ("localhost", 443, None),
        ("llm.corp.example", 443, "corp-llm"),
        ("llm.corp.example", 9000, "corp-llm"),
        ("a.lab.example", 8443, "corp-llm"),
        ("a.lab.example", 443, None),
        ("raw.githubusercontent.com", 443, None),
    ],
)
def test_a_host_belongs_to_its_provider(host: str, port: int, slug: str | None) -> None:
    found = Hosts([CORP]).find(host, port)

    assert (found.slug if found else None) == slug


def test_the_policys_rows_come_before_the_table() -> None:
    mine = Provider("mine", ("api.openai.com",), "anthropic")

    assert Hosts([mine]).find("api.openai.com", 443) is mine


def test_slugs_are_unique_and_hosts_are_lower_case() -> None:
    assert len({row.slug for row in TABLE}) == len(TABLE)
    assert all(host == host.lower() for row in TABLE for host in row.hosts)


def test_no_two_rows_of_the_table_claim_one_host() -> None:
    samples = [(host.replace("*", "sample"), row) for row in TABLE for host in row.hosts]
    for host, row in samples:
        name, _, port = host.partition(":")
        assert Hosts().find(name, int(port or 443)) is row


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.slug)
def test_a_base_uses_up_exactly_the_parts_it_takes(row: Provider) -> None:
    filled = row.base.format(**dict.fromkeys(row.takes, "x"))

    assert "{" not in filled
    assert all(f"{{{part}}}" in row.base for part in row.takes)


def test_the_name_of_a_row_is_opentelemetrys_where_it_has_one() -> None:
    names = {row.slug: row.provider_name for row in TABLE}

    assert (names["azure-openai"], names["google-ai-studio"], names["openai"]) == (
        "azure.ai.openai",
        "gcp.gemini",
        "openai",
    )


def test_who_has_an_openai_compatible_endpoint_is_known() -> None:
    without = {row.slug for row in TABLE if not row.compat}

    # each of these needs a resource, a region, a project or an account in its host or path, or has none at all
    assert without == {
        "chatgpt",
        "azure-openai",
        "azure-ai-inference",
        "google-vertex-ai",
        "aws-bedrock",
        "databricks",
        "snowflake",
    }
    assert not any(row.compat.endswith("/") for row in TABLE)
