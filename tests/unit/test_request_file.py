"""A request is read out of whatever people have it in, and what is none is said in a sentence."""

import json
from pathlib import Path

import pytest

from mitmgate.cli.request_file import ASSUMED_URL, Asked, Unclear, read

URL = "https://api.openai.com/v1/chat/completions"
BODY = '{"model": "gpt-5", "messages": []}'
JSON = [("content-type", "application/json")]

HAR_REQUEST = {
    "method": "POST",
    "url": URL,
    "headers": [{"name": ":authority", "value": "api.openai.com"}, {"name": "x-flag", "value": "on"}],
    "postData": {"mimeType": "application/json", "text": BODY},
}
FROM_HAR = Asked("HAR", "POST", URL, [("x-flag", "on"), *JSON], BODY.encode())

READS = {
    "over the wire": (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.com\r\nX-Flag:  on\r\n\r\n{BODY}",
        Asked("HTTP", "POST", "/v1/chat/completions", [("Host", "api.openai.com"), ("X-Flag", "on")], BODY.encode()),
    ),
    "with a URL and an editor's last line end": (
        f"\nPOST {URL}\nx-flag: on\n\n{BODY}\n",
        Asked("HTTP", "POST", URL, [("x-flag", "on")], BODY.encode()),
    ),
    "whose length says where the body ends": (
        f"post {URL}\ncontent-length: 3\n\na\n\nb\n",
        Asked("HTTP", "POST", URL, [("content-length", "3")], b"a\n\n"),
    ),
    "without headers and body": (f"GET {URL}", Asked("HTTP", "GET", URL, [])),
    "a body alone": (
        f"  {BODY}\n",
        Asked("JSON", "POST", ASSUMED_URL, JSON, BODY.encode(),
              [f"the file is a body alone: a POST to {ASSUMED_URL} is assumed"]),
    ),
    "a HAR": (
        json.dumps({"log": {"entries": [{"request": {"method": "GET", "url": "https://x.example"}},
                                        {"request": HAR_REQUEST}]}}),
        FROM_HAR,
    ),
    "a HAR's entry": (json.dumps({"request": HAR_REQUEST, "response": {}}), FROM_HAR),
    "a HAR's request": (json.dumps(HAR_REQUEST), FROM_HAR),
    "curl": (
        f"curl -sS -XPOST '{URL}' \\\n  -H \"X-Flag: on\" -H 'Content-Type: application/json' \\\n  -d '{BODY}'\n",
        Asked("curl", "POST", URL, [("X-Flag", "on"), ("Content-Type", "application/json")], BODY.encode()),
    ),
    "curl --json": (f"$ curl {URL} --json '{BODY}'",
                    Asked("curl", "POST", URL, [("Content-Type", "application/json")], BODY.encode())),
    "curl of a browser": (
        f"curl --url '{URL}' --compressed --data-raw $'it\\'s\\n\\u0021'",
        Asked("curl", "POST", URL, [("Content-Type", "application/x-www-form-urlencoded")], b"it's\n!"),
    ),
    "curl without a body": (
        f"curl {URL} -u me:sk-1 -A app --max-time 5",
        Asked("curl", "GET", URL, [("User-Agent", "app"), ("Authorization", "Basic bWU6c2stMQ==")]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "asked"), READS.values(), ids=READS)
def test_a_request_is_read_as_people_have_it(text: str, asked: Asked) -> None:
    assert read(text.encode()) == asked


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    assert read(f"POST {URL}\n\n".encode() + b"\xff\x00\xfe").body == b"\xff\x00\xfe"


def test_curl_reads_a_body_from_a_file_and_keys_from_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "body.json").write_text(BODY)
    monkeypatch.setenv("A_KEY", "sk-1")

    asked = read(f'curl {URL} -H "Authorization: Bearer $A_KEY" -d @{tmp_path}/body.json'.encode())

    assert asked.header("authorization") == "Bearer sk-1"
    assert asked.body == BODY.encode()


FAULTS = {
    "": "it is empty",
    "hello there, this is no request": "its first line is 'hello there, this is no request'; it takes a request line",
    f"POST {URL}\nno header\n\n{BODY}": "'no header' is no header; headers end with an empty line",
    '{"model": ': "it begins like JSON and is none: ",
    '{"log": {"entries": []}}': "the HAR has no request",
    "curl -H 'x: y'": "the curl command names no URLs; it takes one",
    "curl https://a.example https://b.example": "the curl command names 2 URLs; it takes one",
    "curl https://a.example 'unclosed": "the curl command cannot be read: No closing quotation",
    "curl https://a.example --upload-file x": "the curl command cannot be read: unrecognized arguments: --upload-file",
    "curl https://a.example -d @/no/such/file": "the curl command reads its body from /no/such/file: no such file",
}


@pytest.mark.parametrize("text", FAULTS)
def test_what_is_no_request_is_said(text: str) -> None:
    with pytest.raises(Unclear) as caught:
        read(text.encode())

    assert str(caught.value).startswith(FAULTS[text])
