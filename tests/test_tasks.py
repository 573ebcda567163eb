import gzip
import json
import lzma

import pytest

from compmem_research.tasks.multihop import leads, read_corpus

PARAGRAPHS = [
    {"title": "Acme", "sentences": ["Acme rents the Harbour Building.", " It makes rockets."], "supporting": [0]},
    {"title": "Harbour Building", "sentences": ["It is insured by Lloyd."], "supporting": [0]},
    {"title": "Zoo", "sentences": ["Animals live there."], "supporting": []},
]
QUESTION = {
    "id": "q1",
    "dataset": "own",
    "type": "bridge",
    "question": "Who insures?",
    "answer": "Lloyd",
    "aliases": ["Lloyd's"],
}


def write(path, *lines):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz", "q.jsonl.xz"])
def test_paragraphs_are_united_and_gold_is_what_supports(tmp_path, name):
    other = {**QUESTION, "id": "q2", "paragraphs": PARAGRAPHS[1:]}
    corpus = read_corpus(write(tmp_path / name, {**QUESTION, "paragraphs": PARAGRAPHS}, other))
    assert [p.title for p in corpus.passages] == ["Acme", "Harbour Building", "Zoo"]
    assert [q.gold for q in corpus.questions] == [{0, 1}, {1}]
    assert corpus.questions[1].own == {1, 2}
    assert corpus.questions[0].answers == ("Lloyd", "Lloyd's")


def test_documents_keep_the_given_sentences(tmp_path):
    corpus = read_corpus(write(tmp_path / "q.jsonl", {**QUESTION, "paragraphs": PARAGRAPHS}))
    first = corpus.documents()[0]
    assert first.chunks[0].sentence_texts() == ["Acme rents the Harbour Building.", "It makes rockets."]
    assert first.text == corpus.passages[0].text == "Acme rents the Harbour Building. It makes rockets."


def test_questions_may_name_passages_of_a_file_of_their_own(tmp_path):
    passages = write(tmp_path / "p.jsonl", {"title": "Acme", "text": "a"}, {"title": "Zoo", "text": "z"})
    questions = write(tmp_path / "q.jsonl", {**QUESTION, "gold_titles": ["Zoo"]})
    assert read_corpus(questions, passages).questions[0].gold == {1}
    wrong = write(tmp_path / "w.jsonl", {**QUESTION, "gold_titles": ["Moon"]})
    with pytest.raises(ValueError, match=r"w.jsonl:1: no passage has the title 'Moon'"):
        read_corpus(wrong, passages)


def test_leads_are_first_real_paragraphs(tmp_path):
    pages = write(tmp_path / "p.jsonl", {"title": "T", "text": "short\n" + "word " * 200}, {"title": "U", "text": "no"})
    found = list(leads(pages, words=10))
    assert [(p.title, len(p.text.split())) for p in found] == [("T", 10)]


def test_broken_lines_are_named(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({**QUESTION, "paragraphs": PARAGRAPHS}) + "\n{broken\n")
    with pytest.raises(ValueError, match=r"q.jsonl:2: not JSON"):
        read_corpus(path)
    with pytest.raises(ValueError, match=r"m.jsonl:1: 'question' is missing"):
        read_corpus(write(tmp_path / "m.jsonl", {"id": "x"}))
    with pytest.raises(ValueError, match=r"n.jsonl:1: a paragraph needs"):
        read_corpus(write(tmp_path / "n.jsonl", {**QUESTION, "paragraphs": [{"title": "x"}]}))
