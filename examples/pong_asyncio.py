"""A client with asyncio: it sends words to the service `pong` and prints what comes back.

    export IPC_RUNDIR=/run/ipc                                # where the broker is
    export IPC_NETWORKD="pong tcp://192.0.2.1:9000/pong"      # or nothing, for the local one
    python3 examples/pong_asyncio.py hello "bounce me"

The service may be any of the three beside this file, here or on another machine.
"""

import asyncio
import sys

from plumberd import aio, client


async def main() -> None:
    """Send every argument as one message, and wait for its answer before the next."""
    try:
        reader, writer = await aio.open_connection("pong")
    except client.Error as e:
        sys.exit(f"pong: {e.strerror or e}")
    for word in sys.argv[1:] or ["hello"]:
        payload = word.encode()
        writer.write(len(payload).to_bytes(4, "big") + payload)
        length = int.from_bytes(await reader.readexactly(4), "big")
        print((await reader.readexactly(length)).decode(), flush=True)
    writer.close()
    await writer.wait_closed()


if __name__ == "__main__":
    asyncio.run(main())
