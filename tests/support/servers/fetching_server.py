"""The server, to which this machine is a part of the internet and has the names of the image host."""

from __future__ import annotations

import socket
import sys

from server.cli import main
from server.images import fetching
from tests.support.peers.image_host import resolver

if __name__ == "__main__":
    fetching.is_public = lambda address: address.is_loopback
    socket.getaddrinfo = resolver(images_test=["127.0.0.1"])
    sys.exit(main())
