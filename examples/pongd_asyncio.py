"""A service with asyncio: it sends every message back, and has no networking code at all.

    python3 examples/pongd_asyncio.py /run/ipc [NAME]

It listens on `<run directory>/pong` and nothing else; a broker in that directory
lets local programs reach it, and those of other machines that its rules name. A
message is a 4-byte big-endian length and a payload.
"""

import asyncio
import contextlib
import os
import sys


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bounce messages until the client closes."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            header = await reader.readexactly(4)
            writer.write(header + await reader.readexactly(int.from_bytes(header, "big")))
            await writer.drain()
    writer.close()


async def main(rundir: str, name: str = "pong") -> None:
    """Listen for ever."""
    path = os.path.join(rundir, name)
    server = await asyncio.start_unix_server(serve, path)  # which takes over what lies there
    print(f"pongd: listening on {path}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
