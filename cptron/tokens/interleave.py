"""`cptron interleave`: every document right behind the questions about it, in one JSONL file.

Place in the flow: before `preprocess --chat-and-text`, for pre-instruction-tuning (docs/instruction.md).
Invariant: the output has every document once, in the order of the input, and every question once, in the order of its
input, right before its document (`qa_first`) or right behind it (`doc_first`); else there is no output.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from cptron.durable import replacing
from cptron.errors import DataError
from cptron.json_text import parse_json
from cptron.report.console import table
from cptron.tokens.inputs import expand_inputs
from cptron.tokens.read_lines import read_lines
from cptron.tokens.records import CHAT_LISTS, Position, whole_chat

Order = Literal["qa_first", "doc_first"]
Unpaired = Literal["stop", "drop"]

KEY = "messages"
"""Of every record that is written: a chat, or a text."""
_MAX_RECORD_BYTES = 64 << 20
_REMEDY = "correct it"


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """Where the input has what is needed."""

    id: str = "id"
    text: str = "text"
    question: str = "question"
    answer: str = "answer"
    question_id: str = ""
    """Where a question has the id of its document; empty for `id`."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was written, and what was not."""

    documents: int
    documents_with_questions: int
    questions: int
    unpaired: int
    """Questions about no document, dropped."""


def interleave(
    documents: Sequence[str],
    questions: Sequence[str],
    output: Path,
    *,
    keys: Keys | None = None,
    order: Order = "qa_first",
    unpaired: Unpaired = "stop",
) -> Counts:
    """Write `output`. All questions are held in memory.

    Raises DataError, and writes nothing, on a record that is no document or question, an id that two documents have,
    and, unless `unpaired` is drop, a question about no document.
    """
    keys = keys or Keys()
    if output.exists():
        raise DataError(f"{output} already exists; choose another --output or remove it")
    waiting: dict[str, list[str]] = {}
    for where, record in _records(questions):
        waiting.setdefault(_id(where, record, keys.question_id or keys.id), []).append(
            _question(where, record, keys)
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as partial:
            with partial.open("w", encoding="utf-8") as stream:
                counts = _write(stream, documents, waiting, keys, order)
            if counts.unpaired and unpaired == "stop":
                raise DataError(
                    f"{counts.unpaired} question(s) have an {keys.question_id or keys.id} that no document has (such "
                    f"as {next(iter(waiting))!r}); add the documents, or --unpaired drop"
                )
    except OSError as error:
        raise DataError(
            f"{output} cannot be written ({error.strerror}); make room, or write elsewhere"
        ) from error
    return counts


def _write(
    stream: IO[str], documents: Sequence[str], waiting: dict[str, list[str]], keys: Keys, order: Order
) -> Counts:
    """Write every document with what waits for it; what nothing came for stays in `waiting`."""
    seen: set[str] = set()
    with_questions = questions = 0
    for where, record in _records(documents):
        name = _id(where, record, keys.id)
        if name in seen:
            raise DataError(
                f"{where} has the {keys.id} {name!r} of an earlier document, must have its own; {_REMEDY}"
            )
        seen.add(name)
        own = waiting.pop(name, [])
        text = _line(_string(where, record, keys.text))
        stream.writelines([*own, text] if order == "qa_first" else [text, *own])
        with_questions += bool(own)
        questions += len(own)
    return Counts(len(seen), with_questions, questions, sum(map(len, waiting.values())))


def _records(patterns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every line of JSONL files as an object, with its place for messages. Raises DataError."""
    for source in expand_inputs(patterns):
        if source.kind != "jsonl":
            raise DataError(f"{source.path} is of the kind {source.kind}, must be JSONL; convert it")
        for block in read_lines(source, Position(0, 0, 0), _MAX_RECORD_BYTES):
            if block.tail is not None:
                raise DataError(
                    f"{source.path} is damaged ({block.tail.reason}: {block.tail.detail}); {_REMEDY}"
                )
            lines = block.data.split(b"\n")
            if not lines[-1]:
                lines.pop()  # what follows the last line end is not a line
            for number, line in enumerate(lines, start=block.records_before + 1):
                yield f"{source.path}:{number}", _object(f"{source.path}:{number}", line)


def _object(where: str, line: bytes) -> Mapping[str, Any]:
    try:
        record = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where} must be JSON ({error}); {_REMEDY}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where} holds a {type(record).__name__}, must be an object; {_REMEDY}")
    return record


def _id(where: str, record: Mapping[str, Any], key: str) -> str:
    """7 and "7" are one id."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f"{where} has {value!r} as its {key}, must have a text or a whole number; name the key with --id-key "
            "or --question-id-key"
        )
    return str(value)


def _question(where: str, record: Mapping[str, Any], keys: Keys) -> str:
    """Its line: a chat as it is, a question with its answer as a chat, or a text."""
    for name in CHAT_LISTS:
        if isinstance(record.get(name), list):
            return _line(whole_chat(name, record[name], record))
    if keys.question in record:
        question, answer = (_string(where, record, key) for key in (keys.question, keys.answer))
        return _line([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    if keys.text in record:
        return _line(_string(where, record, keys.text))
    raise DataError(
        f"{where} has the keys {sorted(record)}, must have {' or '.join(CHAT_LISTS)}, {keys.question} and "
        f"{keys.answer}, or {keys.text}; name them with --question-key and --answer-key"
    )


def _string(where: str, record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where} has a {type(value).__name__} at {key!r}, must have a text; {_REMEDY}")
    return value


def _line(value: Any) -> str:
    return json.dumps({KEY: value}) + "\n"


def main(argv: Sequence[str]) -> int:
    """Run `cptron interleave`."""
    parser = argparse.ArgumentParser(
        prog="cptron interleave",
        description="Documents and questions about them -> one JSONL file, in order.",
    )
    parser.add_argument("--documents", nargs="+", required=True, help="JSONL files, with a text and an id")
    parser.add_argument(
        "--questions", nargs="+", required=True,
        help="JSONL files, with the id of a document and a chat, a question and its answer, or a text",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="new JSONL file")
    parser.add_argument("--order", choices=get_args(Order), default="qa_first", help="default: qa_first")
    parser.add_argument(
        "--unpaired", choices=get_args(Unpaired), default="stop",
        help="what a question about no document does (default: stop)",
    )  # fmt: skip
    for name in ("id", "text", "question", "answer"):
        parser.add_argument(f"--{name}-key", default=name, help=f"default: {name}")
    parser.add_argument(
        "--question-id-key", default="",
        help="of questions, where it is another one: document_id for those of the curation step synthesise",
    )  # fmt: skip
    args = parser.parse_args(argv)
    counts = interleave(
        args.documents,
        args.questions,
        args.output,
        keys=Keys(
            id=args.id_key,
            text=args.text_key,
            question=args.question_key,
            answer=args.answer_key,
            question_id=args.question_id_key,
        ),
        order=args.order,
        unpaired=args.unpaired,
    )
    numbers = (counts.documents, counts.documents_with_questions, counts.questions, counts.unpaired)
    headers = ("documents", "with questions", "questions", "dropped", "file")
    print(table(headers, [(*(f"{number:,}" for number in numbers), str(args.output))]))
    return 0
