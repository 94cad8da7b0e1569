"""`cptron advise`: corpora, base and budget -> a commented configuration that says what each choice rests on.

Place in the flow: before a first run. Imports torch only to measure. Invariant: what is written has passed the rules
of `cptron train`; nothing is fetched, and nothing but the file asked for is written.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from cptron.advise.advice import Advice, advise
from cptron.advise.base import Declared, read_base
from cptron.advise.corpora import named, read_corpus, read_held
from cptron.advise.facts import Facts, Suite
from cptron.advise.losses import measure, read_losses, suites_of
from cptron.advise.written import commented_yaml
from cptron.config.check import check_config
from cptron.config.load import load_text
from cptron.durable import replace_text
from cptron.errors import ConfigError
from cptron.tokens.token_count import token_count

INSTRUCT = {"yes": True, "no": False, "auto": None}


def main(argv: Sequence[str]) -> int:
    """Run `cptron advise --base B --new NAME=PREFIX ... --tokens N`."""
    args = _parser().parse_args(argv)
    advice = advise(read_facts(args))
    text = commented_yaml(advice)
    check_config(load_text(text, "the advice").config, advice.facts.ranks)
    if args.output is not None:
        _write(args.output, text)
    if args.json:
        print(json.dumps(advice.to_dict(), indent=2))
    elif args.output is None:
        print(text, end="")
    else:
        print("\n".join(_summary(advice, args.output)))
    return 0


def read_facts(args: argparse.Namespace) -> Facts:
    """Everything that the command line names. Raises a `CptronError`."""
    tokens, how = _budget(args)
    declared = Declared(
        state=args.state,
        lr_at_save=args.lr_at_save,
        lr_peak=args.lr_peak,
        instruct=INSTRUCT[args.instruct],
    )
    base, fingerprint = read_base(args.base, declared)
    new, replay, chat = (
        tuple(read_corpus(name, prefix, fingerprint) for name, prefix in named(flag, words))
        for flag, words in (("--new", args.new), ("--replay", args.replay), ("--chat", args.chat))
    )
    suites: tuple[tuple[Suite, str, list[str]], ...] = (
        ("new", "--valid-new", args.valid_new),
        ("old", "--valid-old", args.valid_old),
        ("probe", "--valid-chat", args.valid_chat),
    )
    valid = tuple(
        read_held(name, prefix, suite, fingerprint)
        for suite, flag, words in suites
        for name, prefix in named(flag, words)
    )
    sets = suites_of(new, replay, valid)
    losses = measure(base, sets) if args.measure else ()
    if args.losses is not None:
        losses = read_losses(args.losses, sets)
    return Facts(
        base=base,
        new=new,
        replay=replay,
        chat=chat,
        valid=valid,
        losses=losses,
        budget_tokens=tokens,
        budget_from=how,
        max_epochs=args.max_epochs,
        language=args.language,
        general=args.general,
        goal=args.goal,
        seq_length=args.seq_length,
        ranks=args.ranks,
        run_dir=args.run_dir,
    )


def _budget(args: argparse.Namespace) -> tuple[int, str]:
    """Tokens, and how they were found. Raises `ConfigError`."""
    if args.tokens is not None:
        if args.gpu_hours is not None or args.tokens_per_gpu_second is not None:
            raise ConfigError(
                f"--tokens={args.tokens} and --gpu-hours or --tokens-per-gpu-second are two budgets; keep one"
            )
        try:
            return token_count(args.tokens), "as given"
        except ValueError as error:
            raise ConfigError(f"--tokens={error}") from None
    hours, speed = args.gpu_hours, args.tokens_per_gpu_second
    if hours is None or speed is None:
        raise ConfigError(
            f"the budget is not known: --tokens is not given, --gpu-hours is {hours} and "
            f"--tokens-per-gpu-second is {speed}; give --tokens, or both of these (a few steps of any run show "
            "tokens per second)"
        )
    if not (0 < hours < 1e12 and 0 < speed < 1e12):
        raise ConfigError(
            f"--gpu-hours={hours:g} and --tokens-per-gpu-second={speed:g} must be more than 0; correct them"
        )
    return int(hours * 3600 * speed), f"{hours:g} GPU hours at {speed:g} tokens a second and GPU"


def _write(path: Path, text: str) -> None:
    if path.exists():
        raise ConfigError(f"--output {path} exists, and may have been edited; name another file or remove it")
    try:
        replace_text(path, text)
    except OSError as error:
        raise ConfigError(f"--output {path} cannot be written ({error}); choose another file") from None


def _summary(advice: Advice, path: Path) -> list[str]:
    amounts = advice.amounts
    shares = ", ".join(f"{name} {share:.3g}" for name, share in amounts.shares.items())
    lines = [
        f"{path}: {amounts.tokens:,} tokens, shares {shares}, {advice.shift.kind} shift ({advice.shift.why})",
        f"not known: {len(advice.unknown)} things, each with how to find out, at the top of the file",
        f"next: cptron schedule {path}; cptron train {path}",
    ]
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cptron advise",
        description="Write a commented configuration for a base model, corpora and a budget.",
    )
    data = parser.add_argument_group("data: prefixes of token files").add_argument
    data("--new", nargs="+", default=[], metavar="[NAME=]PREFIX", help="what the model is to learn")
    data("--replay", nargs="+", default=[], metavar="[NAME=]PREFIX", help="data like the base's own")
    data("--chat", nargs="+", default=[], metavar="[NAME=]PREFIX", help="conversations, for an instruct base")
    data("--valid-new", nargs="+", default=[], metavar="[NAME=]PREFIX", help="held-out new data")
    data(
        "--valid-old",
        nargs="+",
        default=[],
        metavar="[NAME=]PREFIX",
        help="held-out data like the base's own",
    )
    data("--valid-chat", nargs="+", default=[], metavar="[NAME=]PREFIX", help="held-out conversations")

    base = parser.add_argument_group("base").add_argument
    base("--base", required=True, help="checkpoint, run, or Hugging Face directory")
    base(
        "--state",
        choices=("decayed", "constant_phase", "unknown"),
        default="unknown",
        help="where its pretraining left the learning rate; a run's checkpoint knows",
    )
    base("--lr-peak", type=float, default=0.0, help="highest rate of its pretraining")
    base("--lr-at-save", type=float, default=0.0, help="rate that its pretraining would have gone on with")
    base("--instruct", choices=tuple(INSTRUCT), default="auto", help="auto: by its chat template")
    base("--losses", type=Path, metavar="FILE", help="losses of the base, as cptron eval prints them")
    base("--measure", action="store_true", help="measure them now (of a checkpoint, in this process)")
    base(
        "--language",
        choices=("same", "other", "unknown"),
        default="unknown",
        help="other: the base has hardly seen the new data's language or modality",
    )

    budget = parser.add_argument_group("budget").add_argument
    budget("--tokens", help="to train on at most, as 10B or 5e9")
    budget("--gpu-hours", type=float, help="in place of --tokens")
    budget("--tokens-per-gpu-second", type=float, help="with --gpu-hours: as measured or stated")
    budget("--max-epochs", type=float, default=4.0, help="passes over a corpus that are allowed (default: 4)")

    aim = parser.add_argument_group("aim").add_argument
    aim("--general", choices=("wanted", "essential"), default="wanted", help="what the base can do already")
    aim("--goal", choices=("domain", "long-context"), default="domain")
    aim("--seq-length", type=int, default=0, help="0: advised")
    aim("--ranks", type=int, default=1, help="data parallel ranks; the batch is a multiple (default: 1)")
    aim("--run-dir", default="runs/advised", help="run.dir of the configuration")

    out = parser.add_argument_group("output").add_argument
    out("--output", type=Path, metavar="FILE", help="write the configuration there (default: print it)")
    out("--json", action="store_true", help="print facts, choices and evidence as JSON")
    return parser
