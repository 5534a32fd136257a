"""A policy file becomes a ``Policy``, or a ``PolicyError`` that names everything wrong with it, in file order.

Runs at start and whenever the file changes. All or nothing: a file with one fault gives no policy, so a running gateway
keeps the one it has. Each fault reads ``policy.yaml:12: targets.azure.base_url: what is wrong; did you mean …``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mitmgate.errors import Fault, PolicyError, StartError
from mitmgate.policy import document
from mitmgate.policy.document import Node
from mitmgate.policy.forms import Context, did_you_mean, gather, listing
from mitmgate.policy.sections import FLOW, budget, providers, targets
from mitmgate.policy.sections.hosts import claimed_twice
from mitmgate.policy.values import Policy

MOST_BYTES = 4 * 2**20

_HERE = Path(__file__).parent
DEFAULT_PLACES = (_HERE.parent / "policies" / "default.yaml", _HERE.parents[2] / "policies" / "default.yaml")
"""In the wheel, and in a checkout."""


def load(path: Path, env: Mapping[str, str], shown: str | None = None) -> Policy:
    """Return the policy in the file at *path*; secrets come from *env*.

    *shown* is the path as the user wrote it, for faults and rows. Raises ``PolicyError``.
    """
    shown = str(path) if shown is None else shown
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as e:
        reason = (e.strerror or type(e).__name__).lower()
        raise PolicyError([Fault(shown, 0, "", f"the policy cannot be read: {reason}")]) from e
    return loads(data, shown, env, folder=path.parent)


def loads(text: bytes | str, shown: str, env: Mapping[str, str], folder: Path | None = None) -> Policy:
    """Return the policy that *text* holds; paths in it are relative to *folder*, by default that of *shown*.

    Raises ``PolicyError``.
    """
    data = text.encode() if isinstance(text, str) else text
    root, faults = document.parse(_decode(data, shown), shown)
    context = Context(
        folder=Path(shown).parent if folder is None else folder,
        env=env,
        providers=providers.names(root),
        families=providers.families(root),
        targets=targets.places(root),
        budgets=budget.named(root),
    )
    try:
        values = _sections(root, context)
    except PolicyError as e:
        faults += e.faults
        values = {}
    nodes = {node.key: node for node in root.walk()}
    if not faults:
        faults += claimed_twice(values, nodes)
    if faults:
        raise PolicyError(_in_order(faults))
    lines = {key: node.line for key, node in nodes.items()}
    sha256 = hashlib.sha256(data).hexdigest()[:12]
    return Policy(path=shown, sha256=sha256, text=_decode(data, shown), lines=lines, **values)


def default() -> Policy:
    """Return what runs when nobody writes a policy: ``policies/default.yaml``, without a path of its own."""
    return replace(load(default_path(), {}), path=None)


def default_path() -> Path:
    """Return where ``default.yaml`` lies, in a checkout or an installed package."""
    for path in DEFAULT_PLACES:
        if path.is_file():
            return path
    raise StartError("policies/default.yaml is missing from this installation of mitmgate; install it again")


def show(policy: Policy) -> dict[str, Any]:
    """Return *policy* in the words of the file, every default written out, secrets as ``env:NAME``."""
    return {name: form.show(getattr(policy, name)) for name, form in FLOW.items()}


def _decode(data: bytes, shown: str) -> str:
    if len(data) > MOST_BYTES:
        raise PolicyError([Fault(shown, 0, "", f"the file is larger than {MOST_BYTES // 2**20} MiB; is it a policy?")])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        text = f"not UTF-8: byte 0x{data[e.start]:02x}; save the file as UTF-8"
        raise PolicyError([Fault(shown, line, "", text)]) from e


def _sections(root: Node, context: Context) -> dict[str, Any]:
    if not isinstance(root.value, dict):
        raise root.wrong(f"a policy is a mapping of sections, not {root.what}")
    # A section without a value is one whose entries are all commented out: it is as good as left out.
    written = [(name, node) for name, node in root.value.items() if node.value is not None or name not in FLOW]
    return gather(written, lambda name, node: _section(name, node, context))


def _section(name: str, node: Node, context: Context) -> Any:
    form = FLOW.get(name)
    if form is None:
        hint = did_you_mean(name, FLOW) or f"; sections are {listing(FLOW, 'and')}"
        raise node.wrong(f"unknown section{hint}")
    return form.read(node, context)


def _in_order(faults: list[Fault]) -> list[Fault]:
    """Return *faults* by line, one per key: what the tree could not hold is not complained of again."""
    first: dict[tuple[int, str], Fault] = {}
    for fault in faults:
        first.setdefault((fault.line, fault.key), fault)
    return sorted(first.values(), key=lambda fault: fault.line)
