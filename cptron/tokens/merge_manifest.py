"""The manifest of joined token files, from those of its parts.

Place in the flow: `merge` asks it whether files belong together, before it copies anything.
Invariant: all partitions of one preprocess run give the manifest that a single run would have written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cptron.errors import DataError
from cptron.tokens.manifest import FORMAT_VERSION, PARTITION_OF, Manifest


def merge_manifests(prefixes: Sequence[str], manifests: Sequence[Manifest]) -> Manifest:
    """What is known of the files of `prefixes` joined in this order, before the joined files are there.

    `files` is empty. Requires `require_same_ids`. Raises DataError when some are partitions of a run and they are
    not exactly all of its partitions, in order.
    """
    first = manifests[0]
    if any(manifest.partition for manifest in manifests):
        _require_whole_run(prefixes, manifests)
        options = {name: value for name, value in first.options.items() if name != PARTITION_OF}
    else:
        options = _joined_options(prefixes, manifests)
    rejected: Counter[str] = Counter()
    for manifest in manifests:
        rejected.update(manifest.documents_rejected)
    return replace(
        first,
        format_version=FORMAT_VERSION,
        documents=sum(manifest.documents for manifest in manifests),
        tokens=sum(manifest.tokens for manifest in manifests),
        files={},
        key=_unique(manifest.key for manifest in manifests),
        # Partitions of one file all name it.
        sources=tuple(dict.fromkeys(source for manifest in manifests for source in manifest.sources)),
        records_read=sum(manifest.records_read for manifest in manifests),
        documents_empty_skipped=sum(manifest.documents_empty_skipped for manifest in manifests),
        documents_rejected=dict(sorted(rejected.items())),
        engine=_unique((manifest.engine for manifest in manifests), "; "),
        partition="",
        options=options,
        cptron_version=_unique(manifest.cptron_version for manifest in manifests),
    )


def require_same_ids(prefixes: Sequence[str], manifests: Sequence[Manifest]) -> None:
    """Raise DataError unless equal text became equal ids in all files: one tokenizer, the same EOS and BOS."""
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        made_with, first = manifest.tokenizer, manifests[0].tokenizer
        if made_with.fingerprint != first.fingerprint:
            raise DataError(
                f"{prefix} was made with tokenizer {made_with.name!r} {made_with.fingerprint[:12]}, {prefixes[0]} "
                f"with {first.name!r} {first.fingerprint[:12]}, must be the same; preprocess one of them again"
            )
        for field, flag in (("append_eod", "--append-eod"), ("prepend_bos", "--prepend-bos")):
            has, must = getattr(manifest, field), getattr(manifests[0], field)
            if has != must:
                raise DataError(
                    f"{prefix} has {field} {has}, {prefixes[0]} {must}, must be the same; preprocess one of them "
                    f"again, with or without {flag}"
                )


def _require_whole_run(prefixes: Sequence[str], manifests: Sequence[Manifest]) -> None:
    _require_same_corpus(prefixes, manifests)
    first, count = manifests[0], len(manifests)
    total = int(first.partition.partition("/")[2])
    given = {manifest.partition for manifest in manifests}
    missing = [part for part in (f"{number}/{total}" for number in range(total)) if part not in given]
    if missing and count < total:
        raise DataError(
            f"{count} of {total} partitions are given, without {missing[0]}; give all partitions of one run, in order"
        )
    for number, (prefix, manifest) in enumerate(zip(prefixes, manifests, strict=True)):
        expected = f"{number}/{count}"
        if manifest.partition != expected:
            raise DataError(
                f"{prefix} is partition {manifest.partition!r}, must be {expected!r} as input {number + 1} "
                f"of {count}; give all partitions of one run, in order, and nothing else"
            )


def _require_same_corpus(prefixes: Sequence[str], manifests: Sequence[Manifest]) -> None:
    """Parts of one corpus, made by one command. Before the numbers: the files of two keys lie in one directory, and
    their numbers would only confuse."""
    first = manifests[0]
    for prefix, manifest in zip(prefixes, manifests, strict=True):
        if not manifest.partition:
            raise DataError(
                f"{prefix} is no partition of a run, other inputs are; give all partitions of one run, in order, and "
                "nothing else"
            )
        if manifest.options.get(PARTITION_OF) != first.options.get(PARTITION_OF):
            raise DataError(
                f"{prefix} is a part of other input files than {prefixes[0]}, some came, went or changed between the "
                "parts; preprocess all parts again"
            )
        for field in ("key", "options"):
            has, must = getattr(manifest, field), getattr(first, field)
            if has != must:
                raise DataError(
                    f"{prefix} was made with {field} {has}, {prefixes[0]} with {must}, must be the same; give "
                    "--inputs of one run and one key"
                )


def _joined_options(prefixes: Sequence[str], manifests: Sequence[Manifest]) -> dict[str, str]:
    """Options that all parts were made with, and what the parts are."""
    first = manifests[0].options
    shared = {
        name: value
        for name, value in first.items()
        if all(manifest.options.get(name) == value for manifest in manifests)
    }
    parts = (
        f"{prefix.rsplit('/', 1)[-1]} {manifest.files['bin'].sha256}"
        for prefix, manifest in zip(prefixes, manifests, strict=True)
    )
    return shared | {"merged_from": ", ".join(parts)}


def _unique(values: Iterable[str], separator: str = ", ") -> str:
    return separator.join(dict.fromkeys(values))
