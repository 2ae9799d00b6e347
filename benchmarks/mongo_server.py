"""Serves MongoDB's clients until its input ends: prints its address first."""

from __future__ import annotations

import sys

from secantus import SecantusDBServer

if __name__ == "__main__":
    with SecantusDBServer(storage_path=sys.argv[1]) as server:
        print(server.uri, flush=True)
        sys.stdin.read()
