"""Writes small MCAP logs with the library of the format, for the tests of their reader."""

import json

from mcap.writer import Writer  # pyright: ignore[reportMissingImports]

START = 1_700_000_000 * 10**9


def write_log(path, imu=20, first=0, channels=1, chunk=300, **options):
    """Writes a log: /imu every 10 ms, /camera (not JSON) every 30 ms from 15 ms on, /map once at 95 ms."""
    with open(path, "wb") as file:
        writer = Writer(file, chunk_size=chunk, **options)
        writer.start()
        ids = {}
        for topic, encoding in (("/imu", "json"), ("/camera", "raw"), ("/map", "json")):
            schema = writer.register_schema(topic, "jsonschema", b"{}")
            ids[topic] = [writer.register_channel(topic, encoding, schema) for _ in range(channels)]
        messages = [(10 * i, "/imu", json.dumps({"i": first + i, "xyz": [i, 1.5, 2]}).encode()) for i in range(imu)]
        messages += [(15 + 30 * i, "/camera", bytes([i])) for i in range(imu // 3)]
        messages.append((95, "/map", b'{"name": "a"}'))
        for number, (ms, topic, data) in enumerate(sorted(messages, key=lambda message: message[0])):
            time = START + ms * 10**6
            writer.add_message(ids[topic][number % channels], time, data, time)
        writer.finish()
    return path
