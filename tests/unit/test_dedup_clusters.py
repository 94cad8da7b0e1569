"""Clusters of near-duplicates: those of all pairs compared, whatever shards, workers and bounds; what is then kept."""

from __future__ import annotations

import os
import random
import resource
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cptron.corpus.dedup.cluster import Clusters, Sources, allow_open_files, cluster
from cptron.corpus.dedup.feature_file import FeatureFile, write_described, write_features
from cptron.corpus.dedup.index import open_index, publish_index
from cptron.corpus.dedup.keep import KEPT, LIKE_ANOTHER, LIKE_EARLIER, decide, names_of
from cptron.corpus.dedup.scheme import Described, Scheme, describe
from cptron.corpus.document import Document
from cptron.corpus.step import ShardFeatures
from cptron.corpus.steps import near_duplicates
from cptron.errors import DataError

SCHEME = Scheme(shingle_size=2, bands=20, rows=4)
THRESHOLD = 0.7


def make_documents() -> list[Document]:
    """Families of texts that differ in a few words, more or less; some equal, some without words."""
    generator = random.Random(5)
    made: list[str] = ["...", "", "..."]
    for family in range(60):
        words = [f"w{generator.randrange(5000)}" for _ in range(generator.randrange(8, 60))]
        made.append(" ".join(words))
        for _ in range(family % 5):
            changed = list(words)
            for _ in range(generator.randrange(0, 7)):
                changed[generator.randrange(len(changed))] = f"v{generator.randrange(5000)}"
            made.append(" ".join(changed))
    generator.shuffle(made)
    return [Document(text, f"a/file#{number}", "abc"[number % 3]) for number, text in enumerate(made)]


DOCUMENTS = make_documents()


