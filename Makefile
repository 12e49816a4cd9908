# Everything runs in a virtual environment, .venv; `make` alone lists the targets.
PYTHON3 ?= python3
PIP_OPTIONS ?=
# cpu, or gpu for onnxruntime-gpu and tensorrt instead of onnxruntime: the two runtimes exclude each other.
RUNTIME ?= cpu
SERVER := $(if $(filter gpu,$(RUNTIME)),server-gpu,server)
CHECKPOINT ?= checkpoints/smollm2
# The small pair of the tests, and what it is compared with once it is trained.
WORLD := checkpoints/world
BASELINES ?= build/baselines
REPOSITORY ?= model_repository
EXPORT_OPTIONS ?=
# Passages like those that will be served, for the encoder in integers.
CALIBRATION ?= client/examples/passages.jsonl
RESULTS ?= perf/results
# Passages to learn from without labels.
PASSAGES ?= build/documentation.txt
TEACH_OPTIONS ?=
# Folder of the question files that the preset smollm2 names, and file of questions to judge it on.
DATA ?= data/train
QUESTIONS ?= data/eval/questions.jsonl
QUESTION_OPTIONS ?=
# The decoder tuned on plain passages, which `make train-smollm2` leaves here.
PLAIN ?= build/smollm2-plain

BIN := .venv/bin
INSTALLED := .venv/.installed
# What the world's checkpoint is compared with, where it is there; `make train-world` trains it.
COMPARED = $(addprefix --plain ,$(wildcard $(BASELINES)/plain)) $(addprefix --blind-policy ,$(wildcard $(BASELINES)/policy_blind/policy.safetensors)) $(addprefix --unlabelled-policy ,$(wildcard $(BASELINES)/policy_unlabelled/policy.safetensors))
EXPORTED := $(REPOSITORY)/decoder/1/checkpoint/refrag.json
# Holds the path of the checkpoint that was exported.
EXPORTED_FROM := $(REPOSITORY)/decoder/1/checkpoint/exported_from
# Exports anew where what is exported is from another checkpoint than the named one.
IF_ANOTHER := $(if $(filter $(realpath $(CHECKPOINT)),$(shell cat $(EXPORTED_FROM) 2> /dev/null)),,FORCE)
# The models that search collections, which `make play` adds.
SEARCHING := $(REPOSITORY)/refrag_rag/config.pbtxt

.DEFAULT_GOAL := help
.PHONY: help install vllm constraints demo play results serve export perf perf-full bench-engine bench-store bench-retrieval bench-accuracy gpu docs test test-fast check frameworks aiperf format evaluate evaluate-world evaluate-int8 teach train-world train-smollm2 train-tiny clean FORCE

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## install everything into .venv

