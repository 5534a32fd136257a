"""SQLite: traces and payloads, written by one thread, read by everybody.

``rows`` is what rooms hand in, ``backlog`` where it waits, ``writer`` the thread that writes it, ``schema`` the tables,
``prune`` what becomes of old rows, ``reader`` the way in for every command that only looks. ``views`` and ``queries``
hold the questions. Importing this package imports neither sqlite-utils nor the writer: reading commands start fast.
"""

from mitmgate.store.rows import Renders, Row, Rows, Value

__all__ = ["Renders", "Row", "Rows", "Value"]
