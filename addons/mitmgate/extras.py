"""Libraries that only some policies need: they come with ``pip install 'mitmgate[NAME]'``, not with mitmgate itself.

Each is imported when a policy asks for it, so whoever does not use it pays nothing at start.
"""

import importlib
from typing import Any

from mitmgate.errors import StartError


def needed(module: str, extra: str, why: str) -> Any:
    """Return *module*; raise ``StartError`` where *extra* is not installed.

    *why* begins the sentence: the key of the policy that asks for it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise StartError(f"{why} needs {package}, which is not here: pip install 'mitmgate[{extra}]'") from error
