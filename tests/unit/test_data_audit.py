"""`cptron data ledger`: what a run has seen is recomputed, and nothing that was changed afterwards passes."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_world import config_of, lines_of
from corpus_world import run as curate
from data_world import SEQ, write_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from cptron.config.load import resolved_yaml
from cptron.config.schema import (
    Config,
    DataConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)
from cptron.config.stored import store_config
from cptron.data import main as command
from cptron.data.audit import Audit, SeenRange, audit
from cptron.data.ledger import Ledger
from cptron.data.log import DATA_LOG, log_record, read_log
from cptron.data.open import mix_of, open_sources
from cptron.data.order import Packing
from cptron.data.stream import SampleStream
from cptron.errors import CptronError, DataError
from cptron.tokens.curated import write_corpora

LENGTHS = {"a": [3, 1, 30, 8, 8, 17, 2, 40], "b": [1, 100, 3, 1, 57], "c": [5, 5, 60]}
SESSION = st.tuples(
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([1.0, 2.0, 0.1, 7.0]), min_size=1),
    st.sampled_from([1, 4, 9]),
    st.integers(1, 5),
)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora; each token is found once."""
    directory = tmp_path_factory.mktemp("tokens")
    for number, (name, lengths) in enumerate(LENGTHS.items()):
        write_tokens(directory / name, lengths, first=1000 * number)
    return directory


@dataclass
class FakeRun:
    """What training leaves behind, without a model: configuration, log and checkpoints."""

    directory: Path
    tokens: Path
    packing: Packing = "joined"
    max_epochs: float = 0.0
    stages: tuple[StageConfig, ...] = ()
    step: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    drawn: list[tuple[str, int]] = field(default_factory=list)
    positions: list[Ledger] = field(default_factory=list)
    """The ledger after each step."""

    def config(self, shares: dict[str, float], global_batch_size: int = 4) -> Config:
        """The configuration of one session."""
        sources = [
            SourceConfig(
                name=name,
                path=str(self.tokens / name),
                token_share=share,
                max_epochs=0 if name == "c" else self.max_epochs,
            )
            for name, share in shares.items()
        ]
        return Config(
            run=RunConfig(dir=str(self.directory)),
            data=DataConfig(
                seq_length=SEQ,
                sources=tuple(sources),
                stages=self.stages,
                packing=self.packing,
                on_max_epochs="redistribute",
            ),
            train=TrainConfig(steps=10, global_batch_size=global_batch_size),
            optim=OptimConfig(lr=1e-3),
        )

    def train(self, shares: dict[str, float], num_steps: int, global_batch_size: int = 4) -> None:
        """One session, up to its checkpoint."""
        config = self.config(shares, global_batch_size)
        store_config(self.directory, resolved_yaml(config), self.step)
        first, stream = self.step, SampleStream(open_sources(config), mix_of(config), self.ledger)
        shares_before: dict[str, float] = {}
        with (self.directory / DATA_LOG).open("a") as log:
            for _ in range(num_steps):
                drawn = stream.draw(stream.batch_size(global_batch_size))
                if not drawn:
                    break
                self.drawn += [(stream.sources[draw.source].account, draw.cursor) for draw in drawn]
                self.step += 1
                self.positions.append(Ledger.from_dict(stream.ledger.to_dict()))
                log.write(
                    json.dumps(log_record(self.step, stream.ledger, shares_before, batch=self.step)) + "\n"
                )
                shares_before = {name: entry.share for name, entry in stream.ledger.entries.items()}
        if self.step == first:  # the limits left no batch: as the trainer, save nothing
            return
        self.ledger.assign(stream.ledger)
        checkpoint = self.directory / "checkpoints" / f"step_{self.step:08d}"
        checkpoint.mkdir(parents=True, exist_ok=True)
        state = {
            "step": self.step,
            "batches_drawn": self.step,
            "tokens_total": 0,
            "ledger": self.ledger.to_dict(),
            "random_states": [],
        }
        (checkpoint / "state.json").write_text(json.dumps(state))


