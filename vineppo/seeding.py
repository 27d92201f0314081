"""Seeds are paths of content: what is drawn depends on what it is drawn for, never on batching or order."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

Part = int | str | Sequence[int]


def derive_seed(*path: Part) -> int:
    """A 63-bit seed for a path such as (run, iteration, "vine", problem.id, prefix_ids, k).

    Every part enters the hash with its type and length, so different paths cannot spell the same bytes.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in path:
        if isinstance(part, str):
            kind, payload = b"s", part.encode()
        elif isinstance(part, int):
            kind, payload = b"i", str(part).encode()
        else:
            kind, payload = b"l", array("q", part).tobytes()
        digest.update(kind + len(payload).to_bytes(8, "little") + payload)
    return int.from_bytes(digest.digest(), "little") >> 1
