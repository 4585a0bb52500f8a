"""Valid files, damaged on purpose: bytes at random, values that hurt, containers rebuilt around them.

Every mutation draws from the ``random.Random`` it is given: the same seed gives the same file.
"""

import io
import json
import struct
import zipfile
from copy import deepcopy

import numpy as np

DEEP = [50, 500, 5_000, 100_000]
NUMBERS = [0, -1, 1, 2, 3, 7, 2**15, 2**31, 2**32, 2**53, 2**63, 2**64, 10**9, 10**12, 10**18, -(2**63)]
FLOATS = [0.0, -0.0, 0.5, 1e-300, 3e38, float("inf"), float("-inf"), float("nan")]
STRINGS = [
    "",
    ".",
    "..",
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "..\\..\\windows",
    "~",
    "~nobody-of-that-name/x",
    "a\0b",
    "\ud800",
    "\x1b[2J\x1b]0;x\x07",
    "line\nline",
    "%s%n{0}{self.__class__}",
    "{x:>999999999}",
    "x" * 300,
    "x" * 5000,
    "(" * 200,
    "(a+)+$",
    ".*.*.*.*.*.*.*.*.*.*x",
    "a{99999999999}",
    "float32",
    "null",
    "__class__",
    "__reduce__",
    "$(touch x)",
    "!!python/object/apply:os.system ['true']",
]
SEEDS = [None, True, False, [], {}, [[]], [None], {"": {}}, *NUMBERS, *FLOATS, *STRINGS]


def value(rng):
    """Something that does not belong where it is put."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randrange(-(2**40), 2**40)
    if kind == 1:
        return [value(rng) for _ in range(rng.randrange(4))]
    if kind == 2:
        return {str(rng.choice(STRINGS)): value(rng) for _ in range(rng.randrange(3))}
    return deepcopy(rng.choice(SEEDS))


def places(node, found=None):
    """Every (container, key) in plain values."""
    found = [] if found is None else found
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, item in items:
        found.append((node, key))
        places(item, found)
    return found


def plain(rng, tree):
    """One to four changes in a tree of plain values; returns the new tree."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        known = places(tree)
        if not known:
            return value(rng)
        node, key = rng.choice(known)
        change = rng.randrange(8)
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node, dict):
            node[str(rng.choice(STRINGS))] = node.pop(key)
        elif change == 2:
            other, there = rng.choice(known)
            node[key] = json.loads(json.dumps(other[there]))
        elif change == 3 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = rng.choice(NUMBERS + FLOATS)
        elif change == 4:
            node[key] = [node[key]] * rng.choice([1, 2, 100])
        else:
            node[key] = value(rng)
    return tree


def nested(rng, opening, closing, depths=DEEP):
    depth = rng.choice(depths)
    return (opening * depth + closing * rng.choice([0, depth])).encode()


def text(rng, tree):
    """A JSON text that is close to that of ``tree``, or is not JSON at all."""
    kind = rng.randrange(12)
    if kind == 0:
        return raw(rng, json.dumps(tree).encode())
    if kind == 1:
        return nested(rng, *rng.choice([("[", "]"), ('{"a":', "}")]))
    if kind == 2:
        known = places(tree)
        node, key = rng.choice(known) if known else ({"x": 0}, "x")
        marked = json.dumps(tree).replace(json.dumps(node[key]), rng.choice(["1" * 5000, "1e999", "NaN"]), 1)
        return marked.encode()
    return json.dumps(plain(rng, tree)).encode()


def raw(rng, data):
    """Bytes that were flipped, cut, repeated, moved or replaced."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        kind, size = rng.randrange(7), len(data)
        start = rng.randrange(size) if size else 0
        length = min(rng.choice([1, 2, 4, 8, 64]), size - start)
        if kind == 0 and size:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start : start + length] = rng.randbytes(length)
        elif kind == 2:
            del data[start : start + length]
        elif kind == 3:
            data[start:start] = data[start : start + length] * rng.choice([1, 2, 50])
        elif kind == 4:
            del data[start:]
        elif kind == 5:
            pattern = rng.choice(["<Q", ">Q", "<I", ">I", "<H"])
            number = rng.choice(NUMBERS) % 2 ** (8 * struct.calcsize(pattern))
            data[start : start + struct.calcsize(pattern)] = struct.pack(pattern, number)
        else:
            data[start : start + length] = rng.choice([b"\0", b"\xff", b" ", b"\n"]) * length
    return bytes(data)


def parts_of(data):
    """Header and body of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header, body, length=None):
    found = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(found) if length is None else length).to_bytes(8, "little") + found + body


def safetensors(rng, data):
    """A safetensors file whose header lies, or whose bytes are damaged; often it is still a valid one."""
    kind = rng.randrange(8)
    if kind == 0:
        return raw(rng, data)
    header, body = parts_of(data)
    if kind == 1:
        return joined(text(rng, header), body, rng.choice([None, None, 2**63 - 1, 10**13, 0, len(data)]))
    if kind == 2:
        return joined(plain(rng, header), body)
    return reshaped(rng, header, body)