def make_run(directory: Path, tokens: Path, **options: Any) -> FakeRun:
    """An empty run directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return FakeRun(directory, tokens, **options)


@pytest.fixture
def run(tmp_path: Path, tokens: Path) -> FakeRun:
    """Two sessions under the same shares, checkpoints at 6 and 12; step 3 and 9 lie between."""
    made = make_run(tmp_path / "run", tokens)
    made.train({"a": 0.7, "b": 0.3}, 6)
    made.train({"a": 0.7, "b": 0.3}, 6)
    return made


def places_of(name: str) -> dict[int, tuple[int, int]]:
    """Where each token of a corpus is: document and offset."""
    number = list(LENGTHS).index(name)
    places = itertools.chain.from_iterable(
        ((document, offset) for offset in range(length)) for document, length in enumerate(LENGTHS[name])
    )
    return {1000 * number + at: place for at, place in enumerate(places)}


def brute_force(run: FakeRun, name: str) -> tuple[set[tuple[int, int, int]], int, int]:
    """(epoch, document, token) of all that was read of a source, and how many tokens were predicted and documents
    begun: by the token ids of every sample."""
    sources = open_sources(run.config({name: 1.0}))
    places, seen, predicted = places_of(name), set(), 0
    begun = Counter[int]()
    for cursor in sorted(cursor for source, cursor in run.drawn if source == name):
        inputs, labels, mask = sources[0].sample(cursor)
        count = int(mask.sum())
        epoch = cursor // sources[0].samples_per_epoch
        seen |= {(epoch, *places[token]) for token in [*inputs[:count].tolist(), *labels[:count].tolist()]}
        begun[epoch] += sum(places[token][1] == 0 for token in inputs[:count].tolist())
        predicted += count
    return seen, predicted, begun.total()


def furthest(run: FakeRun) -> dict[str, float]:
    """Furthest that each source was from its share of the samples since shares were set, after any step."""
    sources = {source.name: source for source in open_sources(run.config(dict.fromkeys(LENGTHS, 1.0)))}
    found = dict.fromkeys(LENGTHS, 0.0)
    for position in run.positions:
        active = {name: entry for name, entry in position.entries.items() if entry.share}
        weights = {name: entry.share / sources[name].predictions_per_sample for name, entry in active.items()}
        total = sum(entry.since_mix for entry in active.values())
        for name, entry in active.items():
            expected = total * weights[name] / sum(weights.values())
            found[name] = max(found[name], abs(entry.since_mix - expected))
    return found


@settings(max_examples=15, deadline=None)
@given(
    sessions=st.lists(SESSION, min_size=1, max_size=4),
    packing=st.sampled_from(["joined", "best_fit"]),
    max_epochs=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_history_is_proven(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: Path,
    sessions: list[tuple[dict[str, float], int, int]],
    packing: Packing,
    max_epochs: float,
) -> None:
    """Accounts and ranges are those of brute force over the tokens, whatever was re-weighted, limited, dropped and
    brought back; and after every step each source is within Tijdeman's bound of its share."""
    directory = tmp_path_factory.getbasetemp() / "history"
    run = make_run(directory, tokens, packing=packing, max_epochs=max_epochs)
    for shares, global_batch_size, num_steps in sessions:
        run.train(shares, num_steps, global_batch_size)
    if not run.step:
        return
    found, deviations = audit(directory), furthest(run)
    assert found.step == run.step
    assert set(found.compared_with) == {str(path) for path in directory.glob("checkpoints/*/state.json")}
    assert {name for name, _ in run.drawn} <= {account.name for account in found.accounts}
    assert {account.name for account in found.accounts} == set(run.ledger.entries)
    for account in found.accounts:
        seen, predicted, begun = brute_force(run, account.name)
        assert account.samples == sum(name == account.name for name, _ in run.drawn)
        assert account.tokens == predicted
        # a joined document may begin with the label that ends an epoch's last sample
        assert 0 <= account.documents - begun <= (np.ceil(account.epochs) if packing == "joined" else 0)
        assert account.largest_deviation_samples == pytest.approx(deviations[account.name], abs=1e-9)
        assert account.largest_deviation_samples <= (0.75 if len(found.accounts) == 3 else 0.5) + 1e-9
        ranges = list(found.seen(account.name))
        read = Counter((r.epoch, r.document, at) for r in ranges for at in range(r.start, r.stop))
        assert read == dict.fromkeys(seen, 1)
        for one, other in itertools.pairwise(ranges):
            apart = one.stop < other.start
            assert (one.epoch, one.document) < (other.epoch, other.document) or (
                (one.epoch, one.document) == (other.epoch, other.document) and apart
            )


