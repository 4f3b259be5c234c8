# Every target makes .venv itself; the second time that costs nothing.
#   make test PYTHON=python3.12          another interpreter for a new .venv
#   make test PIP_FLAGS="--index-url …"  another package index
#   make gpu PY=python3 STAMP=           an environment that is already there
PYTHON ?= python3
PIP_FLAGS ?=
PY ?= .venv/bin/python
STAMP ?= .venv/.installed

.PHONY: help demo test mutants peers slow families lint format bench bench-full bench-report figures train gpu kernels ptx compile package clean

help:
	@echo "make demo     explain real MNIST and Fashion-MNIST images with every method (out/demo)"
	@echo "make test     the test suite, without the long tests; ROOM=engine: of one room"
	@echo "make slow     the long tests: every family of networks"
	@echo "make families twelve families of networks of those"
	@echo "make mutants  faults put into the sources: each must fail a test"
	@echo "make peers    Zennit's own tests, from its source package, on relprop's hooks"
	@echo "make lint     formatting, ruff, mypy on an installed copy"
	@echo "make format   rewrite the sources as 'make lint' wants them"
	@echo "make bench    CPU benchmarks, side by side with peers; BASE=<git revision>: with a version"
	@echo "make bench-full    all of them, recorded; then tables and figures (make bench-report)"
	@echo "make figures  the study's figures, as PNG and PDF, into figures/"
	@echo "make train    train the study's networks that come without weights (out/train)"
	@echo "make gpu      tests and benchmarks on a CUDA device"
	@echo "make kernels  the Triton kernels' tests, in Triton's interpreter"
	@echo "make ptx      compiled kernels for sm_90 and sm_80, their PTX executed on the CPU"
	@echo "make compile  Triton kernels for three GPUs, none needed: no spills, nothing serialized"
	@echo "make package  build the wheel and sdist, install into empty environments, run the README"

$(STAMP): setup.py constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt "setuptools>=77"
	.venv/bin/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[test,triton]"
# The peers to compare with, without the torch builds that they would pull in, and with the OpenCV
# that needs no display.
	.venv/bin/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt click packaging tqdm \
	    opencv-python-headless pandas scikit-image scikit-learn
	.venv/bin/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt --no-deps \
	    captum quantus torchvision zennit
	touch $@

demo: $(STAMP)
	$(PY) -m relprop.cli.demo --out out/demo

# Two processes of one thread each: threads of two processes on two cores wait for one another.
# make test ROOM=engine: the tests of one room
test: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m "not slow" $(if $(ROOM),tests/$(ROOM))

slow: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m slow --ignore tests/kernels

FAMILIES = vgg11_bn or resnext50 or densenet121 or googlenet or inception or efficientnet_b0 or \
    mobilenet_v2 or mobilenet_v3_small or shufflenet or regnet_y or mnasnet or convnext_tiny

families: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -m slow tests/capture/test_families.py -k "$(FAMILIES)"

mutants: $(STAMP)
	$(PY) .ci/mutants.py

peers: $(STAMP)
	$(PY) .ci/peers.py

lint: $(STAMP)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) .ci/typecheck.py

format: $(STAMP)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# make bench BASE=v0.1   this checkout against another version
bench: $(STAMP)
	$(PY) -m benchmarks --budget 540 $(if $(BASE),--base $(BASE))

# Goes on where it was stopped; figures and tables are made from the records alone.
bench-full: $(STAMP)
	$(PY) -m benchmarks --suite full --record --keep 12 --budget 5000
	$(MAKE) bench-report

bench-report: $(STAMP)
	$(PY) -m benchmarks.report
	$(PY) -m figures.benchmarks
	$(PY) .ci/readme_performance.py

# make figures FIGURES="--data FOLDER" reads the data sets from a folder.
figures: $(STAMP)
	$(PY) figures/sequence_example.py
	$(PY) -m figures $(FIGURES)

# make train TRAIN="--data FOLDER --device cuda --jobs 6"; goes on where it was stopped.
train: $(STAMP)
	$(PY) -m relprop train all all --out out/train $(TRAIN)

gpu: $(STAMP)
	$(PY) -m benchmarks.gpu

kernels: $(STAMP)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(PY) -m pytest -n 2 tests/kernels

PTX_TESTS = tests/kernels/test_compiled.py tests/kernels/test_compiled_faults.py

ptx: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(PTX_TESTS) --ptx 90
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 $(PTX_TESTS) --ptx 80

compile: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.compile_kernels --gate

package: $(STAMP)
	$(PY) .ci/package.py

clean:
	rm -rf build dist out relprop.egg-info .pytest_cache .mypy_cache .ruff_cache
