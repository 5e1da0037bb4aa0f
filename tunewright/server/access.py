"""Who may ask: tokens of tenants, in a file that only the server's user can read."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from tunewright.core.errors import ConfigError
from tunewright.core.run_folder import write_atomic

TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
COOKIE = "tunewright"
DEFAULT = "default"  # the tenant that also sees the runs of `tunewright run`


class Tokens:
    """A line for each tenant: its name and its token. A line that is added counts from the next request on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._changed = -1
        self._tenants: dict[str, str] = {}  # by token
        if not file.exists():
            self.add(DEFAULT)

    def add(self, tenant: str) -> str:
        """A new tenant's token. Raises CONFIG_RANGE."""
        if not TENANT.fullmatch(tenant):
            message, fix = f"`{tenant}` is not a name of a tenant.", "use lower-case letters, digits and dashes."
            raise ConfigError("CONFIG_RANGE", message, where="--add-tenant", fix=fix)
        before = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        if tenant in self.of(before).values():
            message, fix = f"there is a tenant {tenant}.", f"its token is in {self._file}."
            raise ConfigError("CONFIG_CONFLICT", message, where="--add-tenant", fix=fix)
        token = f"tw-{secrets.token_urlsafe(24)}"
        write_atomic(self._file, f"{before}{tenant} {token}\n")
        return token

    @staticmethod
    def of(text: str) -> dict[str, str]:
        pairs = (line.split() for line in text.splitlines() if line.strip() and not line.startswith("#"))
        return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}

    def current(self) -> dict[str, str]:
        """Tenants by token."""
        changed = self._file.stat().st_mtime_ns
        if changed != self._changed:
            self._tenants, self._changed = self.of(self._file.read_text(encoding="utf-8")), changed
        return self._tenants

    def token_of(self, tenant: str) -> str:
        return next(token for token, name in self.current().items() if name == tenant)

    def tenant(self, token: str) -> str | None:
        """The tenant that has this token. Every token is compared completely, so the time says nothing."""
        return self._owner(token, lambda known: known)

    def visitor(self, cookie: str) -> str | None:
        """The tenant whose browser has this cookie."""
        return self._owner(cookie, cookie_of)

    def _owner(self, given: str, of: Callable[[str], str]) -> str | None:
        owner = None
        for token, tenant in self.current().items():
            if hmac.compare_digest(_digest(given), _digest(of(token))):
                owner = tenant
        return owner


def cookie_of(token: str) -> str:
    """For a browser: the token cannot be read from it, and with another token it ends."""
    return hmac.new(token.encode(), b"dashboard", hashlib.sha256).hexdigest()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