def edit_line(run: FakeRun, step: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change one record of the log."""
    path = run.directory / DATA_LOG
    lines = path.read_text().splitlines()
    record = json.loads(lines[step - 1])
    change(record)
    lines[step - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


def move_a_sample(record: dict[str, Any]) -> None:
    """One more of a, one less of b: the total stays."""
    record["cursors"]["a"] += 1
    record["cursors"]["b"] -= 1


@pytest.mark.parametrize("step", [1, 3, 6, 9, 12])
def test_one_moved_sample_in_the_log_is_found(run: FakeRun, step: int) -> None:
    """Also between two checkpoints, where no ledger is: the blend would have drawn another one."""
    audit(run.directory)
    edit_line(run, step, move_a_sample)
    with pytest.raises(DataError, match=rf"step {step} of the log has drawn|:{step} has shares set at"):
        audit(run.directory)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        (3, lambda record: record.update(shares={"a": 0.5, "b": 0.5})),
        (3, lambda record: record.update(since_mix={"a": 0, "b": 0})),
        (1, lambda record: record.update(since_mix={"a": 0, "b": 0})),
        (7, lambda record: record["since_mix"].update(a=3)),
        (1, lambda record: record["shares"].update(a=0.69)),
        (1, lambda record: record["shares"].pop("a")),
        (5, lambda record: record["cursors"].pop("a")),
        (5, lambda record: record["cursors"].update(z=0)),
        (12, lambda record: record["cursors"].update(a=record["cursors"]["a"] + 4)),
    ],
)
def test_a_changed_record_is_found(run: FakeRun, step: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Shares, when they were set, and what was drawn must fit one another and the checkpoints."""
    edit_line(run, step, change)
    with pytest.raises(DataError):
        audit(run.directory)


def add_samples(name: str) -> Callable[[dict[str, Any]], None]:
    """50 samples more of a source."""

    def change(record: dict[str, Any]) -> None:
        record["cursors"][name] += 50

    return change


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("a", (5, 6), r"step 5 of the log has drawn from \['a'\], which have no share"),
        ("c", (4, 5, 6), r"step 4 of the log has drawn \{'c': 50\} before its shares were set"),
    ],
)
def test_samples_that_no_share_gives_are_found(
    tmp_path: Path, tokens: Path, name: str, steps: tuple[int, ...], message: str
) -> None:
    """Of a source that is no longer drawn, and before shares were set, without a checkpoint that would know."""
    run = make_run(tmp_path / "run", tokens)
    run.train({"a": 0.5, "b": 0.5}, 3)
    run.train({"c": 1.0}, 3)
    shutil.rmtree(run.directory / "checkpoints" / "step_00000006")
    audit(run.directory)
    for step in steps:
        edit_line(run, step, add_samples(name))
    with pytest.raises(DataError, match=message):
        audit(run.directory)