$(INSTALLED): pyproject.toml client/pyproject.toml constraints.txt VERSION
	@$(PYTHON3) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 12) and f"Python {v[0]}.{v[1]} found, 3.11 or 3.12 needed; name another with make PYTHON3=python3.11")'
	@$(PYTHON3) -c 'import ensurepip, venv' || { echo "the venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON3) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_OPTIONS) --constraint constraints.txt --editable client --editable '.[$(SERVER),redis,retrieval,train,evaluate,perf,dev]'
	touch $@

vllm: install ## vLLM in an environment of its own, which tests of that decoder use → build/decoders/vllm
	$(BIN)/refrag decoders install vllm --folder build/decoders/vllm

# For both runtimes. Resolved for the oldest Python; the releases that it names have the newer one's wheels too.
# torch stays the release that the checkpoint was trained, exported and compared with; change its line by hand.
constraints: install ## the newest releases that go together → constraints.txt, which `make install` follows
	mkdir -p build && grep '^torch==' constraints.txt > build/kept.txt
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_35 \
		--no-annotate --custom-compile-command "make constraints" \
		--constraint build/kept.txt \
		--extra server --extra server-gpu --extra redis --extra retrieval --extra train --extra evaluate --extra perf --extra dev \
		--no-emit-package refrag --no-emit-package refrag-client --output-file constraints.txt pyproject.toml client/pyproject.toml

demo: $(EXPORTED) ## start Triton and ask twenty questions about Python's documentation, compressed and plain side by side
	$(BIN)/python -m examples.demo --repository $(REPOSITORY)

play: $(if $(wildcard $(SEARCHING)),$(EXPORTED),$(SEARCHING)) ## Triton, OpenAI's endpoint, and a page to try it on over Python's documentation, until Ctrl-C → http://127.0.0.1:9000/
	$(BIN)/python -m examples.play --repository $(REPOSITORY)

# Under another name first: with a result file half written, the commit would count as changed.
results: $(EXPORTED) ## the figures that the README quotes from the demo → perf/results
	$(BIN)/python -m examples.demo --repository $(REPOSITORY) --output perf/results/demo.json > perf/results/demo.txt.new
	mv perf/results/demo.txt.new perf/results/demo.txt

serve: $(EXPORTED) ## serve the repository on ports 8000 (HTTP), 8001 (gRPC) and 8002 (metrics) until Ctrl-C
	$(BIN)/refrag serve --model-repository $(REPOSITORY)

export: install ## checkpoint → ONNX models and a deployable repository; EXPORT_OPTIONS="--precision fp16"
	$(BIN)/refrag export --checkpoint $(CHECKPOINT) --repository $(REPOSITORY) $(EXPORT_OPTIONS)

# Once it has collections, every export keeps them.
$(SEARCHING): | $(INSTALLED)
	$(BIN)/refrag export --checkpoint $(CHECKPOINT) --repository $(REPOSITORY) --retrieval $(EXPORT_OPTIONS)

# What is exported already stays, with the options it was exported with, until the checkpoint changes or another is named.
$(EXPORTED): $(CHECKPOINT)/refrag.json $(IF_ANOTHER) | $(INSTALLED)
	$(BIN)/refrag export --checkpoint $(CHECKPOINT) --repository $(REPOSITORY) $(EXPORT_OPTIONS)

perf: install ## a report on this machine in five minutes, with the small pair → build/perf/report.html
	$(BIN)/python -m perf.ttft --checkpoint $(WORLD) --encoders fp32 int8 --output build/perf/ttft.json
	$(BIN)/python -m perf.load --checkpoint $(WORLD) --output build/perf/load.json
	$(BIN)/python -m perf.report page build/perf --output build/perf/report.html

perf-full: install ## every tool at length, on the small pair → $(RESULTS) and build/perf-full/report.html
	$(BIN)/python -m perf.ttft --checkpoint $(WORLD) --context-tokens 512 2048 8192 16384 --chunk-sizes 8 16 32 \
		--encoders fp32 int8 --output $(RESULTS)/ttft.json
	$(BIN)/python -m perf.load --checkpoint $(WORLD) --concurrency 1 2 4 8 16 --request-rates 1 2 --requests 3 --output $(RESULTS)/load.json
	$(BIN)/python -m perf.peers --checkpoint $(WORLD) --output $(RESULTS)/peers.json
	$(BIN)/python -m perf.scale --checkpoint $(WORLD) --output $(RESULTS)/scale.json
	$(BIN)/python -m perf.prefill 30m --output $(RESULTS)/prefill.json
	$(BIN)/python -m perf.report page $(RESULTS) --output build/perf-full/report.html

bench-engine: install ## the decoder's engine against Hugging Face's ways to generate → perf/results/engine.json
	$(BIN)/python -m perf.engine --output perf/results/engine.json

# Without `install`: a machine with a GPU brings its own torch and transformers.
gpu: ## everything that a GPU has to show, in under nine minutes → build/gpu.json; needs torch and transformers alone
	$(PYTHON3) -m perf.gpu --output build/gpu.json

bench-store: install ## the store of chunk vectors: lookups, indexing, time to first token → perf/results/store.json
	$(BIN)/python -m perf.store --output perf/results/store.json

bench-retrieval: install ## collections: indexing, searching, where an answer's time goes → perf/results/retrieval.json
	$(BIN)/python -m perf.retrieval --output perf/results/retrieval.json

bench-accuracy: install ## QUESTIONS over retrieved passages: accuracy and first token, plain and compressed → perf/results/accuracy.json
	$(BIN)/python -m perf.accuracy $(QUESTIONS) --output perf/results/accuracy.json

docs: install ## bring the figures, lists and drawings in README.md and docs/ up to date
	$(BIN)/python -m perf.docs

test: install ## all tests, with a real tritonserver
	$(BIN)/python -m pytest tests client/tests

test-fast: install ## the tests that need no server
	$(BIN)/python -m pytest tests client/tests -m 'not server and not slow'

check: install ## formatting, lint, types, who imports whom, and the generated documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m perf.docs --check

# They hold packages back that ours need newer, so they have an environment of their own.
frameworks: $(INSTALLED) ## LangChain, LlamaIndex, Haystack and LiteLLM, which tests/graph/test_graph_frameworks.py asks with → build/frameworks
	$(PYTHON3) -m venv build/frameworks
	build/frameworks/bin/pip install --quiet --requirement examples/frameworks/requirements.txt

aiperf: $(INSTALLED) ## NVIDIA's AIPerf, with which tests/graph/test_graph_aiperf.py measures the endpoint → build/aiperf
	$(PYTHON3) -m venv build/aiperf
	build/aiperf/bin/pip install --quiet aiperf==0.13.0

format: install ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

evaluate: install ## ask the questions in QUESTIONS, compressed and plain; resumes → $(CHECKPOINT)/questions
	mkdir -p $(CHECKPOINT)/questions
	$(BIN)/refrag evaluate questions --checkpoint $(CHECKPOINT) $(addprefix --plain ,$(wildcard $(PLAIN))) --data $(QUESTIONS) \
		$(QUESTION_OPTIONS) --output $(CHECKPOINT)/questions/$(firstword $(subst ., ,$(notdir $(QUESTIONS)))).json

evaluate-world: install ## all tables on held-out worlds → $(WORLD)/evaluation.json and .md
	$(BIN)/refrag evaluate run --checkpoint $(WORLD) $(COMPARED) --output $(WORLD)/evaluation.json
	$(BIN)/refrag evaluate report $(WORLD)/evaluation.json > $(WORLD)/evaluation.md

evaluate-int8: install ## answers with the encoder in integers against those in floats → $(WORLD)/int8.json
	$(BIN)/refrag export --checkpoint $(WORLD) --repository build/int8 --precision int8 --calibration $(CALIBRATION)
	$(BIN)/refrag evaluate run --checkpoint $(WORLD) --tables onnx-encoders --onnx-encoder int8=build/int8/chunk_encoder/1/model.onnx --output $(WORLD)/int8.json

train-world: install ## train the world's checkpoint and what it is compared with, from nothing; resumes
	$(BIN)/refrag train run world
	$(BIN)/refrag train save world $(WORLD)
	$(BIN)/refrag train save world $(BASELINES)/plain --run plain --part decoder
	$(BIN)/refrag train save world $(BASELINES)/policy_blind --run policy_blind --part policy
	$(BIN)/refrag train save world $(BASELINES)/policy_unlabelled --run policy_unlabelled --part policy
	$(BIN)/refrag train log world $(WORLD)/training.json
	$(BIN)/refrag evaluate ablations --output $(WORLD)/ablations.json \
		--reconstruction "with curriculum=runs/world/reconstruct/checkpoint" "without curriculum=runs/world/reconstruct_without_curriculum/checkpoint" \
		--continuation "after reconstruction=runs/world/continue/checkpoint" "without reconstruction=runs/world/continue_without_reconstruction/checkpoint"
	$(BIN)/refrag evaluate report $(WORLD)/ablations.json > $(WORLD)/ablations.md

# The documentation of Python, as it is installed.
build/documentation.txt: | $(INSTALLED)
	mkdir -p build && $(BIN)/python -m examples.documentation > $@.new && mv $@.new $@

teach: $(PASSAGES) ## teach CHECKPOINT the file PASSAGES without labels; resumes → build/taught, $(CHECKPOINT)/taught.json
	$(BIN)/refrag teach build/taught --checkpoint $(CHECKPOINT) --passages $(PASSAGES) $(TEACH_OPTIONS)
	cp build/taught/fidelity.json $(CHECKPOINT)/taught.json

train-smollm2: install ## train the real pair on the questions in DATA; resumes
	$(BIN)/refrag train run smollm2 --set data=$(DATA)
	$(BIN)/refrag train save smollm2 checkpoints/smollm2
	$(BIN)/refrag train save smollm2 $(PLAIN) --run plain
	$(BIN)/refrag train log smollm2 checkpoints/smollm2/training.json

train-tiny: install ## train every stage in minutes and see that each learned
	$(BIN)/python -m pytest tests/training/test_tiny.py -s

clean: ## remove the environment and everything built
	rm -rf .venv build runs model_repository/*/1/model.onnx model_repository/*/1/checkpoint
