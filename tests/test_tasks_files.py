import gzip
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from compmem.schema import Document
from compmem_research.bench.commands import app
from compmem_research.tasks import official
from compmem_research.tasks.jsonl import read_samples
from compmem_research.tasks.multihop import paragraphs, read_corpus, read_lines
from compmem_research.tasks.official import records, write_records
from compmem_research.tasks.sample import Sample, Span
from compmem_research.tasks.singlehop import read_singlehop
from tests.samples import write_samples
from tests.test_tasks import PARAGRAPHS, QUESTION, write

HOTPOT = {
    "_id": "h1",
    "question": "Who insures the building that Acme rents?",
    "answer": "Lloyd",
    "type": "bridge",
    "level": "hard",
    "supporting_facts": [["Harbour Building", 0], ["Acme", 0]],
    "context": [["Acme", ["Acme rents the Harbour Building.", " It makes rockets."]], ["Zoo", ["Animals."]],
                ["Harbour Building", ["It is insured by Lloyd."]]],
}  # fmt: skip
WIKI = {
    **HOTPOT,
    "_id": "w1",
    "evidences": [["Acme", "rents", "Harbour Building"], ["Harbour Building", "by", "Lloyd"]],
}
MUSIQUE = {
    "id": "2hop__1_2",
    "question": "Who insures what Acme rents?",
    "answer": "Lloyd",
    "answer_aliases": ["Lloyd's"],
    "answerable": True,
    "paragraphs": [
        {"idx": 0, "title": "Harbour Building", "paragraph_text": "Insured by Lloyd.", "is_supporting": True},
        {"idx": 1, "title": "Zoo", "paragraph_text": "Animals.", "is_supporting": False},
        {"idx": 2, "title": "Acme", "paragraph_text": "Acme (of Lloyd Street) rents it.", "is_supporting": True},
    ],
    "question_decomposition": [
        {"id": 1, "question": "Acme >> rents", "answer": "Harbour Building", "paragraph_support_idx": 2},
        {"id": 2, "question": "Who insures #1?", "answer": "Lloyd", "paragraph_support_idx": 0},
    ],
}
CONTEXT = "Zoos are old. The zoo of Veld opened in 1907. It has bears."
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Veld_Zoo",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {"id": "s1", "question": "When did it open?", "is_impossible": False,
                         "answers": [{"text": "1907", "answer_start": 40}, {"text": "in 1907", "answer_start": 37},
                                     {"text": "1907", "answer_start": 40}]},
                        {"id": "s2", "question": "Who closed it?", "is_impossible": True, "answers": []},
                    ],
                }
            ],
        }
    ],
}  # fmt: skip