def test_a_cursor_that_goes_back_is_found(tmp_path: Path) -> None:
    """Or is gone."""
    path = tmp_path / DATA_LOG
    shares = {"shares": {"a": 1.0}, "since_mix": {"a": 4}}
    first = json.dumps({"kind": "data", "step": 1, "batch": 1, "cursors": {"a": 4}} | shares)
    for cursors in ({"a": 3}, {}):
        path.write_text(
            f"{first}\n{json.dumps({'kind': 'data', 'step': 2, 'batch': 2, 'cursors': cursors})}\n"
        )
        with pytest.raises(DataError, match=rf"{DATA_LOG}:2 has source a behind where it was"):
            list(read_log(path))


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"[]",
        b"null",
        b"{}",
        b'{"kind": "data", "step": 3, "batch": 3}',
        b"\xff",
        b'{"kind": "data", "step": 3, "batch": 3, "cursors": {"a": "1", "b": 1}}',
        b'{"kind": "data", "step": 3, "batch": 3, "cursors": {"a": 1.5, "b": 9}}',
        b'{"kind": "data", "step": 3, "batch": 3, "cursors": [1]}',
        b'{"kind": "data", "step": true, "batch": 3, "cursors": {}}',
        b'{"kind": "data", "step": 3, "cursors": {"a": 9, "b": 9}}',
        b'{"kind": "other", "step": 3, "batch": 3, "cursors": {"a": 9, "b": 9}}',
        b'{"kind": "data", "step": 3, "batch": 3, "cursors": {"a": 9, "b": 9}, "shares": 4}',
        b"",
    ],
)
def test_a_damaged_line_is_one_clear_error(run: FakeRun, line: bytes) -> None:
    """With its number, and no traceback."""
    path = run.directory / DATA_LOG
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n")
    with pytest.raises(DataError, match=r"data_log\.jsonl:3 must be a record of a step"):
        audit(run.directory)


def test_lines_left_out_or_swapped_are_found(run: FakeRun) -> None:
    """Every step has its line, in order."""
    path = run.directory / DATA_LOG
    lines = path.read_text().splitlines(keepends=True)
    for changed in (lines[1:], [*lines[:4], *lines[5:]], [*lines[:4], lines[5], lines[4], *lines[6:]]):
        path.write_text("".join(changed))
        with pytest.raises(DataError, match="none may be left out"):
            audit(run.directory)


def test_a_log_that_ends_before_a_checkpoint_is_found(run: FakeRun) -> None:
    """A line cut off by a crash is none, as a resume sees it; what a checkpoint has counted must be in the log."""
    path = run.directory / DATA_LOG
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(whole + b'{"kind": "data", "st')
    assert audit(run.directory).step == 12
    for log in (whole[:-5], b"".join(lines[:11]), b""):
        path.write_bytes(log)
        with pytest.raises(DataError, match=r"ends with step (11|0), before .*step_"):
            audit(run.directory)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cursor", 1),
        ("tokens", 1),
        ("tokens", -1),
        ("documents", 1),
        ("since_mix", -1),
        ("share", 0.1),
        ("epochs", 0.01),
        ("identity", "0"),
    ],
)
@pytest.mark.parametrize("step", [6, 12])
def test_a_changed_ledger_is_found(run: FakeRun, step: int, name: str, value: float | str) -> None:
    """Every number of it, in every checkpoint."""
    path = run.directory / "checkpoints" / f"step_{step:08d}" / "state.json"
    state = json.loads(path.read_text())
    state["ledger"]["entries"]["b"][name] += value
    path.write_text(json.dumps(state))
    with pytest.raises(DataError, match=rf"step_{step:08d}/state\.json has source b at"):
        audit(run.directory)


def test_a_source_more_or_less_in_a_ledger_is_found(run: FakeRun) -> None:
    """Left out of a checkpoint, it would begin anew."""
    path = run.directory / "checkpoints" / "step_00000012" / "state.json"
    state = json.loads(path.read_text())
    entry = state["ledger"]["entries"].pop("b")
    path.write_text(json.dumps(state))
    with pytest.raises(DataError, match="has source b at None"):
        audit(run.directory)
    state["ledger"]["entries"] |= {"b": entry, "x": entry}
    path.write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"has source x at .* give None"):
        audit(run.directory)


def test_a_ledger_that_no_run_counts_is_found(run: FakeRun) -> None:
    """The file is named in that error too."""
    path = run.directory / "checkpoints" / "step_00000012" / "state.json"
    state = json.loads(path.read_text())
    state["ledger"]["entries"]["b"]["since_mix"] += 1
    path.write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"step_00000012/state\.json: .* since_mix beyond its cursor"):
        audit(run.directory)


