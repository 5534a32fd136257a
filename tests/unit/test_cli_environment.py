"""Every client is led to the gateway by the variables it reads, and keeps what its user had set."""

import subprocess
from pathlib import Path

import pytest

from mitmgate.cli.common import Running
from mitmgate.cli.environment import Way, java_options, remarks, variables, way_to

WAY = Way("http://127.0.0.1:8080", Path("/home/a/.mitmgate/ca/bundle.pem"), Path("/home/a/.mitmgate"))
WITH_STORE = Way(WAY.proxy_url, WAY.bundle, WAY.home, Path("/home/a b/ca/truststore.p12"))

PROXY = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "grpc_proxy"]
BUNDLE = [
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "GIT_SSL_CAINFO", "DENO_CERT", "CODEX_CA_CERTIFICATE",
]  # fmt: skip


def test_each_variable_says_what_its_clients_need() -> None:
    found = variables(WAY, {})

    assert {found[name] for name in PROXY} == {"http://127.0.0.1:8080"}
    assert {found[name] for name in BUNDLE} == {"/home/a/.mitmgate/ca/bundle.pem"}
    assert found["NODE_USE_ENV_PROXY"] == "1"
    assert found["MITMGATE_HOME"] == "/home/a/.mitmgate"


def test_a_callers_key_goes_into_the_proxys_address_and_nowhere_else(tmp_path: Path) -> None:
    running = Running(1, "0.0.0.0:8080", None, tmp_path, None, tmp_path, WAY.bundle, "", "")

    found = variables(way_to(running, WAY.home, key="mg-a/b@c"), {})

    assert {found[name] for name in PROXY} == {"http://mitmgate:mg-a%2Fb%40c@127.0.0.1:8080"}
    assert [name for name, value in found.items() if "mg-a" in value] == PROXY
    assert "-Dhttps.proxyHost=127.0.0.1" in found["JAVA_TOOL_OPTIONS"]
    assert variables(way_to(running, WAY.home), {})["HTTPS_PROXY"] == "http://127.0.0.1:8080"


def test_this_machine_and_the_clouds_credentials_are_reached_directly() -> None:
    expected = "localhost,127.0.0.1,::1,169.254.169.254,169.254.170.2,metadata.google.internal"

    assert variables(WAY, {})["NO_PROXY"] == variables(WAY, {})["no_proxy"] == expected


def test_hosts_that_the_user_excluded_stay_excluded() -> None:
    found = variables(WAY, {"NO_PROXY": "db.corp, localhost", "no_proxy": "*.local db.corp"})

    assert found["NO_PROXY"].split(",")[:3] == ["db.corp", "localhost", "*.local"]
    assert found["NO_PROXY"].split(",").count("localhost") == 1
    assert "169.254.169.254" in found["NO_PROXY"]


def test_doing_it_twice_changes_nothing() -> None:
    once = variables(WITH_STORE, {"NO_PROXY": "db.corp", "JAVA_TOOL_OPTIONS": "-Xmx1g -Dhttp.nonProxyHosts=*.corp"})

    assert variables(WITH_STORE, once) == once


# -- Java -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        ("", ""),
        ("-Xmx1g", "-Xmx1g "),
        ("-Dhttps.proxyHost=old -Xmx1g", "-Xmx1g "),
        ("-Dname='two words' -Dhttp.proxyHost=a", "-Dname='two words' "),
        ('-javaagent:"/opt/my agent.jar"=x', '-javaagent:"/opt/my agent.jar"=x '),
    ],
)
def test_java_keeps_the_users_options_but_not_another_proxy(before: str, kept: str) -> None:
    assert java_options(WAY, before) == (
        f"{kept}-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=8080 -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=8080 "
        "-Dhttp.nonProxyHosts=localhost|127.*|[::1]|169.254.169.254|169.254.170.2|metadata.google.internal"
    )


def test_java_is_given_the_trust_store_with_its_path_quoted() -> None:
    found = java_options(WITH_STORE, "")

    assert "-Djavax.net.ssl.trustStore='/home/a b/ca/truststore.p12'" in found
    assert "-Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStorePassword=changeit" in found


def test_hosts_that_java_went_to_directly_it_still_does() -> None:
    found = java_options(WAY, "-Dhttp.nonProxyHosts='*.corp|a.example'")

    assert "-Dhttp.nonProxyHosts=*.corp|a.example|localhost|" in found


# -- remarks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "sentences"),
    [
        ({}, []),
        ({"HTTPS_PROXY": "http://127.0.0.1:8080/"}, []),
        (
            {"https_proxy": "http://me:secret@proxy.corp:3128"},
            [
                "https_proxy was http://…@proxy.corp:3128: the gateway takes its place and goes out directly, "
                "unless the policy says upstream: {proxy: env:NAME}"
            ],
        ),
        ({"NO_PROXY": "localhost,.anthropic.com"}, ["NO_PROXY sends calls past the gateway, unseen: anthropic"]),
        ({"no_proxy": "api.openai.com"}, ["NO_PROXY sends calls past the gateway, unseen: openai"]),
        ({"NO_PROXY": "ai.com,openai.com.evil,127.0.0.1"}, []),
        ({"NO_PROXY": "*"}, ["NO_PROXY sends calls past the gateway, unseen: every provider"]),
        (
            {"JAVA_TOOL_OPTIONS": "-Djavax.net.ssl.trustStore=/etc/corp.jks"},
            [
                "Java's trust store /etc/corp.jks is replaced by /home/a b/ca/truststore.p12; "
                "roots that only it has are not trusted"
            ],
        ),
    ],
)
def test_what_stands_in_the_way_is_said(env: dict[str, str], sentences: list[str]) -> None:
    assert remarks(WITH_STORE, env) == sentences


# -- lines for a shell ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["plain", "two words", "it's", '"$HOME" `id` \\n', "a;b|c&d", "", "ü\nnew line"])
def test_sh_gets_back_the_very_value(value: str) -> None:
    from mitmgate.cli.env import sh_line

    script = f'{sh_line("X", value)}\nprintf %s "$X"'

    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == value


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("/usr/bin/fish", r"set -gx X 'it\'s \\ a'"),
        ("/opt/pwsh", r"$env:X = 'it''s \ a'"),
        ("/bin/zsh", "export X='it'\"'\"'s \\ a'"),
        ("", "export X='it'\"'\"'s \\ a'"),
    ],
)
def test_each_shell_is_written_to_in_its_own_syntax(shell: str, line: str) -> None:
    from mitmgate.cli.env import LINES, shell_of

    assert LINES[shell_of(shell)]("X", r"it's \ a") == line