def reshaped(rng, header, body):
    """A whole file with other names, shapes or values than were expected."""
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    change = rng.randrange(7)
    if change == 0:
        header[str(rng.choice(STRINGS))] = header.pop(name)
    elif change == 1:
        entry["shape"] = entry["shape"][::-1]
    elif change == 2:
        entry["shape"] = rng.choice(
            [[1, *entry["shape"]], [*entry["shape"], 1], [int(np.prod(entry["shape"]))]]
        )
    elif change == 3:
        start, stop = entry["data_offsets"]
        values = np.frombuffer(body[start:stop], dtype=np.uint8).copy()
        if len(values) >= 4:
            hurt = struct.pack("<f", rng.choice([*FLOATS, -3e38, 1e-40]))
            at = rng.randrange(0, len(values) - 3, 4)
            values[at : at + 4] = np.frombuffer(hurt, dtype=np.uint8)
        body = body[:start] + values.tobytes() + body[stop:]
    elif change == 4:
        same = {"F32": ["I32", "U32"], "I64": ["F64", "U64", "C64"], "U8": ["BOOL", "I8", "F8_E4M3"]}
        entry["dtype"] = rng.choice(same.get(entry["dtype"], ["U8"]))
    else:
        return without(header, body, name, rng)
    return joined(header, body)


def without(header, body, name, rng):
    """One tensor gone, or with as many entries as none: shapes that are huge and hold nothing."""
    start, stop = header[name]["data_offsets"]
    cut = stop - start
    for entry in header.values():
        offsets = entry.get("data_offsets")
        if offsets and offsets[0] >= stop:
            entry["data_offsets"] = [offset - cut for offset in offsets]
    empty = rng.choice([None, [0], [0, 10**12], [10**9, 0, 10**9], [0, 0]])
    if empty is None:
        del header[name]
    else:
        header[name] |= {"shape": empty, "data_offsets": [start, start]}
    return joined(header, body[:start] + body[stop:])


def npz(rng, arrays):
    """An archive of arrays: damaged, with headers that lie, or with what unpacks to far more than it is."""
    file = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    hurt = rng.choice(sorted(arrays))
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in arrays.items():
            packed = io.BytesIO()
            np.save(packed, array)
            data, kind = packed.getvalue(), rng.randrange(6)
            if name == hurt and kind < 4:
                data = _lying(rng, array) if kind else raw(rng, data)
            called = (
                rng.choice([s for s in STRINGS if s.isprintable()]) if name == hurt and kind == 4 else name
            )
            archive.writestr(zipfile.ZipInfo(f"{called}.npy"), data, method)
    found = file.getvalue()
    return raw(rng, found) if rng.random() < 0.3 else found


def _lying(rng, array):
    shape = rng.choice([(10**12,), (10**6, 10**7), (-1,), (2**62, 4), array.shape[::-1], (0, 10**12), ()])
    kind = rng.choice(["|u1", "<f8", "|O", "<U10", ">f4", "<c16", "<f2", "|b1", "<u4", "<M8[s]", "V8"])
    header = rng.choice(
        [f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}", "(" * 5000, ""]
    )
    head = (header + "\n").encode()
    version = rng.choice([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"])
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(head))
    return b"\x93NUMPY" + version + length + head + array.tobytes()


def yaml(rng, tree):
    """YAML that is damaged, nested, or says one thing many times through aliases."""
    kind = rng.randrange(8)
    if kind == 0:
        return nested(rng, *rng.choice([("[", "]"), ("{a: ", "}"), ("- ", ""), ("a:\n ", "")]), DEEP[:3])
    if kind == 1:
        return aliases()
    if kind == 2:
        odd = ["2024-99-99", "!!python/name:os.system", "!!binary x", "1:60:99", "0b2", "&a [*a]", "? [a]: b"]
        odd += ["!!set {a, b}", "!!timestamp '2001-13-40'", "!!int ''", "!!float ''", "1" * 5000, "<<: 3"]
        return f"method: average\noptions: {rng.choice([*odd, '*unknown', '!!bool maybe'])}".encode()
    if kind == 3:
        return raw(rng, json.dumps(tree).encode())
    return json.dumps(plain(rng, tree)).encode()


def aliases():
    """A word said 9^12 times in a few lines."""
    levels = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}' if i else 'lol'] * 9)}]" for i in range(12)]
    return "\n".join([*levels, "options: {a: *x11}"]).encode()


def lines(rng, data):
    """Text files: encodings, controls, huge lines, many lines."""
    kind = rng.randrange(6)
    if kind == 0:
        return raw(rng, data)
    if kind == 1:
        return rng.choice([b"\xff\xfe", b"\0", b"", b"\r\n" * 50, b"\xef\xbb\xbf"]) + data
    rows = data.decode("utf-8").split("\n")
    rows[rng.randrange(len(rows))] = str(value(rng))
    return "\n".join(rows).encode("utf-8", "surrogatepass")