@pytest.mark.parametrize("text", ["", "[]", "5", '{"step": 12}', '{"step": "x", "ledger": {"entries": {}}}'])
def test_a_damaged_checkpoint_is_one_clear_error(run: FakeRun, text: str) -> None:
    """It is named."""
    (run.directory / "checkpoints" / "step_00000012" / "state.json").write_text(text)
    with pytest.raises(DataError, match=r"step_00000012/state\.json cannot be read"):
        audit(run.directory)


def test_other_token_files_are_found(tmp_path: Path, tokens: Path) -> None:
    """The identity in the checkpoints is that of the content."""
    copies = tmp_path / "tokens"
    shutil.copytree(tokens, copies)
    run = make_run(tmp_path / "run", copies)
    run.train({"a": 1.0}, 3)
    audit(run.directory)
    write_tokens(copies / "a", LENGTHS["a"], first=5)
    with pytest.raises(DataError, match="has source a at"):
        audit(run.directory)


def test_a_dropped_source_is_opened_from_the_earlier_configuration(tmp_path: Path, tokens: Path) -> None:
    """Without that file the run cannot be proven, and says so."""
    run = make_run(tmp_path / "run", tokens)
    run.train({"a": 0.5, "b": 0.5}, 3)
    run.train({"c": 1.0}, 3)
    found = audit(run.directory)
    assert {account.name: account.samples for account in found.accounts} == {"c": 12, "a": 6, "b": 6}
    (run.directory / "config.until_step_00000003.yaml").unlink()
    with pytest.raises(DataError, match=r"has drawn from \['a', 'b'\]"):
        audit(run.directory)


def test_a_source_that_was_never_drawn_is_not_opened(tmp_path: Path, tokens: Path) -> None:
    """An attempt with a new source died before its first step; the files of the source are gone."""
    copies = tmp_path / "tokens"
    shutil.copytree(tokens, copies)
    run = make_run(tmp_path / "run", copies)
    run.train({"a": 0.5, "b": 0.5}, 3)
    run.train({"a": 0.5, "c": 0.5}, 0)
    for path in copies.glob("c.*"):
        path.unlink()
    assert {account.name: account.samples for account in audit(run.directory).accounts} == {"a": 6, "b": 6}


def test_what_is_no_run_of_ours_is_refused(run: FakeRun, tmp_path: Path) -> None:
    """No configuration, no log, another order."""
    with pytest.raises(CptronError, match=r"config\.yaml"):
        audit(tmp_path)
    config = run.config({"a": 0.7, "b": 0.3})
    (run.directory / DATA_LOG).rename(tmp_path / "log")
    with pytest.raises(DataError, match=r"data_log\.jsonl cannot be read"):
        audit(run.directory)
    megatron = replace(config, data=replace(config.data, order="megatron"))
    (run.directory / "config.yaml").write_text(resolved_yaml(megatron))
    with pytest.raises(DataError, match=r"data\.order=megatron"):
        audit(run.directory)


def test_shares_are_logged_where_they_change(run: FakeRun) -> None:
    """At the beginning of a session and at a change, so that the log of a long run stays small."""
    lines = [json.loads(line) for line in (run.directory / DATA_LOG).read_text().splitlines()]
    assert [line["step"] for line in lines if "shares" in line] == [1, 7]
    steps = list(read_log(run.directory / DATA_LOG))
    assert all(step.shares == {"a": 0.7, "b": 0.3} for step in steps)
    assert all(step.mix_start == {"a": 0, "b": 0} for step in steps)


