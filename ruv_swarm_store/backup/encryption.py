"""Keys: AES-256-GCM for what is in a backup's files, HMAC-SHA-256 for its manifest, both derived from what the user gives."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from ruv_swarm_store.errors import InvalidValue, Unsupported

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Key = bytes | str
"""32 random bytes, or a passphrase."""

NONCE = 12


class Encryption(Struct, frozen=True):
    """How a backup is encrypted; nothing in it is secret."""

    cipher: Literal["aes-256-gcm"]
    derivation: Literal["none", "scrypt"]
    """How a key was made of what was given: scrypt for a passphrase (RFC 7914, N = 2¹⁵, r = 8, p = 1)."""
    salt: str
    """16 random bytes in hexadecimal."""
    check: str
    """8 bytes in hexadecimal that tell the right key from a wrong one."""


class Cipher:
    """One chain's keys."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        def derived(purpose: bytes) -> bytes:  # as HKDF-Expand (RFC 5869) makes one block
            return hmac.digest(key, purpose + salt, "sha256")

        self._aead = _aesgcm(derived(b"ruv-swarm-store backup data"))
        self._signing = derived(b"ruv-swarm-store backup manifest")
        self.check = derived(b"ruv-swarm-store backup check")[:8].hex()

    def encrypt(self, data: bytes, associated: bytes) -> bytes:
        """A nonce and the encrypted data; decrypting takes the same `associated`."""
        # Nonces are random: for 2³² frames of a megabyte the chance that two are the same is 2⁻³³ (NIST SP 800-38D, 8.3).
        nonce = secrets.token_bytes(NONCE)
        return nonce + self._aead.encrypt(nonce, data, associated)

    def decrypt(self, data: bytes, associated: bytes) -> bytes:
        """What was encrypted. Raises ValueError where either was changed."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(data[:NONCE], data[NONCE:], associated)
        except InvalidTag as error:
            raise ValueError("it is not what was encrypted") from error

    def sign(self, data: bytes) -> str:
        """A message authentication code, in hexadecimal."""
        return hmac.digest(self._signing, data, "sha256").hex()


class Keyring:
    """The key a user has given, if any."""

    def __init__(self, key: Key | None) -> None:
        if key is not None and not (isinstance(key, str) and key) and not (isinstance(key, bytes) and len(key) == 32):
            raise InvalidValue(
                "the key is neither 32 bytes nor a passphrase",
                hint="Give text, or 32 bytes as secrets.token_bytes(32) and openssl rand 32 make them",
            )
        if isinstance(key, str):
            try:
                key.encode()
            except UnicodeEncodeError:  # which holds the passphrase
                raise InvalidValue(
                    "the passphrase is no text: it has halves of characters", hint="Give bytes as bytes, 32 of them"
                ) from None
        self._key = key

    def __bool__(self) -> bool:
        return self._key is not None

    def begin(self, like: Encryption | None = None) -> Encryption | None:
        """How a new backup is encrypted, as another one if the key is the same; None without a key."""
        if self._key is None:
            return None
        if like is not None and self.fits(like):
            return like  # one salt: a passphrase takes a while to make a key of
        salt = secrets.token_bytes(16)
        derivation: Literal["none", "scrypt"] = "scrypt" if isinstance(self._key, str) else "none"
        return Encryption("aes-256-gcm", derivation, salt.hex(), _cipher(self._key, salt).check)

    def fits(self, encryption: Encryption | None) -> bool:
        """Whether a chain encrypted so, or not at all, is one that this key goes on with."""
        if encryption is None or self._key is None:
            return encryption is None and self._key is None
        return isinstance(self._key, str) == (encryption.derivation == "scrypt") and self._of(encryption).check == encryption.check

    def cipher(self, encryption: Encryption | None) -> Cipher | None:
        """What encrypts and decrypts a backup; None for one that is not encrypted. Raises `InvalidValue` without the right key."""
        if encryption is None:
            return None
        if self._key is None:
            raise InvalidValue("the backup is encrypted, and no key was given", hint="Give key=, the one it was made with")
        if not self.fits(encryption):
            raise InvalidValue("the key is not the one the backup was encrypted with", hint="Give key=, the one it was made with")
        return self._of(encryption)

    def _of(self, encryption: Encryption) -> Cipher:
        assert self._key is not None
        return _cipher(self._key, bytes.fromhex(encryption.salt))


@lru_cache(maxsize=256)
def _cipher(key: Key, salt: bytes) -> Cipher:
    if isinstance(key, str):
        try:
            key = hashlib.scrypt(key.encode(), salt=salt, n=2**15, r=8, p=1, maxmem=2**26, dklen=32)
        except AttributeError as error:
            raise Unsupported("this Python was built without scrypt, which passphrases need", hint="Give a key of 32 bytes") from error
    return Cipher(key, salt)


def _aesgcm(key: bytes) -> AESGCM:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise Unsupported("encryption is not installed", hint="pip install 'ruv-swarm-store[backup]'") from error
    return AESGCM(key)
