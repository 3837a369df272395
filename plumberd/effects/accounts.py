"""Names of users and groups to the numbers that this machine has for them."""

from __future__ import annotations

import grp
import pwd

_NO_ID = 2**32 - 1
"""What means "leave it as it is" to chown(2); nobody has it."""


STRANGER = -1
"""The number of who has none here."""


class Accounts:
    """Asks for each name once, as long as it lives: behind the names may be a slow directory service.

    A new one for each reading of a configuration, so that new users are known to it.
    """

    def __init__(self) -> None:
        self._uids: dict[str, int | None] = {}
        self._gids: dict[str, int | None] = {}

    def uid_of(self, name: str) -> int | None:
        """Return the uid of the user *name*, or ``None`` where there is none."""
        if name not in self._uids:
            try:
                self._uids[name] = pwd.getpwnam(name).pw_uid
            except (KeyError, ValueError):  # a ValueError is for text that can be no name: a NUL in it, say
                self._uids[name] = None
        return self._uids[name]

    def gid_of(self, name: str) -> int | None:
        """Return the gid of the group *name*, or ``None`` where there is none."""
        if name not in self._gids:
            try:
                self._gids[name] = grp.getgrnam(name).gr_gid
            except (KeyError, ValueError):
                self._gids[name] = None
        return self._gids[name]

    def uid_of_word(self, word: str) -> int | None:
        """Return the uid that *word* says, by name or as a number; of a number nobody needs to exist."""
        if word.isascii() and word.isdecimal():
            return int(word) if len(word) <= 10 and int(word) < _NO_ID else None
        return self.uid_of(word)


class StrangersToo(Accounts):
    """Takes every name for somebody's: for who tries a configuration out on another machine than its own.

    Who is not known here has the number :data:`STRANGER`, which nobody who asks ever has.
    """

    def uid_of(self, name: str) -> int:
        """See :meth:`Accounts.uid_of`."""
        found = super().uid_of(name)
        return STRANGER if found is None else found

    def gid_of(self, name: str) -> int:
        """See :meth:`Accounts.gid_of`."""
        found = super().gid_of(name)
        return STRANGER if found is None else found
