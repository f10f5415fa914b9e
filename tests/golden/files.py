#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the golden files beside this one: what the Python libraries `safetensors` and `tensorboard` write, as text.

    pip install safetensors tensorboard        (beside torch; the files do not depend on the versions)
    python tests/golden/files.py

A line is a record: a name, a colon, the bytes in hexadecimal. The last line of each file counts its records.
"""
import io
import pathlib
import struct
import tempfile
import zlib

import safetensors.torch
import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter, summary

HERE = pathlib.Path(__file__).resolve().parent


def write(name, what, records):
    lines = [f"# {what}", "# Written by files.py; do not edit."]
    lines += [f"{key} : {data.hex()}" for key, data in records]
    lines.append(f"records {len(records)} :")
    (HERE / name).write_text("\n".join(lines) + "\n")


# ---- safetensors ----------------------------------------------------------------------------------------------------

TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "C64": torch.complex64, "F64": torch.float64,
    "I64": torch.int64, "U64": torch.uint64,
}


def raw(data, dtype, shape):
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)


def pattern(count):
    return bytes((37 * k + 11) % 256 for k in range(count))


def tensor_files():
    every = {}
    for name, dtype in TYPES.items():
        size = torch.empty(0, dtype=dtype).element_size()
        data = bytes(k % 2 for k in range(6)) if dtype == torch.bool else pattern(6 * size)
        every[f"layer.{name}"] = raw(data, dtype, (2, 3))
    shapes = {
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0),
        "flat": torch.empty((2, 0, 3), dtype=torch.int16),
        "deep": torch.arange(2, dtype=torch.int32).reshape(1, 1, 1, 2, 1),
        "Zürich \"quoted\" \\ / \b\f\n\r\t\x01\x7f 深 \U0001f600": torch.tensor([1], dtype=torch.uint8),
    }
    floats = {"bits": raw(struct.pack("<6I", 0x7FC00001, 0xFFBFFFFF, 0x80000000, 0x7F800000, 0xFF800000, 1), torch.float32, (6,))}
    save = safetensors.torch.save
    write("safetensors.txt", "safetensors.torch.save: what : the file", [
        ("empty", save({})),
        ("metadata", save({}, {"Grüße \"1\"": "line\nend \u2028 \U0001f600"})),
        ("types", save(every)),
        ("shapes", save(shapes, {"format": "pt"})),
        ("floats", save(floats)),
    ])


# ---- TensorBoard ----------------------------------------------------------------------------------------------------

SECONDS = 1700000000.25


def record(data):
    out = io.BytesIO()
    RecordWriter(out).write(data)
    return out.getvalue()


def event(**fields):
    return record(Event(wall_time=SECONDS, **fields).SerializeToString())


def png(width, height):
    """Black, RGB."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = (b"\0" + b"\0\0\0" * width) * height
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def event_files():
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        bins = writer.default_bins
    def histogram(values):
        return summary.histogram("layer/weight", torch.tensor(values, dtype=torch.float64), bins)
    picture = Summary.Image(height=2, width=3, colorspace=3, encoded_image_string=png(3, 2))
    two = Summary(value=[summary.scalar("a", 1.0).value[0], summary.scalar("b", 2.0).value[0]])
    records = [
        ("version", event(file_version="brain.Event:2")),
        ("scalar", event(step=3, summary=summary.scalar("train/loss", 0.1))),
        ("scalar_zero", event(step=0, summary=summary.scalar("zero", 0.0))),
        ("scalar_minus_zero", event(step=1, summary=summary.scalar("zero", -0.0))),
        ("scalar_nan", event(step=2**40, summary=summary.scalar("nan", float("nan")))),
        ("scalar_inf", event(step=-1, summary=summary.scalar("inf", float("-inf")))),
        ("scalar_huge", event(step=5, summary=summary.scalar("huge", 1e300))),
        ("seconds_minus_zero", record(Event(wall_time=-0.0, step=1, summary=summary.scalar("a", 1.0)).SerializeToString())),
        ("scalars", event(step=6, summary=two)),
        ("text", event(step=7, summary=summary.text("notes", "Grüße **fett** 深\n\n| a | b |"))),
        ("text_empty", event(step=8, summary=summary.text("notes", ""))),
        ("histogram", event(step=9, summary=histogram([0.125, 0.25, 3.0, 3.0625, 1.0, 0.5, 7.0, 7.5]))),
        ("histogram_negative", event(step=9, summary=histogram([-2.5, -1.0, -1.0, -2.0]))),
        ("histogram_about_zero", event(step=9, summary=histogram([-(2.0**-44), -0.0, 0.0, 2.0**-44, 2.0**-39, -(2.0**-39)]))),
        ("histogram_one", event(step=10, summary=histogram([0.0]))),
        ("histogram_wide", event(step=11, summary=histogram([-(2.0**100), 2.0**100, 2.0**60, 2.0**100]))),
        ("histogram_nan", event(step=12, summary=histogram([float("nan"), 1.0]))),
        ("image", event(step=13, summary=Summary(value=[Summary.Value(tag="picture", image=picture)]))),
        ("png", png(3, 2)),
        ("restart_version", event(step=4, file_version="brain.Event:2")),
        ("restart", event(step=4, session_log=SessionLog(status=SessionLog.START))),
    ]
    records += [(f"record_{n}", record(bytes((k * 73 + n) % 256 for k in range(n)))) for n in (0, 1, 7, 8, 9, 15, 16, 17, 300)]
    write("events.txt", "tensorboard's RecordWriter and torch.utils.tensorboard.summary: what : the record", records)


if __name__ == "__main__":
    tensor_files()
    event_files()
