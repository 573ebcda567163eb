"""Questions with contexts and evidence, for training and benchmarks.

* `sample`: the record of every task. `multihop`: HotpotQA, 2Wiki, MuSiQue in one format; `singlehop`.
* `contexts`: long contexts of a given length from such a corpus, with placements and unanswerable variants.
* `synthetic_facts`: made-up multi-hop worlds with exact evidence (`names`, `relations`; `haystack` for length).
  `ruler`: RULER.
* `official`: the data sets' original files. `jsonl`: samples as lines of a file.
"""
