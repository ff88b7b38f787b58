// room:cors

// CORS: which browser apps of other origins may read the answers. A team without it serves its front end from the origin of
// the API, or lets its proxy answer.
//
// What ties it to the house is what `grep -n room:cors *.go` finds: a step of the middleware chain and a variable of the
// configuration. To take it out, delete this file and those lines.

package main

import (
	"net/http"

	"github.com/jub0bs/cors"
)

// cors allows exactly the origins of CORS_ORIGINS, without credentials: tokens travel in a header (R07).
func (s *server) cors(next http.Handler) http.Handler {
	middleware, err := newCORS(s.cfg.CORSOrigins)
	if err != nil || middleware == nil { // the configuration was checked: no error comes this far
		return next
	}
	return middleware.Wrap(next)
}

// newCORS returns nil when no origin is allowed.
func newCORS(origins []string) (*cors.Middleware, error) {
	if len(origins) == 0 {
		return nil, nil
	}
	return cors.NewMiddleware(cors.Config{
		Origins:         origins,
		Methods:         []string{"GET", "POST", "PUT", "PATCH", "DELETE"},
		RequestHeaders:  []string{"Authorization", "Content-Type", "If-Match", "If-None-Match", "X-Request-Id"},
		ResponseHeaders: []string{"ETag", "Link", "Retry-After", "X-Request-Id", "WWW-Authenticate"},
		MaxAgeInSeconds: 600,
	})
}
