"""Pickles that would do more than hold data, were they read without restriction; and archives that grow.

Place in the flow: planted in every file that is a pickle or holds one. All that could run would create a file in
the working directory or start a program; the worker watches for both.
"""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from fuzz_bytes import mutate_bytes, put_number

CANARY = "fuzz-canary"


def text(value: str) -> bytes:
    """A string of protocol 1 and later."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """The result of `module.name(*arguments)` on the stack, by GLOBAL and REDUCE."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def stack_call(module: str, name: str, *arguments: bytes) -> bytes:
    """The same by STACK_GLOBAL, which takes dotted names."""
    return text(module) + text(name) + b"\x93(" + b"".join(arguments) + b"tR"


SHELL = text(f"touch {CANARY}")
SOURCE = text(f"open({CANARY!r}, 'w')")
PARTS: Mapping[str, bytes] = {
    "os.system": call("os", "system", SHELL),
    "posix.system": call("posix", "system", SHELL),
    "subprocess.call": call("subprocess", "call", SHELL, b"K\0", b"NN", b"N"),
    "builtins.eval": call("builtins", "eval", SOURCE),
    "builtins.exec": stack_call("builtins", "exec", SOURCE),
    "builtins.open": call("builtins", "open", text(CANARY), text("w")),
    "getattr chain": call(
        "builtins", "getattr", call("importlib", "import_module", text("os")), text("system")
    )
    + b"("
    + SHELL
    + b"tR",
    "dotted name": stack_call("torch", "serialization.os.system", SHELL),
    "dotted name of an allowed module": stack_call(
        "torch.distributed.checkpoint.filesystem", "os.system", SHELL
    ),
    "dunder of an allowed class": stack_call("torch", "Size.__class__.__base__.__subclasses__"),
    "pathlib.Path.touch": call("pathlib", "Path.touch", call("pathlib", "PosixPath", text(CANARY))),
    "torch.load": call("torch", "load", text(CANARY)),
    "torch.hub": call("torch.hub", "load", text("a/b"), text("c")),
    "torch.Tensor.__reduce__": stack_call("torch", "Tensor.__reduce_ex__", b"K\2"),
    "torch._utils": call("torch._utils", "_import_dotted_name", text("os.system")),
    "numpy loader": call("numpy", "load", text(CANARY), b"N", b"\x88"),
    "functools.partial": call("functools", "partial", b"cos\nsystem\n", SHELL) + b"(tR",
    "operator.attrgetter": call("operator", "attrgetter", text("system")) + b"(cos\n__name__\ntR",
    "instance by INST": b"(" + SHELL + b"ios\nsystem\n",
    "instance by OBJ": b"(cos\nsystem\n" + SHELL + b"o",
    "NEWOBJ": b"csubprocess\nPopen\n(" + SHELL + b"t\x81",
    "NEWOBJ_EX": b"csubprocess\nPopen\n(t(" + text("args") + SHELL + b"d\x92",
    "BUILD with a setter": b"ccollections\nOrderedDict\n)R(" + text("__class__") + b"cos\n_Environ\ndb",
    "extension code": b"\x82\x01",
    "persistent id": text("storage") + b"Q",
    "persistent id of a call": call("os", "system", SHELL) + b"Q",
    "memo of a call": b"cos\nsystem\nq\x05" + b"0h\x05(" + SHELL + b"tR",
    "pickle in a pickle": call(
        "pickle", "loads", b"C" + bytes([24]) + b"cos\nsystem\n(X\x01\0\0\0xtR." + b" "
    ),
    "marshal": call("marshal", "loads", b"C\x02N."),
    "codecs": call("_codecs", "encode", text("x"), text("rot13")),
}
"""Each leaves one object on the stack."""


def calls(inside: bytes = b"") -> dict[str, bytes]:
    """Whole pickles; with `inside`, also within a valid pickle's dictionary."""
    found = {name: b"\x80\x04" + part + b"." for name, part in PARTS.items()}
    if inside.endswith(b"."):
        found |= {f"{name} beside valid data": inside[:-1] + part + b"0." for name, part in PARTS.items()}
    return found


def growing() -> dict[str, bytes]:
    """Pickles that ask for far more than they hold."""
    nest = b"".join(b"q%cK\1h%ch%c\x86" % (n % 256, n % 256, n % 256) for n in range(1, 60))
    hashed = b"\x80\x02K\1" + b"".join(
        b"q" + bytes([n]) + b"0h" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(60)
    )
    return {
        "memo at 2^32": b"\x80\x02}r\xff\xff\xff\xff.",
        "memo at 2^31": b"\x80\x02}r\xff\xff\xff\x7f.",
        "memo by text": b"}p4000000000\n.",
        "bytes of 2^40": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
        "bytearray of 2^34": b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b".",
        "text of 2^40": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b".",
        "integer of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "frame of 2^63": b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"N.",
        "integer of many digits": b"I" + b"9" * 200_000 + b"\n.",
        "marks": b"(" * 500_000 + b".",
        "tuples within tuples": b"\x80\x02" + b")" + b"\x85" * 100_000 + b".",
        "lists within lists": b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
        "tuple that doubles": b"\x80\x02K\1" + b"2\x86" * 200 + b".",
        "key that doubles": b"\x80\x02}K\1" + b"2\x86" * 60 + b"Ns.",
        "key that doubles by memo": b"\x80\x02}" + hashed[2:] + b"Ns.",
        "odd": b"\x80\x02" + nest + b".",
    }


