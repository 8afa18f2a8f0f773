"""The gateway's certificates: made, renewed before they expire, and injected where clients look for the authority."""

import ssl

from kit.tls import Identity


class Certificates:
    """What this replica shows, and whom it believes."""

    def __init__(self) -> None:
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.client: Identity | None = None
        """How the gateway shows itself to handlers. A new object after every renewal; None before the first."""

    def trust_clients(self, authorities: bytes) -> None:
        """Whose client certificates the server takes (the front proxy's authorities, PEM); replaces the earlier ones.

        A client may come without any; what it then may do is the matter of who answers it. The subject is found by
        `request.transport.get_extra_info("peercert")`.
        """
        self.server.load_verify_locations(cadata=authorities.decode())
