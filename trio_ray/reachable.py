"""Whether anything listens at an address, asked once before a client that would try again for minutes is let loose.

To try again is right for a server that is overloaded or starts anew. An address from which nobody answers should be
said in seconds.
"""

from __future__ import annotations

import socket
import time

TRIES = 4
PAUSE_S = 1.0
CONNECT_S = 5.0


def why_unreachable(host: str, port: int) -> str | None:
    """Connect and hang up, several times if need be; None if that works, else the reason in a few words."""
    why = ""
    for attempt in range(TRIES):
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except OSError as error:  # also a name without an address
            why = error.strerror or str(error)
        else:
            return None
        if attempt + 1 < TRIES:
            time.sleep(PAUSE_S)
    return why
