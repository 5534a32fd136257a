"""What ``mitmgate demo`` shows: ``scenes`` (who asks what), ``speech``, ``provider`` (far end), ``app`` (SDKs)."""
