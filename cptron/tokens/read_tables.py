"""Records out of tables: Parquet files, and Arrow files as the Hugging Face `datasets` library saves them.

Place in the flow: `read_blocks` calls this for such inputs.
Invariant: a row is found by its number alone, so the rows do not depend on where reading resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cptron.errors import DataError
from cptron.tokens.inputs import Input
from cptron.tokens.records import (
    MAX_RAW_BYTES,
    BadRecordError,
    Parsed,
    Position,
    Reject,
    Value,
    chat_columns,
    check_chat,
    check_utf8,
    nested_bytes,
    whole_chat,
)

_BLOCK_BYTES = 1 << 20
_BLOCK_RECORDS = 4096
_READ_ROWS = 1024
"""Rows decoded at once at most: their sizes are known only on average before."""
_NO_OBJECT = (ValueError, LookupError, ArithmeticError)
"""What pyarrow raises for a value that Python has no object for; no text and no known zone are among them."""
_ARROW_FILE = b"ARROW1"
_ARROW_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


@dataclass(frozen=True, slots=True)
class TableBlock:
    """Consecutive rows."""

    path: str
    rows: Any
    """A pyarrow RecordBatch."""
    rows_before: int
    end: Position
    stored_bytes_read: int
    max_record_bytes: int

    @property
    def num_bytes(self) -> int:
        """See `RawBlock`."""
        return int(self.rows.nbytes)

    def parse(self, keys: Sequence[str], *, chat: bool) -> Parsed:
        """See `RawBlock`. Raises DataError when a column is missing or cannot hold texts."""
        check_columns(self.path, keys, self.rows.schema.names)
        beside = chat_columns(keys, self.rows.schema.names) if chat else []
        columns = [_to_list(self.path, key, self.rows.column(key), chat) for key in (*keys, *beside)]
        values: list[tuple[Value, ...]] = []
        numbers: list[int] = []
        rejects: list[Reject] = []
        for number, row in enumerate(zip(*columns, strict=True), start=self.rows_before + 1):
            try:
                self._check_length(row)
                record = tuple([_value(key, value) for key, value in zip(keys, row, strict=False)])
                if beside:
                    siblings = dict(zip(beside, map(_plain, row[len(keys) :]), strict=True))
                    record = tuple(
                        check_chat(whole_chat(key, value, siblings))
                        if not isinstance(value, bytes)
                        else value
                        for key, value in zip(keys, record, strict=True)
                    )
                values.append(record)
                numbers.append(number)
            except BadRecordError as error:
                raw = next((value for value in row if isinstance(value, bytes)), b"")[:MAX_RAW_BYTES]
                rejects.append(Reject(self.path, number, error.reason, error.detail, raw))
        text_bytes = sum(len(value) for record in values for value in record if isinstance(value, bytes))
        return Parsed(values, numbers, rejects, len(values) + len(rejects), text_bytes)

    def _check_length(self, row: tuple[Any, ...]) -> None:
        num_bytes = sum(map(nested_bytes, row))
        if num_bytes > self.max_record_bytes:
            limit = self.max_record_bytes
            raise BadRecordError(
                "too_long", f"the row has {num_bytes} bytes, more than the {limit} a record may have"
            )


def read_parquet(
    source: Input, start: Position, max_record_bytes: int, keys: Sequence[str] | None
) -> Iterator[TableBlock]:
    """Blocks of a Parquet file from row `start.record` on."""
    parquet = _pyarrow("parquet")
    with _damage_reported(source, "Parquet"), parquet.ParquetFile(source.path, pre_buffer=False) as file:
        metadata = file.metadata
        names = file.schema_arrow.names
        check_columns(str(source.path), keys or (), names)
        first = 0
        for group in range(metadata.num_row_groups):
            num_rows = metadata.row_group(group).num_rows
            if first + num_rows > start.record:
                batches = file.iter_batches(
                    _rows_per_read(metadata.row_group(group)),
                    row_groups=[group],
                    columns=[*keys, *chat_columns(keys, names)] if keys else names,
                    use_threads=False,
                )
                for rows in batches:
                    read = source.stored_bytes * (first + rows.num_rows) // metadata.num_rows
                    yield from _blocks(source, rows, first, start, read, max_record_bytes)
                    first += rows.num_rows
            else:
                first += num_rows


def read_arrow(
    source: Input, start: Position, max_record_bytes: int, keys: Sequence[str] | None
) -> Iterator[TableBlock]:
    """Blocks of an Arrow file (stream or random access format) from row `start.record` on."""
    arrow = _pyarrow("ipc")
    with _damage_reported(source, "Arrow"), _pyarrow().memory_map(str(source.path)) as mapped:
        is_file = mapped.read(len(_ARROW_FILE)) == _ARROW_FILE
        mapped.seek(0)
        reader = arrow.open_file(mapped) if is_file else arrow.open_stream(mapped)
        check_columns(str(source.path), keys or (), reader.schema.names)
        if not is_file:
            _check_stream_end(source)
        first = 0
        for rows in _batches(reader):
            if first + rows.num_rows > start.record:
                wanted = rows.select([*keys, *chat_columns(keys, rows.schema.names)]) if keys else rows
                for column in wanted.columns:
                    column.view(_with_bytes(column.type)).validate(full=True)
                yield from _blocks(source, wanted, first, start, mapped.tell(), max_record_bytes)
            first += rows.num_rows


def check_table(source: Input, text_key: str, others: Sequence[str]) -> None:
    """Raises DataError for what would end the reading of a Parquet or Arrow file, as far as it can be known without
    reading it: no sound end, a column that is not there, a text that is none."""
    parquet, arrow = _pyarrow("parquet"), _pyarrow("ipc")
    path = str(source.path)
    if source.kind == "parquet":
        with _damage_reported(source, "Parquet"):
            schema = parquet.read_schema(source.path)
    else:
        with _damage_reported(source, "Arrow"), _pyarrow().memory_map(path) as mapped:
            is_file = mapped.read(len(_ARROW_FILE)) == _ARROW_FILE
            mapped.seek(0)
            schema = (arrow.open_file(mapped) if is_file else arrow.open_stream(mapped)).schema
        if not is_file:
            _check_stream_end(source)
    check_columns(path, [text_key, *others], schema.names)
    kind = schema.field(schema.names.index(text_key)).type
    types = _pyarrow().types
    _require_text(path, text_key, kind.value_type if types.is_dictionary(kind) else kind)


def _require_text(path: str, key: str, kind: Any) -> None:
    types = _pyarrow().types
    if not (types.is_null(kind) or _is_text(types, kind)):
        raise DataError(f"{path} has {kind} in column {key!r}, must be a string; choose with --json-keys")


def check_columns(path: str, wanted: Sequence[str], present: Sequence[str]) -> None:
    """Raises DataError for a column that is not there."""
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r}, only {', '.join(present)}; "
            "choose another (--json-keys, or text_key and meta_keys of a curation)"
        )


def _longest_shared(column: Any) -> int:
    """Bytes of the longest text of a dictionary, which any number of rows may refer to."""
    arrow = _pyarrow("compute")
    if not _pyarrow().types.is_dictionary(column.type):
        return 0
    lengths = arrow.binary_length(column.dictionary)
    return int(arrow.max(lengths).as_py() or 0)


def _blocks(
    source: Input, rows: Any, first: int, start: Position, stored_bytes_read: int, max_record_bytes: int
) -> Iterator[TableBlock]:
    """`rows` from row `start.record` of the file on; `first` is the number of the batch's first row."""
    row_bytes = rows.nbytes / max(1, rows.num_rows) + sum(map(_longest_shared, rows.columns))
    size = max(1, int(_BLOCK_BYTES / max(row_bytes, 1e-9)))
    size = min(size, _BLOCK_RECORDS)
    for begin in range(max(0, start.record - first), rows.num_rows, size):
        piece = rows.slice(begin, size)
        end = Position(start.file, first + begin + piece.num_rows, 0)
        yield TableBlock(str(source.path), piece, first + begin, end, stored_bytes_read, max_record_bytes)


