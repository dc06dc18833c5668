# Each target sets up its own .venv when there is none, or when what it should hold has changed.
PYTHON ?= python3.11
comma := ,
EXTRAS := train,call,dev$(if $(shell command -v nvidia-smi),$(comma)gpu)
VENV := .venv
STAMP := $(VENV)/.installed
# --no-compile: byte code is made at the first import instead, and only of what is imported
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile
# cv2 needs these from the system: library -> package
NEEDED := libGL.so.1:libgl1 libgthread-2.0.so.0:libglib2.0-0

.PHONY: demo test test-vm bench-camera check bench bench-link fuzz clean libraries

demo: $(STAMP)
	$(VENV)/bin/understudy demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not needs_gpu and not needs_vm"

# A virtual machine with a real virtual camera: built once, as root, on Debian or Ubuntu.
test-vm: $(STAMP)
	test -s $${VM_CACHE:-$$HOME/.cache/understudy-vm}/vmlinuz || tests/vm/machine.sh build
	$(VENV)/bin/python -m pytest -m needs_vm

check: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

bench: $(STAMP)
	$(VENV)/bin/understudy bench

bench-camera: $(STAMP)
	$(VENV)/bin/python -m plugin.bench_camera

# root: it makes network namespaces
bench-link: $(STAMP)
	$(VENV)/bin/python -m plugin.bench_link

# make fuzz COUNT=10000000: that many damaged packets into the decoder, and frames into the jitter buffer
fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.fuzz decoder $(or $(COUNT),1000000)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.fuzz jitter $(or $(COUNT),1000000)

clean:
	rm -rf $(VENV) .ruff_cache .pytest_cache .hypothesis demo bench
	find engine plugin training tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and by itself: a pip that knows of a CPU build (find-links, index) then takes it.
$(STAMP): pyproject.toml constraints.txt | libraries
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --constraint constraints.txt --editable ".[$(EXTRAS)]"
	touch $@

# Says what to type when a system library is missing; as root on Debian or Ubuntu, types it.
libraries:
	@test "$$(uname -s)" = Linux || exit 0; \
	missing=""; \
	for pair in $(NEEDED); do \
	  PATH=$$PATH:/sbin:/usr/sbin ldconfig -p | grep -qF "$${pair%%:*}" \
	    || missing="$$missing $${pair#*:}"; \
	done; \
	test -n "$$missing" || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; \
	else \
	  echo "Libraries are missing. Type: sudo apt-get install$$missing" >&2; exit 1; \
	fi
