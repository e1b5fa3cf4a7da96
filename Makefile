# vmkit. `make help` lists what there is; fixtures/setup.sh installs what each target needs.
GO      ?= $(shell fixtures/setup.sh --go)
BIN     ?= bin
PREFIX  ?= /usr/local
CORPUS  ?= ../shared/corpus
CHECKER ?= ../shared/tools/check_corpus.py
KINDS   ?= cli,ext,xfs,ntfs,fat,exfat,btrfs,iso,qcow2,vmdk,disk,lvm,robust
FUZZTIME ?= 10m
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMANDS := $(notdir $(patsubst %/,%,$(dir $(wildcard cmd/*/main.go))))

export CGO_ENABLED ?= 0

.PHONY: help build install demo test race check bench corpus system fuzz fixtures clean
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## the commands, in bin/
	$(GO) build -buildvcs=false -trimpath -ldflags '-s -w -X vmkit/cmd/internal/cli.Version=$(VERSION)' -o $(BIN)/ $(addprefix ./cmd/,$(COMMANDS))

install: build ## commands and manual pages below PREFIX
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install $(addprefix $(BIN)/,$(COMMANDS)) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(foreach c,$(COMMANDS),cmd/$(c)/$(c).1) $(DESTDIR)$(PREFIX)/share/man/man1

demo: build ## makes a Debian disk, maps, extracts and verifies it, and backs it up
	fixtures/demo.sh $(BIN)

test: build check ## all tests, with a count at the end
	@GO=$(GO) fixtures/test.sh

race: ## the tests of what runs concurrently, under the race detector
	CGO_ENABLED=1 $(GO) test -race -short ./formats/... ./fsmap/... ./extract/... ./cmd/internal/repo/... ./cmd/internal/clone

check: ## formatting, vet, who imports whom, manual pages
	@test -z "$$(gofmt -l cmd extract formats fsmap partition verify fixtures | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) test -count=1 ./cmd/internal/check

corpus: build ## the acceptance checker over a folder of images, where they are
	@if [ -e $(CORPUS)/INDEX.tsv ] && [ -e $(CHECKER) ]; then \
		python3 $(CHECKER) --bin $(BIN) --set $(CORPUS) --kind $(KINDS); \
	else \
		echo "SKIP: corpus: no $(CORPUS)/INDEX.tsv or no $(CHECKER)"; \
	fi

system: build ## whole guests that write: killed; frozen, cloned and mapped in three ways (root; fixtures/setup.sh system)
	fixtures/system.sh $(BIN)
	VMKIT_GUEST=1 $(GO) test -count=1 -run 'TestGuest$$' ./cmd/internal/e2e

bench: build ## vmkit beside its peers, on disks that it makes (root, 60 GB of room)
	fixtures/bench.sh $(BIN)
	fixtures/bench-freeze.sh $(BIN)/vmfreeze
	fixtures/bench-backup.sh $(BIN)

fuzz: ## each fuzz target for FUZZTIME
	GO=$(GO) fixtures/fuzz.sh $(FUZZTIME)

fixtures: ## makes the stored test images anew (root; needs the tools that each make.sh names)
	for d in fixtures/*/make.sh; do (cd "$$(dirname "$$d")" && ./make.sh) || exit; done

clean: ## what the other targets made
	rm -rf $(BIN) demo bench-images system-images