def _with_bytes(kind: Any) -> Any:
    """`kind` with bytes for its texts. pyarrow takes the places of values from the file as they are, and reads outside
    of it where they are wrong; its full check finds that, but would also refuse all rows for one that is not UTF-8."""
    arrow = _pyarrow()
    types = arrow.types
    if types.is_string(kind):
        return arrow.binary()
    if types.is_large_string(kind):
        return arrow.large_binary()
    if types.is_list(kind):
        return arrow.list_(kind.value_field.with_type(_with_bytes(kind.value_type)))
    if types.is_large_list(kind):
        return arrow.large_list(kind.value_field.with_type(_with_bytes(kind.value_type)))
    if types.is_struct(kind):
        return arrow.struct([field.with_type(_with_bytes(field.type)) for field in kind])
    return kind


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    else:
        yield from reader


def _rows_per_read(group: Any) -> int:
    """Rows of about a block, by the size of all columns: of a damaged file pyarrow aborts when it is asked for one."""
    return int(min(max(1, group.num_rows * _BLOCK_BYTES // max(1, group.total_byte_size)), _READ_ROWS))


def _to_list(path: str, key: str, column: Any, chat: bool) -> list[Any]:
    """Python objects of a column: bytes for texts, None for null."""
    arrow = _pyarrow()
    types = arrow.types
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_null(kind):
        return [None] * len(column)
    if chat and types.is_nested(kind):
        return [_to_object(scalar) for scalar in column]
    _require_text(path, key, kind)
    values: list[Any] = column.cast(arrow.large_binary()).to_pylist()
    return values


def _is_text(types: Any, kind: Any) -> bool:
    """Binary counts: some writers do not mark texts as such, and what is not UTF-8 is found by record."""
    return any(
        check(kind)
        for check in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    ) or (hasattr(types, "is_string_view") and types.is_string_view(kind))


def _to_object(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


def _plain(value: Any) -> Any:
    """A text beside a chat as the string that it is in JSON. Raises BadRecordError."""
    if isinstance(value, UnicodeDecodeError):
        raise BadRecordError("bad_utf8", value.reason)
    return check_utf8(value).decode() if isinstance(value, bytes) else value


def _value(key: str, value: Any) -> Value:
    if isinstance(value, bytes):
        return check_utf8(value)
    if isinstance(value, list | dict):
        return check_chat(value)
    if isinstance(value, UnicodeDecodeError):
        raise BadRecordError("bad_utf8", f"{value.reason} in column {key!r}")
    raise BadRecordError("not_a_string", f"column {key!r} holds null, must be a string")


def _check_stream_end(source: Input) -> None:
    """pyarrow takes a stream that is cut off between two batches for a shorter one."""
    with source.path.open("rb") as file:
        file.seek(-len(_ARROW_STREAM_END), 2)
        if file.read() != _ARROW_STREAM_END:
            raise DataError(
                f"{source.path} must end as an Arrow stream does, is cut off; copy the file again"
            )


@contextmanager
def _damage_reported(source: Input, name: str) -> Iterator[None]:
    """A damaged table is an error, not a reject: how many rows are lost is unknown."""
    arrow = _pyarrow()
    try:
        yield
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())[:200]
        raise DataError(f"{source.path} must be a sound {name} file ({message}); copy it again") from error


def _pyarrow(part: str | None = None) -> ModuleType:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
        import pyarrow.parquet
        import pyarrow.types
    except ImportError as error:
        raise DataError(
            f"Parquet and Arrow files need pyarrow ({error}), must be installed; pip install 'cptron[data]'"
        ) from error
    module: ModuleType = pyarrow if part is None else getattr(pyarrow, part)
    return module


def parquet_groups(source: Input) -> list[tuple[int, int]]:
    """Rows and stored bytes of each row group. Raises DataError for a damaged file."""
    parquet = _pyarrow("parquet")
    with _damage_reported(source, "Parquet"), parquet.ParquetFile(source.path, pre_buffer=False) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        return [
            (group.num_rows, sum(group.column(i).total_compressed_size for i in range(group.num_columns)))
            for group in groups
        ]


def plain_rows(rows: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    """Columns `names` of a RecordBatch as Python objects, row by row; what cannot be one (bytes that are no UTF-8, a
    time before the year 1) is None, and a moment in a zone that nobody knows is in UTC."""
    columns = {name: _objects(rows.column(name)) for name in names}
    return [{name: column[number] for name, column in columns.items()} for number in range(rows.num_rows)]


def _objects(column: Any) -> list[Any]:
    try:
        return list(column.to_pylist())
    except _NO_OBJECT:
        return [_object(value) for value in _in_utc(column)]


def _object(value: Any) -> Any:
    try:
        return value.as_py()
    except _NO_OBJECT:
        return None


def _in_utc(column: Any) -> Any:
    """The same moments, where the column holds some: UTC alone is known everywhere."""
    pyarrow = _pyarrow()
    kind = column.type
    if not pyarrow.types.is_timestamp(kind) or kind.tz is None:
        return column
    return column.cast(pyarrow.timestamp(kind.unit, "UTC"))
