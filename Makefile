PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Folder with checkpoints of the public LycheeMemory release; without it, tests that compare with them are skipped.
LYCHEE_REFERENCE_DIR ?= $(abspath $(wildcard ../shared/lychee_reference))
ifneq ($(LYCHEE_REFERENCE_DIR),)
export LYCHEE_REFERENCE_DIR
endif

.PHONY: demo test test-slow test-gpu lint docs format bench bench-gpu install clean

demo: $(STAMP)  ## index the Python standard library's documentation and answer multi-hop questions from it
	$(BIN)/compmem demo

test: $(STAMP)  ## run the tests: CPU, offline
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP)  ## run the long fault, load and growth tests
	$(BIN)/python -m pytest -m slow

test-gpu:  ## run the backbone and search tests on a CUDA device; needs only pytest, no install
	PYTHONPATH=core:. $(PYTHON) -m pytest -c /dev/null --rootdir . --import-mode importlib -p no:cacheprovider -q -m gpu \
		tests/test_backbone_generation.py tests/test_vector_search.py

# The plugin for the command reference needs `typer` on the PATH.
MKDOCS := NO_MKDOCS_2_WARNING=1 PATH="$(abspath $(BIN)):$$PATH" $(BIN)/mkdocs
docs: $(STAMP)  ## build the documentation in .site/; warnings are errors
	$(MKDOCS) build --quiet

lint: $(STAMP)  ## check style, types, imports between layers, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MKDOCS) build --quiet

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

DATA ?= data
DOMAINS ?= $(DATA)
RETRIEVAL := 2wikimultihopqa_retrieval
bench: $(STAMP)  ## run the measurements in core/results/; DATA: folder of evaluation files, DOMAINS: folders of all sets, PAGES: a file of pages
	$(BIN)/compmem bench recall --data $(DATA)/$(RETRIEVAL)_questions.jsonl.gz \
		--corpus $(DATA)/$(RETRIEVAL)_corpus.jsonl.gz --out core/results/recall_2wiki.json
	$(BIN)/compmem bench recall --data $(DATA)/hotpotqa_dev.jsonl.gz --out core/results/recall_hotpotqa.json
	$(BIN)/compmem bench recall --data $(DATA)/musique_dev.jsonl.gz --out core/results/recall_musique.json
	$(BIN)/compmem bench domains $(addprefix --data ,$(DOMAINS)) --out core/results/domains.json
	$(BIN)/compmem bench encode --pages $(PAGES) --out core/results/encode.json
	$(BIN)/compmem bench scale --pages $(PAGES) --out core/results/scale.json
	$(BIN)/compmem bench build --passages 100000 --threads "" --encoders "" --out core/results/build.json
	$(BIN)/compmem bench build --threads 1,2 --workers 2 --out core/results/build_small.json
	$(BIN)/compmem bench speed --device cpu --lengths 7K,28K,112K,448K --fresh --out core/results/speed_cpu.json
	failed=0; for suite in length chunks ablations tasks ruler; do \
		$(BIN)/compmem bench quality --data $(DATA) --suite $$suite || failed=1; done; exit $$failed
	$(BIN)/compmem bench quality --data $(DATA) --suite memory --scan-until 120000
	$(BIN)/compmem bench report

bench-gpu:  ## measure speed on a CUDA device in parts of under eight minutes; repeat until nothing is left; needs no install
	PYTHONPATH=core $(PYTHON) -m compmem_research.bench.speed --shape qwen2.5-7b --device cuda \
		--out core/results/speed_gpu.json --minutes 7.5

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
