"""Filler text for contexts: given passages, split into training and evaluation, or made-up facts.

Filler facts use the relations of `relations`, about names that no question uses.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from random import Random

from compmem.ingest.chunking import TokenCounter
from compmem.schema import Document
from compmem.text.sentences import sentences
from compmem_research.tasks.multihop import Passage
from compmem_research.tasks.names import Role, Split, draw
from compmem_research.tasks.relations import OPENINGS, RELATIONS
from compmem_research.tasks.sample import Span

_EVAL_SHARE = 4
"""One in this many given passages is for evaluation."""
_SLACK = 0.005
"""Share of the length that may stay empty."""
_MISFITS = 4
_FIRST_DRAW = 4096
_SENTENCES = 6


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A filler passage, its tokens with the separators of `Sample.joined`, and the starts of its sentences."""

    document: Document
    tokens: int

    @cached_property
    def borders(self) -> list[int]:
        """Offsets at which a sentence may be inserted: before each sentence, and at the end."""
        return [start for start, _ in sentences(self.document.text)] + [len(self.document.text)]


class Filler:
    """Filler passages, tokenised once and shared by all tasks of a run."""

    def __init__(self, counter: TokenCounter, passages: Iterable[Passage] | None = None) -> None:
        """Split the passages by their titles: one in four is for evaluation.

        Args:
            counter: Counts tokens; the tokens that it adds to every text are subtracted.
            passages: Filler passages; None: made-up facts, as many as needed.
        """
        self.counter = additive(counter)
        self._made_up = passages is None
        self._pieces: dict[Split, list[Piece]] = {"train": [], "eval": []}
        parted: dict[Split, dict[str, Document]] = {"train": {}, "eval": {}}
        for passage in passages or ():
            document = Document(title=passage.title, text=passage.text)
            parted[split_of(document)][document.id] = document
        for split, documents in parted.items():
            self._pieces[split] = self._counted(list(documents.values()))

    def take(self, split: Split, tokens: int, rng: Random) -> list[Piece]:
        """Different pieces in random order with this many tokens together, up to half a percent less.

        Raises:
            ValueError: The passages of this split have fewer tokens.
        """
        pool = self._pool(split, tokens)
        taken: list[Piece] = []
        room, slack = tokens, max(2, int(_SLACK * tokens))
        misfits: list[Piece] = []
        for number in _shuffled(len(pool), rng):
            if room <= slack or len(misfits) > _MISFITS:
                break
            if pool[number].tokens <= room:
                taken.append(pool[number])
                room -= pool[number].tokens
            else:
                misfits.append(pool[number])
        if room > slack and not misfits:
            raise ValueError(f"{tokens} tokens of filler for {split!r}, but the passages have {tokens - room}")
        cuts = (self._cut(piece, room) for piece in misfits if room > slack)
        return [*taken, *islice((c for c in cuts if c), 1)]

    def _pool(self, split: Split, tokens: int) -> list[Piece]:
        """All passages of the split, or enough made-up ones; their number depends only on the tokens."""
        pieces = self._pieces[split]
        if not self._made_up:
            return pieces
        size = _FIRST_DRAW
        while True:
            if len(pieces) < size:
                pieces += self._counted([_facts(split, n) for n in range(len(pieces), size)])
            if sum(p.tokens for p in pieces[:size]) > 1.2 * tokens:
                return pieces[:size]
            size += size // 4

    def _counted(self, documents: list[Document]) -> list[Piece]:
        sizes = self.counter([written(d) for d in documents])
        return [Piece(document=d, tokens=size) for d, size in zip(documents, sizes, strict=True)]

    def _cut(self, piece: Piece, room: int) -> Piece | None:
        """The first words of a piece that fit, if any do."""
        title, words = piece.document.title, piece.document.text.split(" ")
        low, high = 0, len(words)
        best = None
        while low + 1 < high:
            middle = (low + high) // 2
            cut = self._counted([Document(title=title, text=" ".join(words[:middle]))])[0]
            if cut.tokens <= room:
                low, best = middle, cut
            else:
                high = middle
        return best


