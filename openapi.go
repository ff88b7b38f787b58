// room:documents

// The OpenAPI document, its docs page, and the metadata of RFC 8414. A team without them writes its own.
//
// What ties it to the house is what `grep -n room:documents *.go` finds: rows of the route table and a command. To take it
// out, delete this file, openapi.json, docs.html, docs.js and those lines.

package main

import (
	"cmp"
	"context"
	_ "embed"
	"mime"
	"path"
	"strings"
	"sync"

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

// readDocsFile serves Swagger UI and the script that starts it.
func (s *server) readDocsFile(_ context.Context, _ caller, in readDocsFileInput) (file, error) {
	content, found := docsFiles()[in.File]
	if !found {
		return file{}, errNotFound
	}
	return file{mime.TypeByExtension(path.Ext(in.File)), "", content}, nil
}

// docsFiles are read once, and shared by all who are sent them (R101). Most are embedded compressed.
var docsFiles = sync.OnceValue(func() map[string][]byte {
	files := map[string][]byte{"docs.js": docsJS}
	entries, err := static.FS.ReadDir(".")
	for _, entry := range entries {
		content, readErr := static.FS.ReadFile(entry.Name())
		name, compressed := strings.CutSuffix(entry.Name(), ".gz")
		if compressed {
			content = gunzip(content)
		}
		files[name], err = content, cmp.Or(err, readErr)
	}
	if err != nil {
		panic(err) // the files are part of the program
	}
	return files
})

// serverMetadata is RFC 8414 section 2.
type serverMetadata struct {
	Issuer                            string   `json:"issuer"`
	TokenEndpoint                     string   `json:"token_endpoint"`
	RevocationEndpoint                string   `json:"revocation_endpoint"`
	JWKSURI                           string   `json:"jwks_uri"`
	GrantTypesSupported               []string `json:"grant_types_supported"`
	ResponseTypesSupported            []string `json:"response_types_supported"`
	ScopesSupported                   []string `json:"scopes_supported"`
	TokenEndpointAuthMethodsSupported []string `json:"token_endpoint_auth_methods_supported"`
	RevocationAuthMethodsSupported    []string `json:"revocation_endpoint_auth_methods_supported"`
	ServiceDocumentation              string   `json:"service_documentation"`
	ACRValuesSupported                []string `json:"acr_values_supported"`
}

func (s *server) readMetadata(context.Context, caller, none) (serverMetadata, error) {
	return serverMetadata{
		Issuer:                            s.cfg.PublicURL,
		TokenEndpoint:                     s.cfg.PublicURL + "/v1/auth/token",
		RevocationEndpoint:                s.cfg.PublicURL + "/v1/auth/revoke",
		JWKSURI:                           s.cfg.PublicURL + "/.well-known/jwks.json",
		GrantTypesSupported:               []string{"password", "refresh_token"},
		ResponseTypesSupported:            []string{},
		ScopesSupported:                   strings.Fields(platformScopes["admin"]),
		TokenEndpointAuthMethodsSupported: []string{"none"},
		RevocationAuthMethodsSupported:    []string{"none"},
		ServiceDocumentation:              s.cfg.PublicURL + "/docs",
		ACRValuesSupported:                []string{aal1, aal2},
	}, nil
}