def open_files(
    documents: Sequence[Document], directory: Path, shards: int, preferred: Sequence[str] = ()
) -> list[FeatureFile]:
    """Features in so many files."""
    edges = [len(documents) * part // shards for part in range(shards + 1)]
    directory.mkdir(exist_ok=True)
    files = []
    for part in range(shards):
        path = directory / f"{part:05d}.features"
        write_features(documents[edges[part] : edges[part + 1]], path, SCHEME, preferred)
        files.append(FeatureFile(path))
    return files


def roots(clusters: Clusters) -> list[int]:
    """Of all documents."""
    return clusters.roots(0, clusters.sources.first_documents()[-1]).tolist()


def brute_force(documents: Sequence[Document]) -> list[int]:
    """The same by comparing every pair that shares a key: components, each named by its first document."""
    described = describe([document.text for document in documents], SCHEME)
    sets = [set(part.tolist()) for part in np.split(described.sets, described.starts[1:-1])]
    label = list(range(len(documents)))
    for right in range(len(documents)):
        for left in range(right):
            shared, together = len(sets[left] & sets[right]), len(sets[left] | sets[right])
            if (
                described.keys[:, left] == described.keys[:, right]
            ).any() and shared >= THRESHOLD * together > 0:
                low, high = sorted((label[left], label[right]))
                label = [low if entry == high else entry for entry in label]
    return label


def test_clusters_are_those_of_all_candidate_pairs(tmp_path: Path) -> None:
    """Exact components, whatever the number of files, threads and keys in memory; edges are true."""
    wanted = brute_force(DOCUMENTS)
    assert 20 < len(DOCUMENTS) - len(set(wanted)) < 120  # there is something to find, and to leave
    for shards, workers, merged_keys in ((1, 1, 1 << 20), (3, 2, 1 << 20), (7, 3, 10)):
        files = open_files(DOCUMENTS, tmp_path / str(shards), shards)
        found = cluster(
            Sources(files, 0, SCHEME), THRESHOLD, workers=workers, merged_keys=merged_keys, keep_edges=True
        )
        assert roots(found) == wanted
        edges = np.concatenate(found.edges)
        assert len(edges) == len(DOCUMENTS) - len(set(wanted))
        assert (edges[:, 2] >= THRESHOLD * edges[:, 3]).all()
        assert found.counts["cut"] == 0


def test_every_band_leads_to_candidates(tmp_path: Path) -> None:
    """Pairs of equal sets that share one key each, of another band."""
    bands = 5
    scheme = Scheme(bands=bands, rows=1)
    keys = np.arange(bands * 2 * bands, dtype=np.uint64).reshape(bands, -1) << np.uint64(50)
    for band in range(bands):
        keys[band, 2 * band + 1] = keys[band, 2 * band]
    starts = np.arange(2 * bands + 1)
    described = Described(np.full(2 * bands, 7, np.uint32), starts, keys, np.ones(2 * bands, np.int64))
    rows = [(0, 1, number) for number in range(2 * bands)]
    write_described([described], rows, [b"x"] * len(rows), tmp_path / "f", scheme)
    found = cluster(Sources([FeatureFile(tmp_path / "f")], 0, scheme), THRESHOLD)
    assert roots(found) == [number - number % 2 for number in range(2 * bands)]


def test_order_of_documents_changes_nothing_but_their_numbers(tmp_path: Path) -> None:
    """The longest of each cluster stays, in any order."""
    kept = []
    for seed in (0, 1, 2):
        documents = list(DOCUMENTS)
        random.Random(seed).shuffle(documents)
        files = open_files(documents, tmp_path / str(seed), 3)
        codes = [d.codes for d in decide(cluster(Sources(files, 0, SCHEME), THRESHOLD), "longest")]
        kept.append(sorted(documents[i].text for i in np.flatnonzero(np.concatenate(codes) == KEPT)))
    assert kept[0] == kept[1] == kept[2]
    assert "" in kept[0] and kept[0].count("...") == 2  # without words nothing is alike


@pytest.mark.parametrize("rule", ["first", "longest"])
@pytest.mark.parametrize("preferred", [(), ("c", "a")])
def test_one_document_of_a_cluster_is_kept(tmp_path: Path, rule: str, preferred: Sequence[str]) -> None:
    """The best by rank of source, then by the rule."""
    files = open_files(DOCUMENTS, tmp_path / "f", 4, preferred)
    clusters = cluster(Sources(files, 0, SCHEME), THRESHOLD)
    codes = np.concatenate([decision.codes for decision in decide(clusters, rule)])  # type: ignore[arg-type]
    originals = np.concatenate([decision.originals for decision in decide(clusters, rule)])  # type: ignore[arg-type]
    members: dict[int, list[int]] = {}
    for number, root in enumerate(roots(clusters)):
        members.setdefault(root, []).append(number)

    def worse(number: int) -> tuple[int, int]:
        document = DOCUMENTS[number]
        rank = preferred.index(document.source) if document.source in preferred else len(preferred)
        return rank, -len(document.text) if rule == "longest" else number

    best = {root: min(numbers, key=worse) for root, numbers in members.items()}
    for root, numbers in members.items():
        (kept,) = [number for number in numbers if codes[number] == KEPT]
        assert worse(kept) == worse(best[root])
        assert {codes[number] for number in numbers} <= {KEPT, LIKE_ANOTHER}
    dropped = np.flatnonzero(codes != KEPT)
    for number, original in zip(dropped.tolist(), originals.tolist(), strict=True):
        assert codes[original] == KEPT and roots(clusters)[original] == roots(clusters)[number]
        assert names_of(clusters, np.array([original], np.uint32)) == {original: DOCUMENTS[original].id}


def test_earlier_corpora_stay_and_their_likes_go(tmp_path: Path) -> None:
    """Documents like those of an index are dropped, whatever the rule; those of the index are not compared."""
    earlier, new = DOCUMENTS[:90], DOCUMENTS[90:]
    for file in open_files(earlier, tmp_path / "old", 2):
        file.close()
    publish_index(sorted((tmp_path / "old").glob("*.features")), tmp_path / "index")
    files = [*open_index(tmp_path / "index"), *open_files(new, tmp_path / "new", 2)]
    clusters = cluster(Sources(files, 2, SCHEME), THRESHOLD, keep_edges=True)
    codes = np.concatenate([decision.codes for decision in decide(clusters, "longest")])
    whole = brute_force(DOCUMENTS)
    assert (np.concatenate(clusters.edges)[:, 1] >= 90).all()
    for number, code in enumerate(codes.tolist(), start=90):
        direct = whole[number] < 90
        assert (code == LIKE_EARLIER) == direct
    whole_file = (tmp_path / "index" / "00000.features").read_bytes()
    (tmp_path / "index" / "00000.features").unlink()  # it may be a second name of the other
    for content, message in ((b"x", r"00000\.features"), (whole_file + b"x", f"must have {len(whole_file)}")):
        (tmp_path / "index" / "00000.features").write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_index(tmp_path / "index")
    step = near_duplicates.Step("near", near_duplicates.Config(earlier=(str(tmp_path / "index"),)), 0)
    assert step.files() == [tmp_path / "index" / "index.json"]
    with pytest.raises(DataError, match="is no index"):
        publish_index([], tmp_path / "new")


def test_comparisons_in_vain_are_bounded_and_counted(tmp_path: Path) -> None:
    """Many documents of one bucket, none similar: with a bound the work is linear, and the cut is told."""
    texts = ["same start here " + " ".join(f"x{i}_{j}" for j in range(i % 3 + 3)) for i in range(60)]
    scheme = Scheme(shingle_size=1, bands=40, rows=1)
    write_features([Document(text, str(i), "a") for i, text in enumerate(texts)], tmp_path / "f", scheme)
    sources = Sources([FeatureFile(tmp_path / "f")], 0, scheme)
    free = cluster(sources, 0.95, most_comparisons=1000)
    bound = cluster(sources, 0.95, most_comparisons=3)
    assert free.counts["cut"] == 0 < bound.counts["cut"]
    assert bound.counts["comparisons"] <= 3 * free.counts["candidates"] < free.counts["comparisons"]
    assert roots(free) == roots(bound) == list(range(60))


def test_texts_of_one_length_are_told_apart_by_all_bits_of_their_hashes(tmp_path: Path) -> None:
    """The smaller digest stays, by its last bit, though it comes later; so with the largest digest there is."""
    described = [describe(["one two three four", "one two three four"], SCHEME)]
    for digests in ((2**62 + 1, 2**62), (2**64 - 1, 2**64 - 2)):
        path = tmp_path / str(digests[0])
        write_described(described, [(0, 18, digest) for digest in digests], [b"a", b"b"], path, SCHEME)
        clusters = cluster(Sources([FeatureFile(path)], 0, SCHEME), THRESHOLD)
        (decision,) = decide(clusters, "longest")
        assert decision.codes.tolist() == [LIKE_ANOTHER, KEPT] and decision.originals.tolist() == [1]


def test_more_files_than_may_be_open(tmp_path: Path) -> None:
    """The limit of the process is raised for them, before they are opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(80):
        write_features(DOCUMENTS[number : number + 1], tmp_path / str(number), SCHEME)
    others = [os.open(tmp_path, os.O_RDONLY) for _ in range(90)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(others) + 10, hard))
    try:
        step = near_duplicates.Step("x", near_duplicates.Config(shingle_size=2, bands=20, rows=4), 0)
        shards = [ShardFeatures(n, tmp_path / str(n), 1, lambda: iter(())) for n in range(80)]
        (tmp_path / "decided").mkdir()
        step.decide(shards, tmp_path / "decided", 1)
        with pytest.raises(DataError, match="files of features, but"):
            allow_open_files(2**40)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for other in others:
            os.close(other)
    assert len(list((tmp_path / "decided").glob("*.verdicts"))) == 80


def test_damaged_features_are_refused(tmp_path: Path) -> None:
    """Cut off, of another scheme, or something else: one line, and no crash."""
    path = tmp_path / "f"
    write_features(DOCUMENTS[:20], path, SCHEME)
    whole = path.read_bytes()
    wrong = [
        whole.replace(b'"shape":[20]', b'"shape":[21]', 1),
        whole.replace(b'"shape":[20]', b'"shape":[-1]', 1),
    ]
    for data in (b"", b"\0" * 8, whole[:-8], whole[:200], b"\x10" + b"\0" * 7 + b'{"a":1}         ', *wrong):
        path.write_bytes(data)
        with pytest.raises(DataError, match="make the features again"):
            FeatureFile(path)
    begin = FeatureFile(path) if path.write_bytes(whole) else None
    assert begin is not None
    starts = begin.byte_of("set_starts")
    path.write_bytes(whole[:starts] + b"\xff" * 160 + whole[starts + 160 :])  # sets that lie nowhere
    with pytest.raises(DataError, match="features cannot be read"):
        cluster(Sources([FeatureFile(path), FeatureFile(path)], 0, SCHEME), THRESHOLD)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="scheme"):
        cluster(Sources([FeatureFile(path)], 0, Scheme(bands=2, rows=2)), THRESHOLD)
    with pytest.raises(DataError, match="cannot be read"):
        FeatureFile(tmp_path / "absent")


def test_features_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    """Nothing of a hash seed, a batch or a time is in a file."""
    write_features(DOCUMENTS, tmp_path / "a", SCHEME)
    write_features(iter(DOCUMENTS), tmp_path / "b", SCHEME)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    step, tally = near_duplicates.Step("near", near_duplicates.Config(), 0), Counter[str]()
    step.features(iter(DOCUMENTS), tmp_path / "c", tally)
    assert tally == {"documents_without_a_word": 3}
