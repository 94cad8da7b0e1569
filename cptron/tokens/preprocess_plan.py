"""What a run of preprocessing will do, settled before anything is written.

Place in the flow: `preprocess` makes a plan of its options and carries it out.
Invariant: what cannot work (tokenizer, special tokens, inputs, space on the disk) is refused here, not after hours.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cptron import __version__
from cptron.errors import DataError
from cptron.tokens.chat_template import ChatTemplate
from cptron.tokens.curated import Curated, curated_among
from cptron.tokens.encode import Encoder
from cptron.tokens.encode_chat import ChatBlocks
from cptron.tokens.engine import choose_engine
from cptron.tokens.indexed_writer import best_dtype
from cptron.tokens.inputs import Input, expand_inputs, partition_inputs
from cptron.tokens.outputs import OutputNames
from cptron.tokens.preprocess_options import PreprocessOptions
from cptron.tokens.read_blocks import read_blocks
from cptron.tokens.records import Position, Value
from cptron.tokens.source_hash import file_identity
from cptron.tokens.special_tokens import tokenizer_adds_bos
from cptron.tokens.tiktoken_tokenizer import TiktokenTokenizer
from cptron.tokens.tokenizer import Tokenizer, load_tokenizer

_SAMPLE_TEXTS = 200
_SAMPLE_BYTES = 250_000
_SAMPLE_TEXT_BYTES = 20_000
_TEXT_BYTES_PER_TOKEN = 7
"""Twice what is usual, so that only a disk that is clearly too small is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run, ready to start."""

    options: PreprocessOptions
    inputs: Sequence[Input]
    names: OutputNames
    tokenizer: Tokenizer
    encoder: Encoder
    engine: str
    """For the manifest: the engine, and how it was checked."""
    identity: Mapping[str, Any]
    """Everything that decides the output, for the journal."""
    corpora: Sequence[Curated]
    """Curated corpora that the inputs are files of."""
    partition_of: str
    """Hash of the list of inputs that is cut into parts; empty without parts."""
    chat_template: ChatTemplate | None
    """None where the values are no chats."""
    least_bytes: int
    """Output that is to be expected at least."""
    notes: Sequence[str]
    """For people."""

    @property
    def partition(self) -> str:
        """For the manifest."""
        options = self.options
        return "" if options.partition is None else f"{options.partition}/{options.partitions}"

    @property
    def workers(self) -> int:
        """Encoding threads."""
        return self.options.workers or len(os.sched_getaffinity(0))


def output_names(options: PreprocessOptions) -> OutputNames:
    """Prefixes of the files of a run, in Megatron's naming. Raises DataError when two keys are the same."""
    keys = options.json_keys
    if len(set(keys)) != len(keys):
        raise DataError(f"json keys {keys} must differ, each names an output; remove the repeated one")
    run = options.output_prefix
    if options.partition is not None:
        run = f"{run}_part-{options.partition:05d}-of-{options.partitions:05d}"
    return OutputNames(run=run, prefixes=tuple(f"{run}_{key}_document" for key in keys))


def make_plan(options: PreprocessOptions) -> Plan:
    """Look at inputs and tokenizer. Raises DataError when something in them is unusable."""
    inputs: Sequence[Input] = expand_inputs(options.inputs)
    corpora = curated_among(inputs)
    partition_of = ""
    if options.partition is not None:
        partition_of = _corpus_hash(inputs)
        inputs = partition_inputs(inputs, options.partition, options.partitions)
    tokenizer = _tokenizer(options)
    notes: list[str] = []
    chats = _chats(options, tokenizer, notes)
    prepend_bos = options.prepend_bos or _asked_for_bos(options, tokenizer, notes)
    _require_special_ids(tokenizer, options.append_eod, prepend_bos, options.tokenizer)
    texts, text_share = _sample(inputs, options, chats[0] if chats else None)
    # Where tokens lie in a chat is told by the reference only.
    engine, engine_notes = choose_engine(
        tokenizer, texts, "reference" if options.loss_mask != "none" else options.engine
    )
    checked = "every document" if options.verify else "a sample"
    dtype = best_dtype(tokenizer.vocab_size)
    encoder = Encoder(
        keys=options.json_keys,
        engine=engine,
        reference=tokenizer,
        dtype=dtype,
        bos_id=tokenizer.bos_id if prepend_bos else None,
        eos_id=tokenizer.eos_id if options.append_eod else None,
        check_all=options.verify,
        chats=chats[0] if chats else None,
    )
    name = f"{engine.name}, compared with the reference on {checked}"
    return Plan(
        options=options,
        inputs=inputs,
        names=output_names(options),
        tokenizer=tokenizer,
        encoder=encoder,
        engine=name,
        identity=_identity(options, inputs, tokenizer, name, prepend_bos)
        | {"chat_template": chats[1].sha256 if chats else None, "loss_mask": options.loss_mask},
        corpora=corpora,
        partition_of=partition_of,
        chat_template=chats[1] if chats else None,
        least_bytes=int(_text_bytes(inputs, text_share) / _TEXT_BYTES_PER_TOKEN * dtype.itemsize),
        notes=[*notes, *engine_notes],
    )


