"""The path of a request at another place: taken apart, and put together as that place has it. Pure.

Each API has paths of its own for the same thing, and each host may hang them below a prefix. So a path is read as an
``Ask`` (which wire, which operation, which model where the path names one), and written again for a target:

- OpenAI's wire: the operation below the target's ``base_url``, which is complete where it has a path, as an SDK's is;
  else below the provider's own prefix (``/v1``, Groq's ``/openai/v1``, Gemini's ``/v1beta/openai``). Azure has it in
  forms of its own: by deployment, ``/openai/v1``, and Azure AI's ``/models``.
- Anthropic's wire: ``/v1/messages`` below ``base_url``, as Anthropic's SDK does it.
- Gemini's wire: ``/v1beta/models/M:generateContent``; Vertex has it below ``/v1/projects/…/publishers/google``.
- Anything else is native: it stays with its provider or with its API's family, and keeps its path.

The query stays, except ``api-version``, which only Azure knows, and keys, which go only where they belong.
"""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from mitmgate.policy.values import Target
from mitmgate.providers import Provider

type Wire = Literal["openai", "anthropic", "gemini", "native"]

type Form = Literal["deployment", "v1", "dated", "models", "fixed"]
"""How Azure writes OpenAI's wire; see ``FORMS``."""

FORMS: dict[Form, str] = {
    "deployment": "/openai/deployments/{deployment}/{op}",
    "v1": "/openai/v1/{op}",
    "dated": "/openai/{op}",
    "models": "/models/{op}",
    "fixed": "/{op}",
}
"""``dated`` is ``v1`` before it had a name: the model in the body, a date as ``api-version``. ``fixed`` is for a
``base_url`` that names its deployment itself.
"""

OPERATION = re.compile(
    r"chat/completions|completions|embeddings|responses"
    r"|audio/(?:speech|transcriptions|translations)|images/(?:generations|edits|variations)"
)
"""What hosts of OpenAI's wire have in common."""
OPENAI = re.compile(rf"(?P<prefix>.*?)/(?P<op>{OPERATION.pattern})/?")
OF_ONE_HOST = ("/fim", "/agents", "/text", "/beta")
"""Prefixes below which one provider has an API of its own, whatever the path's end looks like."""
DEPLOYMENT = re.compile(r"(?P<prefix>.*?)/openai/deployments/(?P<model>[^/]+)/(?P<op>.+?)/?")
DEPLOYMENT_BASE = re.compile(r".*/openai/deployments/[^/]+")
MESSAGES = re.compile(r"(?P<prefix>.*)/messages/?")
GEMINI = re.compile(r"(?P<prefix>.*/v[0-9][^/]*|.*/publishers/google)/models/(?P<model>[^/:]+):(?P<op>\w+)")
NAMED = re.compile(r"(?P<before>.*?/(?:models?|deployments|serving-endpoints)/)(?P<model>[^/:]+)(?P<after>.*)")
"""A path of any API that names its model."""

GENERATES = frozenset({"generateContent", "streamGenerateContent"})
"""What AI Studio and Vertex both have under one name."""
COMPAT = frozenset({"chat/completions", "embeddings"})
"""What a provider of another wire offers in OpenAI's."""
OF_THE_WIRE = {"openai": "OpenAI's", "anthropic": "Anthropic's", "gemini": "Gemini's", "native": "this"}


@dataclass(frozen=True, slots=True)
class Ask:
    """A path, taken apart."""

    wire: Wire
    path: str
    """As it came, without the query."""
    query: str = ""
    """As it came, without the question mark."""
    op: str = ""
    """``chat/completions``, ``messages``, ``generateContent``; empty for ``native``."""
    prefix: str = ""
    """What stands before the operation (and before ``/models/M``)."""
    model: str | None = None
    """Where the path names it: a deployment, a Gemini model."""
    form: Form | None = None
    """Of Azure; None at any other provider."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A path put together again."""

    path: str
    """Without query."""
    in_body: bool
    """The body says which model is meant; else the path does, and the body may stay as it is."""
    api_version: str | None = None
    """The query's, where it has to be another; ``""`` = none."""


