"""Continued BPE: the merges, and the new tokens, that shorten counted words most.

Place in the flow: `extend` gives it the words of `word_counts`, and appends what it learns. Invariant: after every
merge each word is cut as the tokenizer with the merges so far would cut it, so counts are those of real encoding.

The greedy loop of byte pair encoding (Gage 1994; Sennrich et al. 2016) goes on where the base stopped: the most
frequent adjacent pair is merged, at equal counts the one of smaller ids. All new merges rank after the base's. Where a
pair makes a token that is there already, merges of that token come to bear at once, and the word is cut anew.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cptron.tokenizer.word_counts import Word

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Learned:
    """What is to be appended."""

    merges: list[Pair] = field(default_factory=list)
    new_tokens: dict[str, int] = field(default_factory=dict)
    """Token -> id, in the order of learning."""
    witness: dict[int, Word] = field(default_factory=dict)
    """New id -> a word, in the base's ids, in which it was learned."""
    exhausted: bool = False
    """No pair is left that is frequent enough."""


class MergeLoop:
    """The words and their pairs."""

    def __init__(
        self,
        words: Mapping[Word, int],
        *,
        tokens: Mapping[int, str],
        merges: Sequence[Pair],
        closed: Collection[int],
        reserved: Collection[str],
        ignores_merges: bool,
        next_id: int,
    ) -> None:
        """`tokens` by id, all of them; `merges` of the base by rank. Pairs with an id of `closed` are never merged, and
        none into a text of `reserved`, such as added tokens."""
        self._tokens = dict(tokens)
        self._ids = {token: number for number, token in tokens.items()}
        self._ranks: dict[Pair, int] = {pair: rank for rank, pair in enumerate(merges)}
        self._results = {pair: self._ids[tokens[pair[0]] + tokens[pair[1]]] for pair in merges}
        self._closed, self._reserved = frozenset(closed), frozenset(reserved)
        self._next_id = next_id
        self._origins = list(words)
        self.words = [list(word) for word in words]
        """Each word as it is cut now, in the order given."""
        self._counts = list(words.values())
        self._pairs: Counter[Pair] = Counter()
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        for number in range(len(self.words)):
            self._add_pairs(number)
        self._heap = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._heap)
        self._whole: dict[str, int] = {}
        if ignores_merges:
            self._whole = {"".join(tokens[i] for i in word): number for number, word in enumerate(words)}

    def learn(self, num_tokens: int, min_count: int) -> Learned:
        """Merge until there are `num_tokens` new tokens, or no pair occurs `min_count` times."""
        learned = Learned()
        while len(learned.new_tokens) < num_tokens:
            pair = self._most_frequent(min_count)
            if pair is None:
                return Learned(learned.merges, learned.new_tokens, learned.witness, exhausted=True)
            assert pair not in self._ranks, "a word is not cut as its merges cut it"
            text = self._tokens[pair[0]] + self._tokens[pair[1]]
            is_new = text not in self._ids
            if is_new:
                self._ids[text], self._tokens[self._next_id] = self._next_id, text
                learned.new_tokens[text] = self._next_id
                learned.witness[self._next_id] = self._origins[min(self._where[pair])]
                self._next_id += 1
            self._ranks[pair] = len(self._ranks)
            self._results[pair] = self._ids[text]
            learned.merges.append(pair)
            self._apply(pair, text, is_new)
        return learned

    def _most_frequent(self, min_count: int) -> Pair | None:
        while self._heap:
            negative, pair = heapq.heappop(self._heap)
            count = self._pairs.get(pair, 0)
            if count < min_count:
                continue  # were it to grow again, it would be pushed again
            if count != -negative:
                heapq.heappush(self._heap, (-count, pair))
                continue
            if self._tokens[pair[0]] + self._tokens[pair[1]] not in self._reserved:
                return pair
        return None

    def _apply(self, pair: Pair, text: str, is_new: bool) -> None:
        grown: set[Pair] = set()
        whole = self._whole.get(text)
        if whole is not None:
            grown |= self._replace(whole, [self._ids[text]])
        for number in sorted(self._where.pop(pair, ())):
            word = self.words[number]
            # No earlier merge knows a new token, so all places can be merged at once.
            after = merged(word, pair, self._ids[text]) if is_new else self._cut(word)
            grown |= self._replace(number, after)
        for changed in sorted(grown):
            heapq.heappush(self._heap, (-self._pairs[changed], changed))

    def _replace(self, number: int, word: list[int]) -> set[Pair]:
        """Give a word its new cut; the pairs that have become more frequent by it."""
        before = Counter(self._pairs_of(number))
        for pair, times in before.items():
            self._pairs[pair] -= times * self._counts[number]
            if pair in self._where:
                self._where[pair].discard(number)
        self.words[number] = word
        after = self._add_pairs(number)
        return {pair for pair, times in after.items() if times > before[pair]}

    def _add_pairs(self, number: int) -> Counter[Pair]:
        found = Counter(self._pairs_of(number))
        for pair, times in found.items():
            self._pairs[pair] += times * self._counts[number]
            self._where[pair].add(number)
        return found

    def _pairs_of(self, number: int) -> list[Pair]:
        closed = self._closed
        return [
            pair for pair in pairwise(self.words[number]) if pair[0] not in closed and pair[1] not in closed
        ]

    def _cut(self, word: Sequence[int]) -> list[int]:
        """As the tokenizers library does: the merge of lowest rank first, the leftmost of equals."""
        ids = list(word)
        while True:
            ranked = [
                (self._ranks[pair], place) for place, pair in enumerate(pairwise(ids)) if pair in self._ranks
            ]
            if not ranked:
                return ids
            place = min(ranked)[1]
            ids[place : place + 2] = [self._results[ids[place], ids[place + 1]]]


def merged(word: Sequence[int], pair: Pair, result: int) -> list[int]:
    """`word` with every occurrence of `pair`, from the left, replaced."""
    left, right = pair
    found: list[int] = []
    place, last = 0, len(word) - 1
    while place <= last:
        if word[place] == left and place < last and word[place + 1] == right:
            found.append(result)
            place += 2
        else:
            found.append(word[place])
            place += 1
    return found
