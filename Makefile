# `make demo` and `make test` set everything up by themselves; a second run skips what is done.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-slow test-plain test-flower test-plugins check bench docs clean

demo: $(VENV)/.has-demo
	$(RUN) -m rsfl.demo

# A process for each core, with one thread: the networks are so small that threads would wait more
# than work. A file stays with one process, and so do the models that it trains for its tests.
test: $(VENV)/.has-test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n logical --dist loadfile -m "not slow"

test-slow: $(VENV)/.has-test
	$(RUN) -m pytest -m slow

# Every fast path replaced by the plain way that it must agree with, where there is one.
test-plain: $(VENV)/.has-test
	$(RUN) -m pytest -m "not slow" --without all tests/smooth tests/test_deform.py tests/test_attacks.py \
		tests/test_train.py tests/test_heap.py tests/fed

# In an environment of its own: Flower and Ray bring a hundred packages, and pin some of them.
test-flower:
	$(MAKE) VENV=.venv-flower .venv-flower/.has-test .venv-flower/.has-flower
	.venv-flower/bin/python -m pytest -m "not slow" tests/flower

# In an environment of its own, too. torchattacks and adv-lib ask for a torchvision that they do not need here.
test-plugins:
	$(MAKE) VENV=.venv-plugins .venv-plugins/.has-test .venv-plugins/.has-plugins
	.venv-plugins/bin/python -m pip install --quiet --disable-pip-version-check --no-deps torchattacks==3.5.1 adv-lib==0.2.8
	.venv-plugins/bin/python -m pytest -m "not slow" tests/plugins

check: $(VENV)/.has-lint $(VENV)/.has-test docs
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m mypy
	$(RUN) -m pytest -q --doctest-modules --ignore-glob "src/rsfl/fed/flower*.py" src

docs: $(VENV)/.has-docs
	$(RUN) -m sphinx -q -W --keep-going -d docs/_build/doctrees docs docs/_build/html

# What rsfl is compared with has an environment of its own.
bench: $(VENV)/.has-bench
	$(MAKE) VENV=.venv-peers .venv-peers/.has-peers
	$(RUN) -m benchmarks

clean:
	rm -rf $(VENV) .venv-flower .venv-peers .venv-plugins docs/_build build dist demo-out

# One stamp per extra of pyproject.toml: what is installed already is not asked for again.
$(VENV)/.has-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing rsfl[$*] into $(VENV): minutes the first time"
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$*]'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