def put(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def read_official(path, form):
    write_records(path.with_name("records.jsonl"), records(path, form))
    return read_corpus(path.with_name("records.jsonl"))


def said(corpus, question):
    return [corpus.passages[n].sentences[i].strip() for n, numbers in question.support for i in numbers]


def test_hotpotqa_and_2wiki(tmp_path):
    corpus = read_official(put(tmp_path / "h.json", [HOTPOT, {**HOTPOT, "_id": "h2"}]), "hotpotqa")
    assert [q.id for q in corpus.questions] == ["h1", "h2"]
    assert [p.title for p in corpus.passages] == ["Acme", "Zoo", "Harbour Building"]
    assert said(corpus, corpus.questions[0]) == ["Acme rents the Harbour Building.", "It is insured by Lloyd."]
    assert corpus.questions[0].own == {0, 1, 2}
    wiki = read_official(put(tmp_path / "w.json", [WIKI]), "2wikimultihopqa")
    assert said(wiki, wiki.questions[0]) == said(corpus, corpus.questions[0])
    assert wiki.questions[0].dataset == "2wikimultihopqa"


def test_musique_hops_are_in_the_order_of_its_decomposition(tmp_path):
    path = write(tmp_path / "m.jsonl", MUSIQUE, {**MUSIQUE, "answerable": False})
    corpus = read_official(path, "musique")
    assert len(corpus.questions) == 1
    question = corpus.questions[0]
    assert [corpus.passages[n].title for n, _ in question.support] == ["Acme", "Harbour Building"]
    assert question.answers == ("Lloyd", "Lloyd's")
    assert question.type == "2hop"


def test_squad_supports_with_the_sentence_of_the_answer(tmp_path):
    corpus = read_official(put(tmp_path / "s.json", SQUAD), "squad")
    assert [(q.id, q.answers) for q in corpus.questions] == [("s1", ("1907", "in 1907"))]
    assert said(corpus, corpus.questions[0]) == ["The zoo of Veld opened in 1907."]
    assert corpus.passages[0].title == "Veld Zoo"
    assert corpus.passages[0].text == CONTEXT


def test_the_command_converts_a_file_to_questions_that_are_read(tmp_path):
    source, out = put(tmp_path / "w.json", [WIKI, {**WIKI, "_id": "w2"}]), tmp_path / "r.jsonl.xz"
    result = CliRunner().invoke(app, ["convert", "2wikimultihopqa", str(source), str(out)])
    assert result.exit_code == 0, result.output
    assert "2 questions" in result.output
    assert [q.id for q in read_corpus(out).questions] == [WIKI["_id"], "w2"]


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_files_are_read_in_blocks(tmp_path, monkeypatch, block):
    path = put(tmp_path / "h.json", json.dumps([{**HOTPOT, "_id": f"h{i}"} for i in range(5)], indent=1))
    whole = list(records(path, "hotpotqa"))
    monkeypatch.setattr(official, "_BLOCK", max(block, 64))
    assert list(records(path, "hotpotqa")) == whole
    assert len(whole) == 5


def test_a_first_record_comes_before_the_file_is_read_to_its_end(tmp_path):
    path = put(tmp_path / "h.json", "[" + json.dumps(HOTPOT) + ", {broken")
    stream = records(path, "hotpotqa")
    assert next(stream)["id"] == "h1"
    with pytest.raises(ValueError, match=r"h.json: item 2: not JSON, or truncated"):
        next(stream)


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("[", "hotpotqa", r"f.json: item 1: not JSON, or truncated"),
        ("{}", "hotpotqa", r"f.json: no array at its beginning"),
        ('{"version": 1}', "squad", r"f.json: no array named 'data'"),
        ("[3]", "hotpotqa", r"f.json: item 1: not a JSON object"),
        ([{"_id": "x"}], "hotpotqa", r"f.json: item 1: not in the format of 'hotpotqa' \(KeyError: 'supporting_facts'"),
        ([{**HOTPOT, "context": [["T", "text"]]}], "hotpotqa", r":1: a paragraph needs title, sentences"),
        ([{**HOTPOT, "answer": 3}], "hotpotqa", r":1: 'answer' is not a text"),
        ([{**WIKI, "evidences": [["a", 1, "b"]]}], "2wikimultihopqa", r":1: 'evidences' is not a list of triples"),
        (
            {"data": [{"title": "T", "paragraphs": [{"context": "c", "qas": [{"id": 1}]}]}]},
            "squad",
            r"item 1: not in the format of",
        ),
        ('{"id": "x"}', "musique", r"f.json:1: 'question' is missing"),
        ({**MUSIQUE, "paragraphs": 5}, "musique", r"f.json:1: not in the format of 'musique'"),
        ("[]", "nq", r"form='nq'; it is one of hotpotqa, 2wikimultihopqa, musique, squad"),
    ],
)
def test_broken_official_files_are_named_with_the_place(tmp_path, text, form, message):
    with pytest.raises(ValueError, match=message):
        read_official(put(tmp_path / "f.json", text), form)


def test_a_broken_item_does_not_have_the_whole_file_read(tmp_path, monkeypatch):
    monkeypatch.setattr(official, "_BLOCK", 1000)
    path = put(tmp_path / "h.json", "[{broken" + " " * 50_000 + "]")
    read = []
    monkeypatch.setattr(official, "open_text", lambda p: Counted(p, read))
    with pytest.raises(ValueError, match="item 1: not JSON"):
        list(records(path, "hotpotqa"))
    assert sum(read) < 10_000


class Counted:
    def __init__(self, path, read):
        self._file, self._read = path.open(), read

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def read(self, size):
        self._read.append(size)
        return self._file.read(size)


