"""Entry for ``mitmdump -s addons/gateway.py`` and ``mitmweb -s addons/gateway.py``; ``mitmgate serve`` needs it not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mitmgate.chain import from_environment

addons = [from_environment()]