def mutate_pickle(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A payload in the middle, another name, another operation, or bytes."""
    kind = draw.random()
    if kind < 0.45:
        return mutate_bytes(draw, content, others)
    at = draw.randrange(len(content)) if content else 0
    if kind < 0.65:
        return (
            content[:at] + draw.choice(list(PARTS.values())) + draw.choice((b"", b"0", b".")) + content[at:]
        )
    if kind < 0.75:
        names = (
            b"TensorProperties",
            b"TensorStorageMetadata",
            b"ChunkStorageMetadata",
            b"MetadataIndex",
            b"Size",
            b"_StorageInfo",
        )
        old, new = draw.choice(names), draw.choice((*names, b"system", b"eval", b"Size.__class__"))
        return content.replace(old, new, draw.choice((1, -1)))
    if kind < 0.85:
        return put_number(draw, content)
    return (
        content[:at]
        + bytes([draw.choice(b"()Rb\x81\x85\x86\x87tlde012NQ}]\x94qhrj\x8cX")])
        + content[at + draw.randrange(2) :]
    )


def archive(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive, as torch saves tensors in."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def tensor_pickle(
    numel: int, sizes: Sequence[int], strides: Sequence[int], offset: int = 0, around: bytes = b""
) -> bytes:
    """torch's description of a float tensor in record `data/0`; `around` names it, in a dictionary."""
    number = lambda value: b"\x8a\x09" + int(value).to_bytes(9, "little", signed=True)  # noqa: E731
    numbers = lambda values: b"(" + b"".join(map(number, values)) + b"t"  # noqa: E731
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(numel) + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(sizes) + numbers(strides)
    )
    tensor += b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02" + (b"}" + text("w") + tensor + b"s." if around else tensor + b".")


def archives(around: bytes) -> dict[str, bytes]:
    """Archives of tensors that are larger than their bytes, or packed; and of code."""
    pack = lambda pickled, data=bytes(64), method=zipfile.ZIP_STORED: archive(  # noqa: E731
        {"archive/data.pkl": pickled, "archive/data/0": data, "archive/version": b"3\n"}, method
    )
    whole = lambda *arguments, **named: tensor_pickle(*arguments, around=around, **named)  # noqa: E731
    found = {
        "more elements than bytes": pack(whole(2**40, [2**40], [1])),
        "expanded by stride 0": pack(whole(16, [2**20, 2**20], [0, 0])),
        "expanded to 4 GiB": pack(whole(16, [2**30], [0])),
        "offset beyond": pack(whole(16, [4], [1], offset=2**40)),
        "negative offset": pack(whole(16, [4], [1], offset=-4)),
        "negative size": pack(whole(16, [-4], [1])),
        "negative stride": pack(whole(16, [4, 4], [-4, 1])),
        "size that overflows": pack(whole(16, [2**62, 2**62], [1, 1])),
        "packed zeros": pack(whole(2**26, [2**26], [1]), bytes(2**28), zipfile.ZIP_DEFLATED),
        "no bytes": archive({"archive/data.pkl": whole(16, [16], [1])}),
        "no archive": b"PK\x05\x06" + bytes(18),
    }
    for name, part in PARTS.items():
        pickled = b"\x80\x02" + (b"}" + text("w") + part + b"s." if around else part + b".")
        found[f"code: {name}"] = pack(pickled)
    return found


def real_pickle(value: object) -> bytes:
    """By Python's own writer."""
    return pickle.dumps(value)


def canaries(directory: Path) -> list[Path]:
    """What a payload that ran would have left."""
    return [path for path in (directory / CANARY, Path(CANARY)) if path.exists()]


def mutate_archive(draw: random.Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Damage to a member of the archive, packed again, or to its bytes."""
    if draw.random() < 0.5:
        return mutate_bytes(draw, content, others)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            members = {name: file.read(name) for name in file.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError):
        return mutate_bytes(draw, content, others)
    name = draw.choice([*members, *(name for name in members if name.endswith("data.pkl"))])
    damage = mutate_pickle if name.endswith(".pkl") else mutate_bytes
    if draw.random() < 0.1:
        members.pop(name)
    else:
        members[name] = damage(draw, members[name], [])
    return archive(members, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
