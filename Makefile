# The newcomer's path. `make help` lists the targets.
#
# Everything is done by the go command and by the scripts in scripts/; this file
# only names the steps. GNU make.

SHELL := /bin/sh

PREFIX  ?= /usr/local
DESTDIR ?=
BINDIR  ?= $(PREFIX)/bin
UNITDIR ?= $(PREFIX)/lib/systemd/user
# Where the built programs are.
BIN     ?= bin
# RootlessKit's names, and which program takes each.
LINKS   := rootlesskit:gatekit docker-rootlesskit:gatekit rootlessctl:gatectl

GO      ?= go
# The version of `git describe` where there is one; see scripts/version.
VERSION ?= $(shell scripts/version)
LDFLAGS := -s -w -X github.com/gatekit/gatekit/internal/version.Version=$(VERSION)

# Static programs: they run in any mount namespace, whatever /lib holds there.
export CGO_ENABLED ?= 0
# The version is stamped above. The go command's own stamp fails where git
# distrusts the owner of the clone, as in many CI containers.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)
export GO

.DEFAULT_GOAL := build

# The systemd user units; packaging/README.md says what they do.
UNITS   := $(wildcard packaging/systemd/*)

.PHONY: help build install install-rootlesskit-names install-units uninstall deb run test bench lint clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-26s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build gatekit and gatectl into bin/ (the default)
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o '$(BIN)/' ./cmd/gatekit ./cmd/gatectl

install: ## Install both programs below PREFIX (/usr/local), under DESTDIR
	@test -x '$(BIN)/gatekit' && test -x '$(BIN)/gatectl' || $(MAKE) build
	install -d '$(DESTDIR)$(BINDIR)'
	install -m 0755 '$(BIN)/gatekit' '$(BIN)/gatectl' '$(DESTDIR)$(BINDIR)'

# A program that is not our link is somebody else's: it is neither replaced nor
# removed.
install-rootlesskit-names: install ## Install, and be rootlesskit, docker-rootlesskit and rootlessctl there too
	@cd '$(DESTDIR)$(BINDIR)' && for link in $(LINKS); do name=$${link%:*} ours=$${link#*:}; \
		if test "$$(readlink $$name)" != $$ours; then ln -s $$ours $$name || exit; fi; done

install-units: ## Install systemd user units for Docker and k3s below PREFIX, under DESTDIR
	install -d '$(DESTDIR)$(UNITDIR)'
	install -m 0644 $(UNITS) '$(DESTDIR)$(UNITDIR)'

uninstall: ## Remove what the install targets put there
	@if cd '$(DESTDIR)$(BINDIR)' 2>/dev/null; then for link in $(LINKS); do name=$${link%:*} ours=$${link#*:}; \
		if test "$$(readlink $$name)" = $$ours; then rm -f $$name; fi; done; fi
	rm -f '$(DESTDIR)$(BINDIR)/gatekit' '$(DESTDIR)$(BINDIR)/gatectl' $(UNITS:packaging/systemd/%='$(DESTDIR)$(UNITDIR)/%')

deb: build ## Build a Debian package into bin/
	@scripts/deb '$(BIN)' '$(VERSION)' '$(BIN)'

run: build ## Prepare this host, then open a shell behind slirp (a demonstration without a terminal)
	@scripts/run

test: build ## Install what the tests need, then run all of them, unit and integration
	@scripts/test

bench: build ## Compare with the peers on this machine and write docs/benchmarks.md (BENCHFLAGS: more flags)
	$(GO) run ./bench -out docs $(BENCHFLAGS)

lint: ## Check formatting, vet, staticcheck, go.mod, generated files, scripts and house rules
	@scripts/lint

clean: ## Remove what the other targets built
	rm -rf bin
