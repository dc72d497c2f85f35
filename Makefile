# Everything here is a short name for a command; nothing is hidden in it.
CARGO ?= cargo
DIDACT := target/release/didact
# For comparisons only.
PYTHON ?= python3
BENCH_NEEDS := the comparison needs PyTorch, in a virtual environment outside this repository: \
  python3 -m venv ~/didact-bench && ~/didact-bench/bin/pip install torch transformers && \
  make bench PYTHON=~/didact-bench/bin/python
# The tests that need SmolLM2 look here; `model pull` answers at once when the model is already there.
DIDACT_TEST_MODEL_NAME := smollm2-135m-instruct
# Another selection of features, so another directory.
WGPU_TARGET ?= target/wgpu
# Tests and `didact` itself are always built by `cargo test --workspace`: another selection of packages would select other
# features of shared dependencies and build them all again.

.PHONY: help demo test test-model test-wgpu test-verilog check-cuda results lint interop interop-weights interop-venv interop-server interop-llama bench bench-train bench-kernels asan miri

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

demo: ## teach SmolLM2-135M-Instruct to call tools, and show before and after
	$(CARGO) build --release --locked --bin didact
	$(DIDACT) model pull smollm2-135m-instruct
	$(DIDACT) run quickstart

test: ## every test that needs neither network nor downloaded weights
	$(CARGO) test --workspace --locked

test-model: ## pulls SmolLM2-135M-Instruct and runs the tests that need it; fails when it cannot be had
	$(CARGO) test --workspace --locked --no-run
	target/debug/didact model pull $(DIDACT_TEST_MODEL_NAME) --source registry
	DIDACT_TEST_MODEL="$$(target/debug/didact model pull $(DIDACT_TEST_MODEL_NAME) --source registry --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["path"])')" \
	  $(CARGO) test --workspace --locked -- --ignored real_model

test-verilog: ## the tests that need Icarus Verilog (Debian: apt-get install iverilog bubblewrap); DIDACT_DATA: VerilogEval's folder, too
	@command -v iverilog >/dev/null || { echo "iverilog is missing: apt-get install iverilog"; exit 1; }
	$(CARGO) test --workspace --locked -- --ignored verilog_

test-wgpu: ## trains on a Vulkan device and compares with the CPU (Debian: apt-get install mesa-vulkan-drivers)
	CARGO_TARGET_DIR=$(WGPU_TARGET) $(CARGO) test --locked -p didact --features wgpu --test device \
	  --config 'profile.dev.package."*".opt-level=1'

check-cuda: ## compiles what --features cuda adds; DOCS_RS leaves out the LLVM that only linking needs
	DOCS_RS=1 CARGO_TARGET_DIR=target/cuda $(CARGO) check --locked -p didact --features cuda

bench: bench-train bench-kernels ## Didact beside PyTorch, into bench/RESULTS.md (needs torch, transformers: make bench PYTHON=...)

bench-train:
	@$(PYTHON) -c 'import torch, transformers' || { echo "$(BENCH_NEEDS)"; exit 1; }
	$(CARGO) build --release --locked --bin didact
	$(PYTHON) bench/train.py

bench-kernels: ## matrix products and attention beside PyTorch, into bench/RESULTS.md
	@$(PYTHON) -c 'import torch' || { echo "$(BENCH_NEEDS)"; exit 1; }
	CARGO_TARGET_DIR=target/kernels $(CARGO) build --release --locked -p didact-kernels --examples
	$(PYTHON) bench/gemm.py target/kernels/release/examples/gemm_rate --record
	$(PYTHON) bench/attention.py target/kernels/release/examples/attention_rate --record

results: ## RESULTS.md from the recorded results
	$(CARGO) build --release --locked --bin didact
	$(DIDACT) reproduce --render results

lint: ## formatting, clippy and rustdoc, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

interop: interop-weights interop-server ## what Didact writes and serves, read and spoken to by Python's libraries

interop-weights: ## models and adapters, loaded by transformers and peft (needs them: pip install torch transformers peft)
	$(CARGO) test --workspace --locked --no-run
	python3 tests/interop/run.py target/debug/didact

# Short waits: who has no way to PyPI is told so soon.
interop-venv:
	python3 -m venv target/interop-venv
	target/interop-venv/bin/pip install --quiet --disable-pip-version-check --timeout 10 --retries 1 openai==3.57.0

interop-server: interop-venv ## the server, spoken to by the openai client (installed under target) and curl
	$(CARGO) test --workspace --locked --no-run
	target/interop-venv/bin/python tests/interop/openai_client.py target/debug/didact

interop-llama: ## Didact asks llama_cpp.server (PYTHON with 'llama-cpp-python[server]', GGUF=model.gguf)
	$(CARGO) build --release --locked --bin didact
	$(PYTHON) tests/interop/llama_server.py $(DIDACT) $(GGUF)

# Both need a nightly compiler: rustup toolchain install nightly --component miri,rust-src
NIGHTLY ?= +nightly

asan: ## the kernels' tests under AddressSanitizer (nightly)
	RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=target/asan $(CARGO) $(NIGHTLY) test -p didact-kernels --release \
	  --locked --lib --tests --target x86_64-unknown-linux-gnu

miri: ## the kernels' portable code under Miri (nightly)
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-permissive-provenance -Zmiri-ignore-leaks" \
	  CARGO_TARGET_DIR=target/miri DIDACT_CPU=portable RAYON_NUM_THREADS=2 $(CARGO) $(NIGHTLY) miri test -p didact-kernels --locked --lib -- miri