def test_the_command_writes_what_was_proven(
    run: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table, JSON and ranges; a source or a file that cannot be is refused."""
    found = audit(run.directory)
    out = tmp_path / "seen.jsonl"
    assert command.main(["ledger", str(run.directory), "--json", "--documents", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["step"] == 12 and len(printed["checkpoints"]) == 2
    assert printed["accounts"] == [asdict(account) for account in found.accounts]
    ranges = [json.loads(line) for line in out.read_text().splitlines()]
    assert ranges == [asdict(seen) for name in "ab" for seen in found.seen(name)]
    assert command.main(["ledger", str(run.directory), "--documents", str(out), "--source", "b"]) == 0
    assert len(out.read_text().splitlines()) == len(list(found.seen("b")))
    assert "step 12, recomputed" in capsys.readouterr().out
    with pytest.raises(DataError, match="--source z must be one of a, b"):
        command.main(["ledger", str(run.directory), "--documents", str(out), "--source", "z"])
    with pytest.raises(DataError, match="cannot be written"):
        command.main(["ledger", str(run.directory), "--documents", str(tmp_path)])


def test_ranges_appear_under_their_name_when_they_are_whole(
    run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While they are written, and after an error, the file there is the one that was there before."""
    out, whole = tmp_path / "seen.jsonl", Audit.seen
    out.write_text("before")

    def broken(self: Audit, name: str) -> Iterator[SeenRange]:
        yield next(whole(self, name))
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Audit, "seen", broken)
        with pytest.raises(DataError, match=r"cannot be written \(disk full\)"):
            command.main(["ledger", str(run.directory), "--documents", str(out)])
    assert out.read_text() == "before"
    assert command.main(["ledger", str(run.directory), "--documents", str(out)]) == 0
    assert json.loads(out.read_text().splitlines()[0])["source"] == "a"
    assert list(tmp_path.glob("seen*")) == [out]
    assert command.main(["ledger", str(run.directory), "--documents", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


@given(st.sets(st.integers(2, 11)))
@settings(max_examples=10)
def test_batches_that_were_dropped_are_named(
    tmp_path_factory: pytest.TempPathFactory, tokens: Path, dropped: set[int]
) -> None:
    """They stay in the account of what was drawn, and leave that of what was trained on."""
    run = make_run(tmp_path_factory.mktemp("dropped") / "run", tokens)
    run.train({"a": 0.7, "b": 0.3}, 12)
    whole = audit(run.directory)
    path, lines, step = run.directory / DATA_LOG, [], 0
    for record in map(json.loads, path.read_text().splitlines()):
        skipped = record["batch"] in dropped
        step += not skipped
        lines.append({**record, "kind": "skipped" if skipped else "data", "step": step})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = audit(run.directory)
    assert found.skipped_batches == sorted(dropped) and found.step == 12 - len(dropped)
    for before, after in zip(whole.accounts, found.accounts, strict=True):
        source = found.sources[after.name]
        samples = [
            cursor
            for batch in dropped
            for name, cursor in run.drawn[4 * batch - 4 : 4 * batch]
            if name == after.name
        ]
        lost = sum(int(source.sample(cursor)[2].sum()) for cursor in samples)
        assert (after.samples_skipped, after.tokens_skipped) == (len(samples), lost)
        assert replace(after, samples_skipped=0, tokens_skipped=0) == before
        kept = replace(run, drawn=[(n, c) for n, c in run.drawn if n != after.name or c not in samples])
        seen = {(p.epoch, p.document, at) for p in found.seen(after.name) for at in range(p.start, p.stop)}
        assert seen == brute_force(kept, after.name)[0]


@pytest.mark.parametrize(
    "change", [{"kind": "skipped"}, {"batch": 6}, {"step": 6}, {"kind": "skipped", "step": 4}]
)
def test_a_batch_that_was_marked_afterwards_is_found(run: FakeRun, change: dict[str, Any]) -> None:
    """A step more or less does not fit the lines around it."""
    path = run.directory / DATA_LOG
    lines = path.read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), **change})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="none may be left out"):
        audit(run.directory)


def test_curated_corpora_are_named(run: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the sources whose files were made of one, in the table and in JSON."""
    (tmp_path / "raw.jsonl").write_bytes(lines_of(["a river"]))
    curated = curate(config_of(tmp_path / "out", {"code": [str(tmp_path / "raw.jsonl")]}, []))
    write_corpora(run.tokens / "b", [curated])
    try:
        assert command.main(["ledger", str(run.directory)]) == 0
        assert f"\nb was made of curated corpus {curated.fingerprint[:12]}\n" in capsys.readouterr().out
        assert command.main(["ledger", str(run.directory), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["corpora"] == {"b": [curated.fingerprint]}
    finally:
        write_corpora(run.tokens / "b", [])