def read(path: str, provider: Provider | None, wire: str | None = None) -> Ask:
    """Return what *path* (query included) asks for; *wire* is the name of the request's dialect, where it has one."""
    path, _, query = path.partition("?")
    family = provider.family if provider else ""
    if wire == "anthropic.messages" and (found := MESSAGES.fullmatch(path)):
        return Ask("anthropic", path, query, "messages", found["prefix"])
    if family in ("gemini", "vertex") and (found := GEMINI.fullmatch(path)):
        return Ask("gemini", path, query, found["op"], found["prefix"], unquote(found["model"]))
    if family == "azure" and (found := DEPLOYMENT.fullmatch(path)):
        return Ask("openai", path, query, found["op"], found["prefix"], unquote(found["model"]), "deployment")
    found = OPENAI.fullmatch(path)
    if found and not found["prefix"].endswith(OF_ONE_HOST):
        form = _form_of(found["prefix"]) if family == "azure" else None
        return Ask("openai", path, query, found["op"], found["prefix"], form=form)
    named = NAMED.fullmatch(path)
    return Ask("native", path, query, model=unquote(named["model"]) if named else None)


def _form_of(prefix: str) -> Form | None:
    endings: tuple[tuple[str, Form], ...] = (("/openai/v1", "v1"), ("/openai", "dated"), ("/models", "models"))
    return next((form for ending, form in endings if prefix.endswith(ending)), None)


# -- another place ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Move:
    """From where to where."""

    ask: Ask
    asked: Provider | None
    """Whose path it is."""
    source: Target | None
    """The target that the request itself names, or whose host it names."""
    target: Target
    provider: Provider
    """The target's."""

    @property
    def at_home(self) -> bool:
        """The path is written for the provider that the target is of."""
        return self.asked is not None and self.asked.slug == self.provider.slug

    @property
    def base(self) -> str:
        return urlsplit(self.target.base_url).path.rstrip("/")

    @property
    def source_base(self) -> str:
        return urlsplit(self.source.base_url).path.rstrip("/") if self.source else ""


def plan(move: Move, deployment: str | None) -> Plan | str:
    """Return the path at the target, or why it has none; *deployment* is the model by the target's own name."""
    return _WIRES[move.ask.wire](move, deployment)


def _openai(move: Move, deployment: str | None) -> Plan | str:
    ask, provider, base = move.ask, move.provider, move.base
    if provider.family == "azure":
        return _azure(move, deployment)
    if ask.form == "deployment" and not OPERATION.fullmatch(ask.op):
        return f"{ask.op} is only to be had at Azure"
    dropped = "" if ask.form else None
    if provider.family in ("openai", "ollama"):
        prefix = base or _own_prefix(move)
        return Plan(f"{prefix}/{ask.op}", in_body=True, api_version=dropped)
    if provider.compat and ask.op in COMPAT:
        return Plan(joined(base, f"{urlsplit(provider.compat).path}/{ask.op}"), in_body=True, api_version=dropped)
    if base.endswith(("/openai", "/openapi")):  # Vertex: …/endpoints/openapi
        return Plan(f"{base}/{ask.op}", in_body=True, api_version=dropped)
    return _native(move, deployment)


def _own_prefix(move: Move) -> str:
    """Return what stands before the operation at a host that says nothing of it."""
    if move.at_home and not move.source_base:
        return move.ask.prefix
    return prefix_of(move.provider)


def prefix_of(provider: Provider) -> str:
    """Return what a provider has before ``/chat/completions``: ``/v1``, where nothing else is known."""
    if provider.compat:
        return urlsplit(provider.compat).path
    return urlsplit(provider.base).path or "/v1"


def _azure(move: Move, deployment: str | None) -> Plan | str:
    ask, target, base = move.ask, move.target, move.base
    form = _azure_form(move)
    if form == "deployment" and deployment is None:
        return "the request names no model, so no deployment can be chosen"
    path = FORMS[form].format(deployment=_segment(deployment or "", ask), op=ask.op)
    version = target.api_version
    if version and is_dated(version) == (form == "v1"):
        version = None  # v1 has no dates, the others have nothing else
    if version is None and (ask.form is None or (form == "v1") != (ask.form == "v1")):
        version = ""
    return Plan(joined(base, path), in_body=form in ("v1", "dated", "models"), api_version=version)


def _azure_form(move: Move) -> Form:
    """Return the form that the target takes: what its ``base_url`` says, else the client's own, else by version."""
    ask, version, base = move.ask, move.target.api_version, move.base
    if base.endswith("/openai/v1"):
        return "v1"
    if DEPLOYMENT_BASE.fullmatch(base):
        return "fixed"
    has_models = move.provider.slug == "azure-ai-inference"
    if ask.form and (has_models or ask.form != "models") and (version is None or is_dated(version)):
        return ask.form
    if version is None or not is_dated(version) or ask.op == "responses":
        return "v1"
    return "models" if has_models and ask.op in COMPAT else "deployment"