def test_cut_and_garbled_files_are_named(tmp_path):
    whole = write(tmp_path / "q.jsonl.gz", *[{**QUESTION, "paragraphs": PARAGRAPHS}] * 50).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"cut.jsonl.gz:\d+: cannot be read"):
        read_corpus(tmp_path / "cut.jsonl.gz")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[" + json.dumps(HOTPOT).encode())[:-20])
    with pytest.raises(ValueError, match=r"cut.json.gz: cannot be read"):
        read_official(tmp_path / "cut.json.gz", "hotpotqa")
    (tmp_path / "bytes.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"bytes.jsonl:1: cannot be read"):
        list(read_lines(tmp_path / "bytes.jsonl", ()))
    with pytest.raises(ValueError, match=r"l.jsonl:1: not a JSON object"):
        list(read_lines(write(tmp_path / "l.jsonl", [1]), ()))


SINGLE = {"id": "n1", "dataset": "own", "context": CONTEXT, "question": "When?", "answer": "1907", "start": 40}


def test_singlehop_lines(tmp_path):
    path = write(tmp_path / "s.jsonl.gz", SINGLE, {**SINGLE, "id": "n2", "answer": "long ago", "start": -1})
    first, second = read_singlehop(path)
    assert (first.id, first.answers, first.start) == ("n1", ("1907",), 40)
    assert first.record()["paragraphs"][0]["supporting"] == [1]
    assert second.record()["paragraphs"][0]["supporting"] == [0, 1, 2]
    write_records(tmp_path / "r.jsonl", [first.record()])
    assert read_corpus(tmp_path / "r.jsonl").questions[0].gold == {0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": 3}, r"s.jsonl:1: '1907' is not at 3 of the context"),
        ({"start": "3"}, r"s.jsonl:1: context, question, answer are texts"),
        ({"context": None}, r"s.jsonl:1: context, question, answer are texts"),
        ({"aliases": "x"}, r"s.jsonl:1: context, question, answer are texts"),
    ],
)
def test_broken_singlehop_lines_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        list(read_singlehop(write(tmp_path / "s.jsonl", {**SINGLE, **change})))


SAMPLE = Sample(
    id="a", task="own", question="Who?", answers=("Ann", "Anna"), metric="all", tokens=7,
    documents=(Document(id="d1", title="T", text="It was Ann."), Document(id="d2", text="Zoo — “quoted”.")),
    evidence=(Span(document="d1", start=7, end=10),),
)  # fmt: skip


@pytest.mark.parametrize("name", ["s.jsonl", "s.jsonl.gz", "s.jsonl.xz"])
def test_samples_are_written_and_read_again(tmp_path, name):
    other = replace(SAMPLE, id="b", answers=(), metric="unanswerable", evidence=())
    write_samples(tmp_path / name, [SAMPLE, other])
    assert list(read_samples(tmp_path / name)) == [SAMPLE, other]


LINE = {"id": 1, "question": "Who?", "answers": ["Ann"], "documents": [{"id": "d", "text": "It was Ann."}]}


def test_a_sample_needs_little(tmp_path):
    sample = next(read_samples(write(tmp_path / "mine.jsonl", LINE)))
    assert (sample.id, sample.task, sample.metric, sample.evidence) == ("1", "mine", "sub_em", ())
    bare = {**LINE, "documents": [{"text": "x"}, {"text": "y"}]}
    assert len({d.id for d in next(read_samples(write(tmp_path / "b.jsonl", bare))).documents}) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, "'answers' is not a list of texts, or is empty"),
        ({"answers": "Ann"}, "'answers' is not a list of texts, or is empty"),
        ({"answers": [1]}, "not a sample .TypeError: 1 is not a text"),
        ({"documents": []}, "'documents' is empty, or two of them have the same id"),
        ({"documents": [{"id": "d", "text": "a"}] * 2}, "'documents' is empty, or two of them have the same id"),
        ({"documents": [{"id": "d"}]}, "not a sample .KeyError: 'text'"),
        ({"documents": "text"}, "not a sample .AttributeError"),
        ({"metric": "bleu"}, "metric='bleu'; it is one of sub_em, all, any, unanswerable"),
        ({"evidence": [{"document": "d", "start": 7, "end": 99}]}, "evidence 7-99 is outside the document 'd'"),
        ({"evidence": [{"document": "e", "start": 0, "end": 1}]}, "evidence 0-1 is outside the document 'e'"),
        (
            {"evidence": [{"document": "d", "start": 0.5, "end": 1}]},
            "not a sample .TypeError: 0.5 is not a whole number",
        ),
    ],
)
def test_broken_samples_are_named_with_file_and_line(tmp_path, change, message):
    path = write(tmp_path / "s.jsonl", LINE, {**LINE, **change})
    with pytest.raises(ValueError, match=rf"s.jsonl:2: {message}"):
        list(read_samples(path))


def test_paragraphs_are_those_that_are_long_enough(tmp_path):
    path = write(tmp_path / "p.jsonl", {"title": "T", "text": "Heading\n" + "long " * 50 + "\n\n" + "more " * 50})
    assert [(p.title, p.text.split()[0]) for p in paragraphs(path)] == [("T", "long"), ("T", "more")]
