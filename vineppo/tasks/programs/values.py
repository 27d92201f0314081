"""Plain values as JSON and back. Its text also runs inside of the sandbox, so the standard library is all it needs."""

import json

BUILDERS = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "bytes": bytes,
    "complex": lambda parts: complex(*parts),
}


def pack(value):
    """What json can write. Raises TypeError for what is no literal."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": list(value)}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [pack(item) for item in value]}
    raise TypeError(f"{type(value).__name__} is no plain value")


def unpack(packed):
    """The value again. Raises ValueError, TypeError or RecursionError where nobody packed this."""
    if isinstance(packed, list):
        return [unpack(item) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, items),) = packed.items()
    if kind not in BUILDERS or not isinstance(items, list):  # bytes(n) would be n bytes of memory
        raise ValueError(f"no kind of value: {kind!r}")
    return BUILDERS[kind](unpack(items))


def write(message):
    return json.dumps(message) + "\n"