def _corpus_hash(inputs: Sequence[Input]) -> str:
    """Parts belong together only if all were cut from the same files: others may have come or grown in between."""
    files = [(os.fsdecode(source.path), source.stored_bytes) for source in inputs]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _tokenizer(options: PreprocessOptions) -> Tokenizer:
    if options.tiktoken is None:
        return load_tokenizer(options.tokenizer, options.tokenizer_kind)
    path = Path(options.tokenizer)
    if not path.is_file():
        raise DataError(f"tokenizer {path} must be a file of tiktoken ranks, as for Megatron; check the path")
    return TiktokenTokenizer(path, options.tiktoken)


def _chats(
    options: PreprocessOptions, tokenizer: Tokenizer, notes: list[str]
) -> tuple[ChatBlocks, ChatTemplate] | None:
    """What renders chats, and the template."""
    if not options.chat:
        return None
    from cptron.tokens.chat import ChatEncoder

    template = ChatTemplate.load(options.tokenizer, options.chat_date)
    encoder = ChatEncoder(tokenizer, template, loss_mask=options.loss_mask)
    notes.extend(encoder.notes)
    return ChatBlocks(encoder, options.loss_mask != "none", options.chat_and_text), template


def _asked_for_bos(options: PreprocessOptions, tokenizer: Tokenizer, notes: list[str]) -> bool:
    """Whether Megatron's HuggingFaceTokenizer, if that is what was asked for, adds BOS."""
    if (
        (options.chat and not options.chat_and_text)
        or not options.hf_special_tokens
        or not tokenizer_adds_bos(options.tokenizer, tokenizer.bos_id)
    ):
        return False
    bos = tokenizer.decode([tokenizer.bos_id]) if tokenizer.bos_id is not None else ""
    where = "text" if options.chat else "document"
    notes.append(
        f"--tokenizer-type HuggingFaceTokenizer adds {bos} to every {where} as Megatron does; "
        "--tokenizer-hf-no-include-special-tokens leaves it out"
    )
    return True


def _require_special_ids(tokenizer: Tokenizer, append_eod: bool, prepend_bos: bool, path: str) -> None:
    for wanted, token_id, flag, role in (
        (append_eod, tokenizer.eos_id, "--append-eod", "EOS"),
        (prepend_bos, tokenizer.bos_id, "--prepend-bos", "BOS"),
    ):
        if wanted and token_id is None:
            raise DataError(
                f"{flag} needs an {role} token, tokenizer {path} names none; "
                f"state it in its tokenizer_config.json or leave {flag} out"
            )


def _sample(
    inputs: Sequence[Input], options: PreprocessOptions, chats: ChatBlocks | None
) -> tuple[list[bytes], float]:
    """Texts from the first block, and the share of the block that is text."""
    start = Position(0, 0, 0)
    with closing(
        read_blocks(inputs, start, max_record_bytes=options.max_document_bytes, keys=options.json_keys)
    ) as blocks:
        block = next(blocks, None)
    if block is None:
        return [], 1.0
    parsed = block.parse(options.json_keys, chat=chats is not None)
    records: Sequence[Sequence[Value]] = chats.texts(parsed) if chats else parsed.values
    if chats:  # a chat's share of the file is not known
        parsed = replace(parsed, text_bytes=0)
    texts: list[bytes] = []
    num_bytes = 0
    for record in records[:_SAMPLE_TEXTS]:
        for value in record:
            if isinstance(value, bytes) and num_bytes < _SAMPLE_BYTES:
                texts.append(value[:_SAMPLE_TEXT_BYTES].decode(errors="ignore").encode())
                num_bytes += len(texts[-1])
    begin = inputs[0].start_byte if inputs else 0
    block_bytes = block.end.byte - begin
    return texts, min(1.0, parsed.text_bytes / block_bytes) if block_bytes > 0 else 0.0


def _text_bytes(inputs: Sequence[Input], text_share: float) -> float:
    return sum(source.stored_bytes for source in inputs) * text_share


def _identity(
    options: PreprocessOptions,
    inputs: Sequence[Input],
    tokenizer: Tokenizer,
    engine: str,
    prepend_bos: bool,
) -> dict[str, Any]:
    return {
        "cptron_version": __version__,
        "inputs": [
            (str(source.path), *file_identity(source.path), source.start_byte, source.stop_byte)
            for source in inputs
        ],
        "json_keys": options.json_keys,
        "tokenizer": tokenizer.fingerprint,
        "tokenizer_path": options.tokenizer,
        "engine": engine,
        "chat_and_text": options.chat_and_text,
        "append_eod": options.append_eod,
        "prepend_bos": prepend_bos,
        "on_error": options.on_error,
        "max_document_bytes": options.max_document_bytes,
        "partition": options.partition,
        "partitions": options.partitions,
    }


def require_space(plan: Plan, num_bytes_done: int) -> None:
    """Raise DataError when the file system of the output is clearly too full for what is still to be written."""
    directory = Path(plan.names.run).parent
    free, missing = shutil.disk_usage(directory).free, plan.least_bytes - num_bytes_done
    if free < missing:
        raise DataError(
            f"{directory} has {free / 1e9:.2f} GB free, at least {missing / 1e9:.2f} GB will be needed; "
            "free some space or write elsewhere"
        )
