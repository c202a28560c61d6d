"""The image's HEALTHCHECK: exit status 0 while the worker in this container is ready to do its work, else 1.

Standard library only, and not urllib: a proxy that the environment names must not be asked.
"""

import http.client
import os
import sys

TIMEOUT_S = 3


def main() -> int:
    """Ask /readyz, and print what is missing."""
    port = int(os.environ.get("RECONSTREAM_HTTP_PORT") or 9108)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.read().decode().strip())
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer on port {port}: {error}")
        return 1
    finally:
        connection.close()
    return 0 if answer.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
