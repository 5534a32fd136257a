"""mitmgate: an AI gateway inside mitmproxy. Start reading at ``chain.py``."""

__version__ = "0.1.0"
