package main

import (
	"compress/gzip"
	"context"
	_ "embed"
	"io"
	"mime"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/swaggest/swgui/v5/static"
)

// openapiJSON is generated from the route table and the types: go test -run TestOpenAPI -update.
//
//go:embed openapi.json
var openapiJSON []byte

//go:embed docs.html
var docsHTML []byte

//go:embed docs.js
var docsJS []byte

const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func (s *server) readOpenAPI(context.Context, caller, none) (file, error) {
	return file{"application/json", "", openapiJSON}, nil
}

func (s *server) readDocs(context.Context, caller, none) (file, error) {
	return file{"text/html; charset=utf-8", docsPolicy, docsHTML}, nil
}

type readDocsFileInput struct {
	File string `path:"file" is:"text"`
}

// readDocsFile serves Swagger UI, which is embedded compressed, and the script that starts it.
func (s *server) readDocsFile(_ context.Context, _ caller, in readDocsFileInput) (file, error) {
	content, err := docsFile(in.File)
	if err != nil {
		return file{}, errNotFound // no other error: what is embedded can be read
	}
	return file{mime.TypeByExtension(path.Ext(in.File)), "", content}, nil
}

func docsFile(name string) ([]byte, error) {
	if name == "docs.js" {
		return docsJS, nil
	}
	if strings.HasSuffix(name, ".png") {
		return static.FS.ReadFile(name)
	}
	compressed, err := static.FS.Open(name + ".gz")
	if err != nil {
		return nil, err
	}
	defer compressed.Close()
	r, err := gzip.NewReader(compressed)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// health is the answer of both probes.
type health struct {
	Status string `json:"status"`
}

// readHealth touches nothing: a replica that answers is alive (R92).
func (s *server) readHealth(context.Context, caller, none) (health, error) {
	return health{"ok"}, nil
}

// readyTimeout is how long the database may take to answer a probe.
const readyTimeout = 500 * time.Millisecond

// readiness remembers for a second that the database answered, so that probes from everywhere cost nothing (R92), and
// that it did not for less than any prober's interval: two probes in a row must not fail by one slow answer.
type readiness struct {
	mu    sync.Mutex
	until time.Time
	err   error
}

// readReadiness says whether to send requests here: not draining, the database answers in time, and they would not fail there.
func (s *server) readReadiness(ctx context.Context, _ caller, _ none) (health, error) {
	if s.draining.Load() {
		return health{}, errNotReady
	}
	s.ready.mu.Lock()
	defer s.ready.mu.Unlock()
	if time.Now().After(s.ready.until) {
		ctx, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		err := s.checkDatabase(ctx)
		s.ready.until, s.ready.err = time.Now().Add(time.Second), err
		if err != nil {
			s.ready.until = time.Now().Add(100 * time.Millisecond)
		}
	}
	if s.ready.err != nil {
		return health{}, errNotReady.because(s.ready.err)
	}
	return health{"ready"}, nil
}
