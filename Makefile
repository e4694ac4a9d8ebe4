# `make help` says what there is. The Go toolchain is all that must be there before; see scripts/setup for the rest.

SHELL       := /bin/sh
GO          ?= go
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
MODULES     := . examples
FOREIGN     := darwin windows
# Tests of the source, which the race detector would only make slow. What looks at packages as they are compiled looks at them
# with it, as the tests have them: they are compiled once.
CHECKS      := internal/house internal/crosscheck
# The tests that take longest begin first, so that two processors have work to the end.
LONG        := . vm/qemu internal/guest internal/image
FUZZTIME    ?= 20s
PKGS        ?= ./...

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## boot a machine and run a container in it, with a timeline
	@scripts/setup demo
	@cd examples && $(GO) run ./hello

.PHONY: test
test: setup check ## the whole suite: all checks, and all tests with real machines
	@$(MAKE) --no-print-directory -j $(MODULES:%=test-in-%)

.PHONY: $(MODULES:%=test-in-%)
$(MODULES:%=test-in-%): test-in-%:
	@cd $* && ARCBOX_TEST_VM=1 $(GO) test -race -vet=off -shuffle=on -timeout 20m \
		$(if $(filter .,$*),$(LONG:%=./%)) $$($(GO) list ./... | grep -v $(CHECKS:%=-e /%$$))

.PHONY: check
check: ## format, vet, staticcheck, types for other systems, and the rules of the house
	@bad=$$(gofmt -l .) && [ -z "$$bad" ] || { echo "gofmt -w $$bad"; exit 1; }
	@for m in $(MODULES); do (cd $$m && $(GO) vet -race ./... && \
		$(GO) run -exec 'env GOFLAGS=-race' $(STATICCHECK) ./...) || exit 1; done
	@$(GO) test $(CHECKS:%=./%)

.PHONY: foreign
foreign: ## vet for other systems, which takes minutes when it is new: all is compiled for them
	@for os in $(FOREIGN); do for m in $(MODULES); do \
		(cd $$m && GOOS=$$os CGO_ENABLED=0 $(GO) vet ./...) || { echo "on $$os"; exit 1; }; done; done

.PHONY: mac
mac: ## on a Mac: the drivers' conformance suite in the Virtualization framework, with tests that are signed
	@CGO_ENABLED=1 ARCBOX_TEST_VM=1 $(GO) test -exec '$(GO) run ./vm/vz/sign -run' -timeout 20m ./vm/vz

.PHONY: bench
bench: ## measure: lines of "BENCH name value unit"
	@scripts/setup demo >&2
	@cd examples && $(GO) run ./bench

.PHONY: fuzz
fuzz: ## run each fuzz target of PKGS (all) for FUZZTIME (20s)
	@$(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' $(PKGS) | while read -r pkg; do \
		$(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' | while read -r target; do \
			echo "$$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
		done || exit 1; \
	done

.PHONY: setup
setup: ## install what the tests need
	@scripts/setup test
