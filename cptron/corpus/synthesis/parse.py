"""Questions and answers in what a model wrote.

Place in the flow: after `ask`, before `checks`. Invariant: every part that looks like a pair comes out, as a pair or as
a problem; an answer in which nothing does is one problem. Nothing here takes more than linear time in hostile text.

Two forms are read: JSON (a list of objects, an object with such a list, objects in lines; fences and talk around it are
passed over; a list that is cut off gives the objects that are whole) and lines `Q: ...` and `A: ...`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cptron.corpus.document import Dropped

QUESTION_KEYS = ("question", "instruction", "q", "prompt", "query", "input")
ANSWER_KEYS = ("answer", "response", "a", "output", "completion", "summary")
_MOST_CHARACTERS = 200_000
_MOST_TRIES = 2_000
"""Places where JSON may begin."""
_MOST_DEPTH = 20
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_UNOPENED_THOUGHT = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
"""Of models whose template opens it."""
_QUESTION = re.compile(rf'"(?:{"|".join(QUESTION_KEYS)})"\s*:', re.IGNORECASE)
"""In JSON that is broken: here there was a pair."""
_NUMBERED = r"[ \t]*(?:[-*#>]+[ \t]*)*(?:\d{1,3}[.)][ \t]*)?\**"
_LABEL = re.compile(
    rf"^{_NUMBERED}(?:(Q|Question|Instruction)|(A|Answer|Response))[ \t]*\d{{0,3}}\**[ \t]*[:.：]\**[ \t]*",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A question or an instruction, and what should be answered."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be read."""

    why: Dropped
    text: str
    """What there was."""


def parse_answer(text: str, cut_off: bool) -> list[Pair | Problem]:
    """The pairs in order; `cut_off` says that the model was stopped by its limit. Never an empty list."""
    text = _UNOPENED_THOUGHT.sub("", _THOUGHT.sub("", text[:_MOST_CHARACTERS])).strip()
    found = _of_json(text, cut_off) if "{" in text else []
    whole = [one for one in found if isinstance(one, Pair)]
    if not whole and (lines := _of_lines(text, cut_off)):
        return lines
    told = bool(found) and isinstance(found[-1], Problem) and found[-1].why.reason == "cut_off"
    if cut_off and found and not told and not text.rstrip("` \n").endswith(("]", "}")):
        found.append(Problem(Dropped("cut_off", "the limit of the answer came first"), text[-400:]))
    if found:
        return found
    reason = "cut_off" if cut_off else "unreadable"
    return [
        Problem(Dropped(reason, "neither JSON nor Q: and A: lines" if text else "nothing is in it"), text)
    ]


def _of_json(text: str, cut_off: bool) -> list[Pair | Problem]:
    found: list[Pair | Problem] = []
    decoder = json.JSONDecoder(strict=False)
    place = tries = behind = 0
    while (place := text.find("{", place)) >= 0 and tries < _MOST_TRIES:
        tries += 1
        try:
            value, stop = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            place += 1
            continue
        found += _broken(text[behind:place], "unreadable")
        found += _of_value(value, text[place:stop], 0)
        place = behind = stop
    return found + _broken(text[behind:], "cut_off" if cut_off else "unreadable")


def _broken(text: str, last: str) -> list[Pair | Problem]:
    """Pairs whose JSON cannot be read; `last` is the reason of the last one."""
    starts = [match.start() for match in _QUESTION.finditer(text)]
    return [
        Problem(Dropped("unreadable" if stop else last, "JSON that is broken"), text[start:stop])
        for start, stop in itertools.zip_longest(starts, starts[1:])
    ]


def _of_value(value: Any, shown: str, depth: int) -> Iterator[Pair | Problem]:
    if isinstance(value, list) and depth < _MOST_DEPTH:
        for item in value:
            yield from _of_value(item, shown, depth + 1)
        return
    if isinstance(value, Mapping):
        keys = {str(key).strip().lower(): item for key, item in value.items()}
        question, answer = _first(keys, QUESTION_KEYS), _first(keys, ANSWER_KEYS)
        if isinstance(question, str) and isinstance(answer, str):
            yield Pair(_clean(question), _clean(answer))
            return
        lists = [item for item in value.values() if isinstance(item, list)]
        if len(lists) == 1 and question is None and depth < _MOST_DEPTH:
            yield from _of_value(lists[0], shown, depth + 1)
            return
    yield Problem(Dropped("no_pair", "JSON without a question and its answer as texts"), shown)


def _first(values: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    found = next((values[key] for key in keys if values.get(key) is not None), None)
    if isinstance(found, list) and found and all(isinstance(part, str) for part in found):
        return "\n".join(found)
    return str(found) if isinstance(found, int | float) else found


def _of_lines(text: str, cut_off: bool) -> list[Pair | Problem]:
    marks = list(_LABEL.finditer(text))
    if not marks:
        return []
    stops = [mark.start() for mark in marks[1:]] + [len(text)]
    said = [
        (mark[1] is not None, _clean(text[mark.end() : stop]))
        for mark, stop in zip(marks, stops, strict=True)
    ]
    found: list[Pair | Problem] = []
    waiting: str | None = None
    for is_question, part in said:
        if is_question:
            if waiting is not None:
                found.append(Problem(Dropped("no_pair", "a question without an answer"), waiting))
            waiting = part
        elif waiting is None:
            found.append(Problem(Dropped("no_pair", "an answer without a question"), part))
        else:
            found.append(Pair(waiting, part))
            waiting = None
    if waiting is not None:
        found.append(
            Problem(Dropped("cut_off" if cut_off else "no_pair", "a question without an answer"), waiting)
        )
    elif cut_off and found and isinstance(found[-1], Pair):  # the last answer stops anywhere
        found[-1] = Problem(
            Dropped("cut_off", "its answer is cut off"), f"{found[-1].question}\n{found[-1].answer}"
        )
    return found


def _clean(text: str) -> str:
    """Without white space and emphasis at both ends, NULs and halves of surrogate pairs."""
    text = text.encode("utf-8", "replace").decode().replace("\0", "").strip()
    return text.strip("*").strip() if text.startswith("**") or text.endswith("**") else text
