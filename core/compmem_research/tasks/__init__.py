"""Questions with contexts and evidence. Training and benchmarks read the same ones.

* `sample`: what every task yields. `multihop`: HotpotQA, 2Wiki, MuSiQue in one record form; `singlehop`.
* `contexts`: long contexts of an asked length from such a corpus, with placements and unanswerable variants.
* `worlds`: made-up multi-hop worlds with exact evidence (`names`, `relations`; `filler` fills them up). `ruler`: RULER.
* `official`: the data sets' own files. `jsonl`: samples as lines of a file.
"""