def insert(
    pieces: Sequence[Piece], said: Sequence[str], rng: Random, *, apart: int = 0
) -> tuple[tuple[Document, ...], tuple[Span, ...]]:
    """The pieces as documents with the given sentences inserted, and the positions of these.

    Args:
        pieces: In the order of the context; none: the sentences form their own document.
        said: The sentences, each inserted once.
        rng: Chooses the positions.
        apart: This many first sentences are put into different documents if there are enough.
    """
    number = max(1, len(pieces))
    homes = rng.sample(range(number), apart) if apart <= number else []
    homes += [rng.randrange(number) for _ in said[len(homes) :]]
    documents = [p.document for p in pieces] or [Document(id="facts")]
    spans: dict[int, Span] = {}
    for home in sorted(set(homes)):
        inserted = [i for i, h in enumerate(homes) if h == home]
        borders = pieces[home].borders if pieces else [0]
        text, starts = _set_in(documents[home].text, borders, [said[i] for i in inserted], rng)
        documents[home] = Document(title=documents[home].title, text=text)
        for i, start in zip(inserted, starts, strict=True):
            spans[i] = Span(document=documents[home].id, start=start, end=start + len(said[i]))
    return tuple(documents), tuple(spans[i] for i in range(len(said)))


def split_of(document: Document) -> Split:
    """The split of a given passage: its title (or its text) decides, so all of a page is in one split."""
    name = (document.title or document.text).encode("utf-8", "surrogatepass")
    return "eval" if sha256(name).digest()[0] % _EVAL_SHARE == 0 else "train"


def additive(counter: TokenCounter) -> TokenCounter:
    """The counter without the tokens that it adds to every text (begin and end marks), so that counts add up."""
    extra = counter([""])[0]
    return lambda texts: [tokens - extra for tokens in counter(texts)]


def written(document: Document) -> str:
    """A document as `Sample.joined` writes it."""
    return f"{document.title}\n{document.text}\n\n" if document.title else f"{document.text}\n\n"


def with_opening(opening: str, template: str) -> str:
    """A sentence template after an opening; its first letter becomes lower case unless it starts a name."""
    return opening + (template if template.startswith("{") or not opening else template[0].lower() + template[1:])


def _facts(split: Split, number: int) -> Document:
    """A few unrelated facts, determined by the number."""
    rng = Random(f"filler:{split}:{number}")
    role: Role = "train filler" if split == "train" else "eval filler"
    said = []
    for _ in range(_SENTENCES):
        relation = rng.choice(RELATIONS)
        template = rng.choice(relation.wording(split).statements)
        subject, object_ = draw(rng, relation.subject, role), draw(rng, relation.object, role)
        sentence = with_opening(rng.choice(OPENINGS[split]), template).format(s=subject.name, o=object_.name)
        said.append(sentence)
    return Document(text=" ".join(said))


def _shuffled(count: int, rng: Random) -> Iterator[int]:
    """The numbers below a count in random order, cheap if only few are needed."""
    seen: set[int] = set()
    while 2 * len(seen) < count:
        number = rng.randrange(count)
        if number not in seen:
            seen.add(number)
            yield number
    rest = [n for n in range(count) if n not in seen]
    rng.shuffle(rest)
    yield from rest


def _set_in(text: str, borders: list[int], said: list[str], rng: Random) -> tuple[str, list[int]]:
    """The text with the sentences at random positions, and the start of each."""
    places = sorted((rng.choice(borders), rng.random(), i) for i in range(len(said)))
    parts, starts, last, at = [], [0] * len(said), 0, 0
    for border, _, i in places:
        before = text[last:border].strip()
        parts += [before] if before else []
        at += len(before) + 1 if before else 0
        starts[i] = at
        parts.append(said[i])
        at += len(said[i]) + 1
        last = border
    rest = text[last:].strip()
    return " ".join([*parts, rest] if rest else parts), starts
