"""The kinds of thing that ``guard`` finds by name; what else stands in ``find`` is a pattern of the policy's own."""

from collections.abc import Mapping

KINDS = ("secret", "credit_card", "email", "phone", "national_id", "iban", "ip_address")
"""Also the words of their placeholders: ``[secret]``, ``[email]`` …"""

MEANT: Mapping[str, str] = {
    "key": "secret",
    "api_key": "secret",
    "token": "secret",
    "password": "secret",
    "credential": "secret",
    "card": "credit_card",
    "pan": "credit_card",
    "mail": "email",
    "email_address": "email",
    "tel": "phone",
    "telephone": "phone",
    "phone_number": "phone",
    "mobile": "phone",
    "ssn": "national_id",
    "id_number": "national_id",
    "passport": "national_id",
    "bank_account": "iban",
    "ip": "ip_address",
    "ipv4": "ip_address",
    "ipv6": "ip_address",
}
"""What other tools and people call a kind -> the kind. As a pattern such a word would find next to nothing."""
