"""The policy: YAML in, frozen values out, faults with file:line. Never imports mitmproxy."""

from mitmgate.policy.load import default, default_path, load, loads, show
from mitmgate.policy.notices import notices
from mitmgate.policy.values import Policy

__all__ = ["Policy", "default", "default_path", "load", "loads", "notices", "show"]