def is_dated(version: str) -> bool:
    """True for ``2024-10-21``; ``preview`` and ``latest`` are words of ``/openai/v1``."""
    return version[:1].isdigit()


def _anthropic(move: Move, deployment: str | None) -> Plan | str:
    base = move.base
    if move.at_home and not base and not move.source_base:
        return Plan(move.ask.path, in_body=True)
    # Many vendors offer Anthropic's wire below such a path, whatever else they speak.
    if move.at_home or move.provider.family == "anthropic" or base.endswith("/anthropic"):
        return Plan(joined(base, "/v1/messages"), in_body=True)
    return _stranger(move)


def _gemini(move: Move, deployment: str | None) -> Plan | str:
    ask, provider, base = move.ask, move.provider, move.base
    if provider.family not in ("gemini", "vertex"):
        return _stranger(move)
    same = move.asked is not None and move.asked.family == provider.family
    if not same and ask.op not in GENERATES:
        return f"{provider.slug} has no {ask.op}"
    tail = f"/models/{_segment(deployment or '', ask)}:{ask.op}"
    if provider.family == "gemini":
        version = ask.prefix if same and not move.source_base else "/v1beta"
        return Plan(joined(base, version + tail), in_body=False)
    if base.endswith("/publishers/google"):
        return Plan(base + tail, in_body=False)
    if same:
        return Plan(joined(base, ask.prefix + tail), in_body=False)
    return "its base_url has to carry /v1/projects/PROJECT/locations/LOCATION/publishers/google"


def _native(move: Move, deployment: str | None) -> Plan | str:
    """Keep the path: of one provider, or of one API that several hosts speak."""
    ask, provider = move.ask, move.provider
    kin = (
        move.asked is not None and move.asked.family == provider.family and provider.family not in ("openai", "generic")
    )
    if not move.at_home and not kin:
        return _stranger(move)
    path = ask.path if ask.model is None or ask.wire != "native" else with_named(ask.path, deployment or ask.model)
    in_body = ask.model is None
    if provider.family == "openai":
        above = move.source_base or prefix_of(provider)
        if path.startswith(f"{above}/"):
            below = path.removeprefix(above)
            return Plan((move.base or prefix_of(provider)) + below, in_body)
    return Plan(joined(move.base, path.removeprefix(move.source_base)), in_body)


def _stranger(move: Move) -> str:
    wire, op = OF_THE_WIRE[move.ask.wire], move.ask.op or move.ask.path
    return f"{move.provider.slug} does not take {wire} {op}"


_WIRES = {"openai": _openai, "anthropic": _anthropic, "gemini": _gemini, "native": _native}


# -- parts ------------------------------------------------------------------------------------------------------------


def joined(base: str, path: str) -> str:
    """Return *path* below *base*; what ends the one and begins the other stands once (``/a/v1`` and ``/v1/x``)."""
    ours, theirs = base.split("/"), path.lstrip("/").split("/")
    for common in range(min(len(ours), len(theirs)) - 1, 0, -1):
        if ours[-common:] == theirs[:common]:
            return "/".join(ours + theirs[common:])
    return "/".join(ours + theirs)


def _segment(name: str, ask: Ask) -> str:
    """Return *name* as part of a path; the one that stands there already as the client wrote it."""
    if name == ask.model:
        raw = DEPLOYMENT.fullmatch(ask.path) or GEMINI.fullmatch(ask.path)
        if raw:
            return raw["model"]
    return quote(name, safe="@")


def with_named(path: str, model: str) -> str:
    """Return *path* with *model* in place of the one it names; unchanged where it names none, or the same."""
    found = NAMED.fullmatch(path)
    if found is None or unquote(found["model"]) == model:
        return path
    return found["before"] + quote(model, safe="@") + found["after"]


def with_version(query: str, version: str | None) -> str:
    """Return *query* with *version* as its ``api-version``, in its place or at the end; ``""`` takes it out, None
    leaves it.
    """
    if version is None:
        return query
    parts: list[str] = []
    waiting = f"api-version={quote(version, safe='')}" if version else ""
    for part in query.split("&") if query else []:
        if part.partition("=")[0].lower() != "api-version":
            parts.append(part)
        elif waiting:
            parts.append(waiting)
            waiting = ""
    return "&".join([*parts, waiting] if waiting else parts)
