"""Signed messages: what is in Redis is taken only from who holds a key that this host trusts.

Celery's own serializer does the signing. What it signs are a task's arguments, not its name, so a captured
message can be sent again, or as another task that takes the same fields. Each task checks its fields, and
does nothing where its work is done; what signing keeps out is whoever can write to Redis without a key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery.exceptions import SecurityError
from celery.security.certificate import Certificate, FSCertStore
from celery.security.key import PrivateKey
from celery.security.serialization import SecureSerializer
from kombu.serialization import register

from config.errors import SettingsError

SERIALIZER = "auth"  # the name by which Celery knows it
CONTENT_TYPE = "application/data"
JSON = "application/json"
KEY_NAME, CERTIFICATE_NAME, TRUSTED_NAME = "key.pem", "certificate.pem", "trusted"


class SignedJson(SecureSerializer):
    """Celery's signed messages, of JSON alone: the name of the format is not under the signature."""

    def _unpack(self, payload: Any, *args: Any, **options: Any) -> Any:
        fields = super()._unpack(payload, *args, **options)  # type: ignore[misc]  # celery's stubs lack it
        if fields["content_type"] != JSON:
            raise SecurityError(f"A signed message holds {fields['content_type']!r}, not {JSON}.")
        return fields


def enable(directory: Path) -> None:
    """Sign what this process sends and check what it takes; `SettingsError` where the keys are missing."""
    try:
        serializer = SignedJson(
            PrivateKey((directory / KEY_NAME).read_text()),
            Certificate((directory / CERTIFICATE_NAME).read_text()),
            FSCertStore(str(directory / TRUSTED_NAME)),
        )
    except (OSError, SecurityError) as error:
        raise SettingsError(
            f"TANDEM_REDIS__SIGNED is set, and the keys in {directory} cannot be used: {error}.",
            remedy="`tandem init-host --signed` makes them; another host gets a copy by --signing-keys.",
        ) from None
    encode: Any = serializer.serialize
    decode: Any = serializer.deserialize
    register(SERIALIZER, encode, decode, content_type=CONTENT_TYPE, content_encoding="utf-8")
